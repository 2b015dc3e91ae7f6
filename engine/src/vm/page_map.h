/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Where each page of guest memory is: a word and a hash for each page, in a memfd that outlives the process.
 *
 * The word is one atomic: slot, state, flags, generation. All of a page's life is compare-and-swap on it:
 * page.h has it whole.
 *
 *   IN_MEMFD   the memfd holds the truth: data, or a hole that reads as zeros
 *   PROTECTED  a swap-out has write-protected it; the memfd holds the truth until it turns STORED
 *   STORED     the store's slot holds it, and the memfd has a hole, or will have one once PUNCHING ends
 *   POISONED   it was stored, and cannot be read back. Without a slot: the memfd holds the truth, but a process may
 *              still have a poison marker, which gives it SIGBUS
 *   KEPT       it came back unchanged: the memfd holds the truth, write-protected in every process, and the slot
 *              holds the same bytes, so that the next swap-out need not write them. A kept copy never serves a fault
 *
 *   MOVED      a swap-out of private memory has moved it to scratch (linux/mailbox.h), and scratch has it; with PUNCHING:
 *              it is being moved, and may still be where it was
 *
 *   FILLING    one thread is bringing the page in or changing its protection; nobody else may
 *   BACKGROUND together with FILLING: a swap-in does it, and a demand fault may take it over
 *   PUNCHING   a hole is being punched here: nothing may be put there until it is done
 *   WAITER     a guest thread waits for the end of FILLING or PUNCHING and must be woken then
 *
 * The flags mean something only to the process that set them. A successor drops them, and the memfd decides:
 * data there means resident; a hole and STORED: the store has the page; a hole and anything else but
 * POISONED: zeros. Kept copies are dropped: nobody read the events of writes between the predecessor's death
 * and now.
 *
 * The generation grows with every claim. So a thread that left the gate, to read the store for example, can
 * tell that the page was claimed by others meanwhile, even if it is in the same state and slot again. */
#ifndef VMMSWAP_PAGE_MAP_H
#define VMMSWAP_PAGE_MAP_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "base/units.h"

enum page_state {
	PAGE_IN_MEMFD = 0,
	PAGE_PROTECTED = 1,
	PAGE_STORED = 2,
	PAGE_POISONED = 3,
	PAGE_KEPT = 4,
	PAGE_MOVED = 5,
};

#define PAGE_SLOT_NONE ((uint64_t)UINT32_MAX) /* of a POISONED page: poison.h tells */

#define PAGE_FILLING ((uint64_t)1 << 36)
#define PAGE_BACKGROUND ((uint64_t)1 << 37)
#define PAGE_PUNCHING ((uint64_t)1 << 38)
#define PAGE_WAITER ((uint64_t)1 << 39)
#define PAGE_FLAGS (PAGE_FILLING | PAGE_BACKGROUND | PAGE_PUNCHING | PAGE_WAITER)

/* Of a page IN_MEMFD that was given up: its hole may come later. The slot says when that was, in ms. */
#define PAGE_GIVEN_UP ((uint64_t)1 << 40)

#define PAGE_STATE_SHIFT 32
/* A slot has 35 bits: the lower 32 at the bottom of the word, and the upper 3, which version 1 of the format
 * did not use, above the flags. So each word of version 1 is the same word of version 2. */
#define PAGE_SLOT_BITS 35
#define PAGE_SLOT_HIGH_SHIFT 41
#define PAGE_GENERATION_SHIFT 44
#define PAGE_GENERATION_ONE ((uint64_t)1 << PAGE_GENERATION_SHIFT)

static inline enum page_state page_state_of(uint64_t word)
{
	return (enum page_state)((word >> PAGE_STATE_SHIFT) & 0xf);
}

static inline uint64_t page_slot_of(uint64_t word)
{
	return (word & UINT32_MAX) | (word >> PAGE_SLOT_HIGH_SHIFT & 7) << 32;
}

static inline uint64_t page_slot_bits(uint64_t slot_idx)
{
	return (slot_idx & UINT32_MAX) | (slot_idx >> 32) << PAGE_SLOT_HIGH_SHIFT;
}

#define PAGE_SLOT_MASK (((uint64_t)1 << PAGE_SLOT_BITS) - 1)

/* True if a word may have these together. In builds with failpoints, page.c aborts on any other. */
static inline bool page_word_is_sane(enum page_state state, uint64_t slot_idx, uint64_t flags)
{
	bool one_holder = !(flags & PAGE_FILLING) || !(flags & PAGE_PUNCHING);
	bool given_up = flags & PAGE_GIVEN_UP;

	if (slot_idx > PAGE_SLOT_MASK || (flags & ~(PAGE_FLAGS | PAGE_GIVEN_UP)) || !one_holder ||
	    ((flags & PAGE_BACKGROUND) && !(flags & PAGE_FILLING)))
		return false;
	switch (state) {
	case PAGE_IN_MEMFD: /* filled with zeros, un-protected, or punched as zeros */
		return !(flags & PAGE_BACKGROUND) && (given_up || slot_idx == 0);
	case PAGE_PROTECTED:
		return !flags && slot_idx == 0;
	case PAGE_STORED:
		return !given_up;
	case PAGE_POISONED:
		return !given_up && !(flags & PAGE_PUNCHING);
	case PAGE_KEPT:
		return !given_up && !(flags & ~PAGE_WAITER);
	case PAGE_MOVED:
		return !given_up && !(flags & PAGE_BACKGROUND) && slot_idx == 0;
	}
	return false;
}

