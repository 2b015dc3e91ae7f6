/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Guest memory: memfds, regions of them, and where this process maps them.
 *
 * Pages are counted over all regions from 0. Addresses differ from process to process, page numbers do
 * not. */
#ifndef GUEST_MEMORY_H
#define GUEST_MEMORY_H

#include "common.h"

#define MAX_MEMFDS MAX_REGIONS

struct region {
	uint8_t *base; /* in this process; NULL while not mapped */
	uint64_t size_bytes;
	uint64_t offset_bytes; /* in its memfd */
	uint64_t first_page;   /* number of its first page */
	unsigned memfd_idx;
};

struct memory {
	struct region region[MAX_REGIONS];
	unsigned regions;
	int memfd[MAX_MEMFDS];
	unsigned memfds;
	uint64_t pages;
	bool huge;	     /* ask for transparent huge pages; else forbid them */
	uint8_t *dummy_page; /* nobody touches it; NULL in processes that do not have one */
};

/* Add what "SIZE[,memfd=N][,offset=BYTES]" asks for. Without memfd= the region gets a memfd of its own.
 * NULL, or what is wrong with the text. Memfds must be numbered without gaps: memory_create() ends the
 * program if not. */
const char *memory_add(struct memory *memory, const char *text);

/* Make the memfds; nothing is mapped yet. Ends the program with a message when something fails. */
void memory_create(struct memory *memory);

/* Map every region in this process. 0 or -errno. */
int memory_map(struct memory *memory);

/* Give this process its dummy page, if it has none yet. 0 or -errno. */
int memory_map_dummy(struct memory *memory);

/* The longest run of pages from page_idx on, at most `pages`, that lies in one region. */
uint64_t memory_run(const struct memory *memory, uint64_t page_idx, uint64_t pages,
		    const struct region **region);

uint8_t *memory_page(const struct memory *memory, uint64_t page_idx);

/* Bytes that the kernel holds for the memfd: st_blocks. 0 on error. */
uint64_t memory_resident_bytes(const struct memory *memory, unsigned memfd_idx);

/* "4096", "64K", "512M", "64G": true and *bytes on success. */
bool parse_size(const char *text, uint64_t *bytes);

#endif
