/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "serve/fetch.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>

#ifndef MADV_DONTNEED_LOCKED /* Linux 5.18: our own memory is locked */
#define MADV_DONTNEED_LOCKED 24
#endif

#define BUFFERS_BYTES (FETCHES_MAX * PAGE_READ_BYTES_MAX)
#define KEPT_BUFFERS 4 /* have memory also while nothing is in flight */

int fetches_create(struct readers *readers, bool uring, struct fetches **out)
{
	struct fetches *fetches = calloc(1, sizeof *fetches);
	int rc;

	if (!fetches)
		return -ENOMEM;
	fetches->buffers =
		mmap(NULL, BUFFERS_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	rc = fetches->buffers == MAP_FAILED ? -errno :
					      reads_create(readers, FETCHES_MAX, uring, &fetches->reads);
	if (rc) {
		fetches_destroy(fetches);
		return rc;
	}
	for (size_t i = FETCHES_MAX; i > 0; i--) { /* the first ones are used most */
		fetches->list[i - 1].file.bytes = fetches->buffers + (i - 1) * PAGE_READ_BYTES_MAX;
		fetches->list[i - 1].next = fetches->unused;
		fetches->unused = &fetches->list[i - 1];
	}
	*out = fetches;
	return 0;
}

void fetches_destroy(struct fetches *fetches)
{
	if (!fetches)
		return;
	reads_destroy(fetches->reads);
	if (fetches->buffers != MAP_FAILED)
		munmap(fetches->buffers, BUFFERS_BYTES);
	free(fetches);
}

struct fetch *fetches_take(struct fetches *fetches)
{
	struct fetch *fetch = fetches->unused;
	size_t i = (size_t)(fetch - fetches->list);

	fetches->unused = fetch->next;
	fetches->in_use_n++;
	if (fetches->touched_n < i + 1)
		fetches->touched_n = i + 1;
	return fetch;
}

bool fetches_hold_memory(const struct fetches *fetches)
{
	return fetches->touched_n > KEPT_BUFFERS;
}

void fetches_rest(struct fetches *fetches)
{
	if (fetches->in_use_n || !fetches_hold_memory(fetches))
		return;
	madvise(fetches->buffers + KEPT_BUFFERS * PAGE_READ_BYTES_MAX,
		(fetches->touched_n - KEPT_BUFFERS) * PAGE_READ_BYTES_MAX, MADV_DONTNEED_LOCKED);
	fetches->touched_n = KEPT_BUFFERS;
}

void fetches_give_back(struct fetches *fetches, struct fetch *fetch)
{
	fetch->next = fetches->unused;
	fetches->unused = fetch;
	fetches->in_use_n--;
}

void fetches_begin(struct fetches *fetches, struct fetch *fetch)
{
	fetch->file.fd = fetch->read.fd;
	fetch->file.size_bytes = fetch->read.size_bytes;
	fetch->file.offset_bytes = fetch->read.offset_bytes;
	fetches->begun_n++;
	reads_begin(fetches->reads, &fetch->file);
}

bool fetches_submit(struct fetches *fetches)
{
	fetches->begun_n = 0;
	return reads_submit(fetches->reads);
}

struct fetch *fetches_ended(struct fetches *fetches)
{
	return (struct fetch *)reads_take(fetches->reads);
}
