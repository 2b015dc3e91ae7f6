/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Which pages a memfd has, by mincore() of a mapping. Unlike lseek(), this does not take the lock of the
 * inode.
 *
 * The mapping is private and has no access rights. Nothing can be read or written through it, so it fills no
 * hole, and it does not prevent anybody from sealing the file. Pages in the host's swap are not found. To
 * find them, read them first: that brings them in and takes no lock either. */
#ifndef VMMSWAP_INCORE_H
#define VMMSWAP_INCORE_H

#include "vm/memory.h"

struct incore {
	unsigned char *base; /* NULL: not open */
	uint64_t page_idx, pages;
};

/* Open for pages of one region, CHUNK_PAGES at most. 0 or -errno; -EACCES: the file's mode was changed, and
 * we may not ask. */
int incore_open(struct incore *incore, const struct region *region, uint64_t page_idx, uint64_t pages);
void incore_close(struct incore *incore); /* not open: fine */

/* How many of the pages are there; found[i] & 1 is set if page page_idx + i is. -errno: unknown, and found is
 * not filled. */
int incore_find(const struct incore *incore, uint64_t page_idx, uint64_t pages,
		unsigned char found[CHUNK_PAGES]);

#endif
