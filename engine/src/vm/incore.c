/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "vm/incore.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

int incore_open(struct incore *incore, const struct region *region, uint64_t page_idx, uint64_t pages)
{
	off_t offset = (off_t)(region->offset_bytes + bytes_of_pages(page_idx - region->page_idx));
	void *base =
		mmap(NULL, bytes_of_pages(pages), PROT_NONE, MAP_PRIVATE | MAP_NORESERVE, region->fd, offset);

	*incore = (struct incore){ .page_idx = page_idx, .pages = pages };
	if (base == MAP_FAILED)
		return -errno;
	incore->base = base;
	return 0;
}

void incore_close(struct incore *incore)
{
	if (incore->base)
		munmap(incore->base, bytes_of_pages(incore->pages));
	incore->base = NULL;
}

size_t incore_find(const struct incore *incore, uint64_t page_idx, uint64_t pages,
		   unsigned char found[CHUNK_PAGES])
{
	size_t n = 0;

	if (mincore(incore->base + bytes_of_pages(page_idx - incore->page_idx), bytes_of_pages(pages),
		    found) != 0)
		return 0;
	for (uint64_t i = 0; i < pages; i++)
		n += found[i] & 1;
	return n;
}
