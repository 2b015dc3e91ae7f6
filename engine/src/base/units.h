/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The three quantities that must never be mixed, and how to go from one to another.
 *
 *   addr         an address in one process
 *   page_idx     a page of guest memory, counted over all regions of the VM from 0
 *   offset_bytes a position in a file (a guest's memfd, or the store's file)
 *
 * The engine runs on kernels with 4 KiB pages only; engine_create() refuses others. */
#ifndef VMMSWAP_UNITS_H
#define VMMSWAP_UNITS_H

#include <stdbool.h>
#include <stdint.h>

#define PAGE_SHIFT 12
#define PAGE_BYTES ((uint64_t)1 << PAGE_SHIFT)
#define PAGE_MASK (~(PAGE_BYTES - 1))

/* The unit of long jobs, and the largest folio that shmem uses on x86-64 and 4 KiB aarch64. */
#define CHUNK_BYTES ((uint64_t)2 << 20)
#define CHUNK_PAGES (CHUNK_BYTES / PAGE_BYTES)

static inline uint64_t bytes_of_pages(uint64_t pages)
{
	return pages << PAGE_SHIFT;
}

static inline uint64_t pages_of_bytes(uint64_t bytes)
{
	return bytes >> PAGE_SHIFT;
}

static inline bool is_page_aligned(uint64_t value)
{
	return (value & (PAGE_BYTES - 1)) == 0;
}

#endif
