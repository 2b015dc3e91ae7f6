/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "vm/incore.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#include "base/failpoint.h"

/* The kernel reports all pages as present to whoever neither owns the file nor may write to it (mm/mincore.c,
 * can_do_mincore()), and the VMM's user may take our rights away at any time. No file reaches this offset. */
#define BEYOND_ALL_FILES ((off_t)1 << 61)

static int check_rights(const struct region *region)
{
	void *base =
		mmap(NULL, PAGE_BYTES, PROT_NONE, MAP_PRIVATE | MAP_NORESERVE, region->fd, BEYOND_ALL_FILES);
	unsigned char found = 0;
	int rc = base == MAP_FAILED || mincore(base, PAGE_BYTES, &found) != 0 ? -errno : 0;

	if (base != MAP_FAILED)
		munmap(base, PAGE_BYTES);
	return found & 1 ? -EACCES : rc;
}

int incore_open(struct incore *incore, const struct region *region, uint64_t page_idx, uint64_t pages)
{
	off_t offset = (off_t)(region->offset_bytes + bytes_of_pages(page_idx - region->page_idx));
	void *base =
		mmap(NULL, bytes_of_pages(pages), PROT_NONE, MAP_PRIVATE | MAP_NORESERVE, region->fd, offset);

	int rc = base == MAP_FAILED ? -errno : check_rights(region);

	*incore = (struct incore){ .page_idx = page_idx, .pages = pages };
	if (rc && base != MAP_FAILED)
		munmap(base, bytes_of_pages(pages));
	if (!rc)
		incore->base = base;
	return rc;
}

void incore_close(struct incore *incore)
{
	if (incore->base)
		munmap(incore->base, bytes_of_pages(incore->pages));
	incore->base = NULL;
}

int incore_find(const struct incore *incore, uint64_t page_idx, uint64_t pages,
		unsigned char found[CHUNK_PAGES])
{
	int n = 0, rc = FAILPOINT("incore.find");

	if (rc)
		return rc;
	if (mincore(incore->base + bytes_of_pages(page_idx - incore->page_idx), bytes_of_pages(pages),
		    found) != 0)
		return -errno;
	for (uint64_t i = 0; i < pages; i++)
		n += found[i] & 1;
	return n;
}
