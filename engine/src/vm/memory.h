/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Guest memory as files: which page of the guest is where in which memfd. The one room that reads and punches memfds.
 *
 * It never maps them: a read through a mapping of ours would fill the guest's holes with zeros, and the guest would then
 * read those without any event. pread() of a hole allocates nothing. Nor does it write to them: own_mapping.h says why.
 * (resident.c maps pieces that nothing can be read through.) */
#ifndef VMMSWAP_MEMORY_H
#define VMMSWAP_MEMORY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"
#include "base/units.h"

#define MEMORY_MAX_REGIONS 256

struct region {
	/* opened anew: its offset and flags are not shared with the VMM; -1: private */
	int fd;
	bool is_private;       /* the VMM's own anonymous memory: no file shows what is in it */
	uint64_t offset_bytes; /* where in the memfd, or the snapshot's file, the region starts */
	uint64_t page_idx;     /* the region's first page, counted over all regions */
	uint64_t pages;
	uint64_t device, inode; /* of the memfd, as /proc/PID/maps shows them */
	/* on RAM, where that is counted (resident.h); all of them before the first count */
	uint64_t counted_pages;
};

static inline uint64_t region_offset_of(const struct region *region, uint64_t page_idx)
{
	return region->offset_bytes + bytes_of_pages(page_idx - region->page_idx);
}

struct memory {
	size_t regions_n;
	struct region regions[MEMORY_MAX_REGIONS]; /* by page_idx */
};

void memory_init(struct memory *memory);
void memory_destroy(struct memory *memory);

/* Add a region of pages that start at page_idx. The memfd is opened anew through /proc/self/fd, or dup'ed where its mode forbids that: a
 * caller who cannot have opened it anew himself must not pass one that shares its position with the VMM. -EINVAL for a file that is too
 * short; -E2BIG for one region too many. */
int memory_add(struct memory *memory, int memfd, uint64_t offset_bytes, uint64_t page_idx, uint64_t pages,
	       struct error *err);

/* Add a region of private memory, of which nothing is known but what the page map says. */
int memory_add_private(struct memory *memory, uint64_t offset_bytes, uint64_t page_idx, uint64_t pages,
		       struct error *err);
void memory_remove(struct memory *memory, uint64_t page_idx);

const struct region *memory_region_of(const struct memory *memory, uint64_t page_idx);

uint64_t memory_total_pages(const struct memory *memory);

/* The first resident page of the region at or after page_idx, and up to where all that follow are resident: to the next 2 MiB
 * boundary of the file at most, so that nobody waits for more than that. False if none is left, or the region is private. Errors of lseek other than "no more data" are reported as -errno in *rc. */
bool memory_next_data(const struct region *region, uint64_t page_idx, uint64_t *start_idx, uint64_t *end_idx,
		      int *rc);

/* Whether any of these pages holds data. */
bool memory_has_data(const struct region *region, uint64_t page_idx, uint64_t pages);
bool memory_is_hole(const struct region *region, uint64_t page_idx);

/* Wait until nobody has the lock of the memfd's inode, and return without it. The page is there, so that the kernel finds data at
 * once. */
void memory_await_lock(const struct region *region, uint64_t page_idx);

/* Read pages into buf. -ERANGE if the memfd ends before them (the VMM shrank it). */
int memory_read(const struct region *region, uint64_t page_idx, uint64_t pages, void *buf);

/* True if the memfd is sealed against writing, so that nothing can be punched out of it. */
bool memory_is_sealed(const struct region *region);

/* Give pages back to the host. All of a large folio or nothing: the caller sees to that. */
int memory_punch(const struct region *region, uint64_t page_idx, uint64_t pages);

#endif