/* Version 2 may have slots of the log (store/slot_name.h), and is otherwise the same. A map becomes one
 * before the first such slot is put there, and not earlier: until then the version of vmmswap that wrote it
 * reads it, too. */
#define PAGE_MAP_VERSION 1
#define PAGE_MAP_VERSION_LOG 2
#define PAGE_MAP_MAX_PAGES ((uint64_t)1 << 30) /* 4 TiB of guest memory */

/* What a successor needs to know besides the pages; lives in the memfd's first page. */
struct page_map_header {
	char magic[8];
	uint32_t version;
	uint32_t page_shift;
	_Atomic uint64_t pages_n; /* up to where there have ever been records */
	_Atomic uint64_t copied_pages;
	_Atomic uint64_t zeroed_pages;
	_Atomic uint64_t redundant_pages;
	_Atomic uint64_t swap_time_ms;
	_Atomic uint64_t pause_us;
	_Atomic uint64_t written_bytes; /* to disk, since the VM registered */
	_Atomic uint64_t pinned_pages;
	_Atomic uint32_t last_mode; /* enum swap_mode of the last swap-out */
	_Atomic uint32_t job;	    /* enum job_kind under way, for a successor to finish */
	_Atomic uint32_t tracking;  /* regions are registered with the uffds */
	uint64_t snapshot_bytes;    /* the snapshot's memory file when the VM registered; 0: there is none */
	int64_t snapshot_mtime_ns;
	_Atomic uint64_t lost_pages;   /* since the VM registered; see lost.h */
	_Atomic uint32_t large_folios; /* see folios.h */
	_Atomic uint64_t left_pages;   /* by the last swap-out; see left.h */
	_Atomic uint32_t owner_pid;    /* see owner.h; 0: not known */
	_Atomic uint64_t owner_started;
	_Atomic uint32_t limited_by; /* enum limited_by: what stopped the last swap-out */
};

struct page_map;

int page_map_create(struct page_map **out, struct error *err);

/* Take over the map of a process that died. The fd is dup'ed. -EPROTO for another version or no page map at
 * all. */
int page_map_adopt(int fd, struct page_map **out, struct error *err);

/* From here on there may be slots of the log. */
void page_map_may_have_log(struct page_map *map);

void page_map_destroy(struct page_map *map);

int page_map_fd(const struct page_map *map);
struct page_map_header *page_map_header(struct page_map *map);

/* Assign unused page indexes to pages_n pages; *first_page_idx is the first. They follow those that were
 * assigned last; at the end of the range, the first gap that is large enough is used. So an index is used
 * again as late as possible, and what somebody still knows of removed memory fits nothing new. In an adopted
 * map, adding regions and gaps in order of index assigns the same indexes again. -E2BIG: no gap is large
 * enough. */
int page_map_add_pages(struct page_map *map, uint64_t pages_n, uint64_t *first_page_idx, struct error *err);

/* Undo page_map_add_pages(): the indexes of the pages that were added together, from page_idx on, are free.
 * The records stay: in an adopted map they may be in use. */
void page_map_return_pages(struct page_map *map, uint64_t page_idx);

_Atomic uint64_t *page_map_word(struct page_map *map, uint64_t page_idx);
uint32_t *page_map_hash(struct page_map *map, uint64_t page_idx);

/* The first page at or after page_idx, and below end_idx, whose word may be other than 0; end_idx if there is
 * none. Words that were never written are skipped without reading them: reading a hole of the memfd would
 * fill it. */
uint64_t page_map_next_used(struct page_map *map, uint64_t page_idx, uint64_t end_idx);

/* Walk over the pages of a range whose words may be other than 0:
 *
 *	for (struct used_pages at = used_pages(map, page_idx, end_idx); used_pages_next(&at);)
 *		... at.page_idx ... */
struct used_pages {
	struct page_map *map;
	uint64_t page_idx;
	uint64_t next_idx, end_idx;
};

#define PAGE_MAP_WORDS_A_PAGE (PAGE_BYTES / sizeof(uint64_t))

static inline struct used_pages used_pages(struct page_map *map, uint64_t page_idx, uint64_t end_idx)
{
	uint64_t next_idx = page_map_next_used(map, page_idx, end_idx);

	return (struct used_pages){ .map = map, .next_idx = next_idx, .end_idx = end_idx };
}

/* Holes of the map are looked for at the start of each of its pages. */
static inline bool used_pages_next(struct used_pages *at)
{
	if (at->next_idx % PAGE_MAP_WORDS_A_PAGE == 0 && at->next_idx < at->end_idx)
		at->next_idx = page_map_next_used(at->map, at->next_idx, at->end_idx);
	at->page_idx = at->next_idx++;
	return at->page_idx < at->end_idx;
}

/* Give back the memory of the records of these pages, part by part, so that who looks for used words does not
 * wait for all of it. Their words become 0. */
void page_map_forget(struct page_map *map, uint64_t page_idx, uint64_t pages_n);

#endif
