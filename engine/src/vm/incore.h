/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Which pages a memfd has, asked without the lock of its inode, which lseek() takes: by mincore() of a mapping.
 *
 * The mapping is private and has no access rights: nothing can be read or written through it, so it fills no hole, and it
 * keeps nobody from sealing the file. A page in the host's swap does not count: who needs to know of such a one reads it
 * first, which brings it in and takes no lock either. */
#ifndef VMMSWAP_INCORE_H
#define VMMSWAP_INCORE_H

#include "vm/memory.h"

struct incore {
	unsigned char *base; /* NULL: not open */
	uint64_t page_idx, pages;
};

/* Of pages of one region, CHUNK_PAGES at most. 0 or -errno; -EACCES: the file's mode has been changed so that we may not know. */
int incore_open(struct incore *incore, const struct region *region, uint64_t page_idx, uint64_t pages);
void incore_close(struct incore *incore); /* not open: fine */

/* How many of these pages are there; found[i] & 1 says whether page_idx + i is. -errno: that is not known, and found is not filled. */
int incore_find(const struct incore *incore, uint64_t page_idx, uint64_t pages,
		unsigned char found[CHUNK_PAGES]);

#endif
