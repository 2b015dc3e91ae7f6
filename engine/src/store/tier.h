/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The operations that each kind of tier offers to the store. Only the store knows which tier has which slot.
 *
 *   page_file      one unnamed file, 4 KiB per slot, uncompressed
 *   snapshot_file  the memory file of a snapshot, read only
 *   log_tier       compressed records, in RAM and on disk (log.h)
 *
 * Each function means the same as its namesake in store.h; all slots given to one call belong to this
 * tier. */
#ifndef VMMSWAP_TIER_H
#define VMMSWAP_TIER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

struct page_read;
struct store_account;
struct writes;
struct tier;

struct tier_ops {
	const char *file_kind; /* see store_file_kind() */
	bool checks_bytes;     /* see store_checks_bytes() */
	int (*mark_used)(struct tier *tier, uint64_t slot_idx);
	void (*ready)(struct tier *tier);
	int (*put)(struct tier *tier, const void *const *page, const uint64_t *owner_idx, size_t n,
		   uint64_t *slot_idx, struct error *err);
	int (*get)(struct tier *tier, const uint64_t *slot_idx, size_t n, void *buf);
	int (*begin_read)(struct tier *tier, uint64_t slot_idx, void *page, struct page_read *read);
	void (*was_read)(struct tier *tier, const struct page_read *read);
	int (*end_read)(struct tier *tier, const struct page_read *read, int result, char *bytes, char *room,
			char **page);
	void (*drop)(struct tier *tier, const uint64_t *slot_idx, size_t n);
	bool (*trim_step)(struct tier *tier);
	void (*account)(struct tier *tier, struct store_account *out); /* adds to it */
	int (*fd)(const struct tier *tier);			       /* -1: it has more than one */
	void (*destroy)(struct tier *tier);
};

struct tier {
	const struct tier_ops *ops;
	struct writes *writes; /* the store's: a tier that writes to disk asks there first */
};

#endif
