/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Reads whole pages of a file, and counts how many consecutive slots one read can cover. */
#ifndef VMMSWAP_READ_FILE_H
#define VMMSWAP_READ_FILE_H

#include <stddef.h>
#include <stdint.h>

#include "store/pieces.h"

/* Fill all pieces, and change *pieces: 0 or -errno; a short read is -EIO. Sizes and offsets are multiples of
 * a page. */
int read_file(int fd, struct pieces *pieces, uint64_t offset_bytes);

/* Read a page if the page cache has it: 0. -EAGAIN: it does not, or the file cannot tell. Other errors as
 * above. */
int read_file_cached(int fd, char *page, uint64_t offset_bytes);

/* How many of the n slots, from the first on, are consecutive. */
static inline size_t slot_run_length(const uint64_t *slot_idx, size_t n)
{
	size_t run = 1;

	while (run < n && slot_idx[run] == slot_idx[0] + run)
		run++;
	return run;
}

#endif
