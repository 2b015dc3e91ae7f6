/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Guest memory as regions: which page of the guest is where, and what backs it (backing.h). */
#ifndef VMMSWAP_MEMORY_H
#define VMMSWAP_MEMORY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"
#include "base/units.h"

#define MEMORY_MAX_REGIONS 256

struct backing;
struct mover;

struct region {
	const struct backing *backing;
	/* of its file, opened anew: its offset and flags are not shared with the VMM; -1: it has no file */
	int fd;
	struct mover *mover; /* of private memory, which the VMM moves; not owned */
	/* where in the memfd, or the snapshot's file, or of private memory in the VMM, the region starts */
	uint64_t offset_bytes;
	uint64_t page_idx; /* the region's first page, counted over all regions */
	uint64_t pages;
	uint64_t device, inode; /* of its file, as /proc/PID/maps shows them */
	bool is_leaving;	/* it is being unplugged */
	/* on RAM, where that is counted (resident.h); all of them before the first count */
	uint64_t counted_pages;
};

static inline uint64_t region_offset_of(const struct region *region, uint64_t page_idx)
{
	return region->offset_bytes + bytes_of_pages(page_idx - region->page_idx);
}

static inline bool region_has_file(const struct region *region)
{
	return region->fd >= 0;
}

void region_close(const struct region *region);

struct memory {
	size_t regions_n;
	struct region regions[MEMORY_MAX_REGIONS]; /* by page_idx */
};

void memory_init(struct memory *memory);
void memory_destroy(struct memory *memory);

/* The region becomes the memory's: closed with it. -E2BIG: one too many, and it is still the caller's. */
int memory_add(struct memory *memory, const struct region *region, struct error *err);

/* Mark the region that begins there as leaving. */
void memory_leave(struct memory *memory, uint64_t page_idx);

/* What was the region that begins there is the caller's now: to close it may take long, where nobody else has
 * the memory any more. */
struct region memory_remove(struct memory *memory, uint64_t page_idx);

const struct region *memory_region_of(const struct memory *memory, uint64_t page_idx);

uint64_t memory_total_pages(const struct memory *memory);

#endif
