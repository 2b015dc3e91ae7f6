/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The memory of one read or write of a file: pages that need not be adjacent, in the order in which they lie
 * in the file. */
#ifndef VMMSWAP_PIECES_H
#define VMMSWAP_PIECES_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

#include "base/units.h"

#define PIECES_MAX CHUNK_PAGES /* below IOV_MAX */

struct pieces {
	size_t n;
	uint64_t bytes; /* of all of them */
	struct iovec at[PIECES_MAX];
};

static inline void pieces_begin(struct pieces *pieces)
{
	pieces->n = 0;
	pieces->bytes = 0;
}

/* Append memory, a multiple of a page. False: there are too many pieces. */
static inline bool pieces_add(struct pieces *pieces, void *memory, uint64_t bytes)
{
	struct iovec *last = pieces->n ? &pieces->at[pieces->n - 1] : NULL;

	if (last && (char *)last->iov_base + last->iov_len == memory) {
		last->iov_len += bytes;
	} else {
		if (pieces->n == PIECES_MAX)
			return false;
		pieces->at[pieces->n++] = (struct iovec){ memory, bytes };
	}
	pieces->bytes += bytes;
	return true;
}

static inline void pieces_of_one(struct pieces *pieces, void *memory, uint64_t bytes)
{
	pieces_begin(pieces);
	pieces_add(pieces, memory, bytes);
}

/* What is left of some pieces after their first done_bytes: *n of them, from the returned one on, whose
 * beginning is cut off in place. */
static inline struct iovec *pieces_skip(struct iovec *at, size_t *n, uint64_t done_bytes)
{
	while (*n && done_bytes >= at->iov_len) {
		done_bytes -= at->iov_len;
		at++;
		(*n)--;
	}
	if (done_bytes) {
		at->iov_base = (char *)at->iov_base + done_bytes;
		at->iov_len -= done_bytes;
	}
	return at;
}

#endif
