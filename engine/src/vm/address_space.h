/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The processes that map guest memory: the uffd of each, and where it maps which pages.
 *
 * There are no locks here. The set changes only with the gate held alone, and may be read with the gate
 * passed. */
#ifndef VMMSWAP_ADDRESS_SPACE_H
#define VMMSWAP_ADDRESS_SPACE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"
#include "base/units.h"

struct range {
	uint64_t addr;
	uint64_t page_idx;
	uint64_t pages;
};

struct process {
	uint32_t id;	   /* 0: the VMM itself; grows with each process, never used twice */
	int uffd;	   /* our own dup; a forked child's is the only one */
	_Atomic bool gone; /* its uffd said ESRCH; it stays in the set until Python removes it */
	/* a change of its mappings was reported, and the new ones were not asked for yet */
	_Atomic bool moved;
	/* a range could not be registered: no page may go out, as the process could touch it unseen */
	bool unwatched;
	/* a swap-out does not protect it: it is still being added, or was given up and is being
	 * unregistered */
	bool outside;
	bool leaving; /* it was given up */
	/* a child that inherited registrations when nothing was tracked any more: unregistered in pieces */
	bool releasing;
	bool unpolled; /* epoll has no place for its uffd: serve/adopt.h */
	bool protects; /* its uffd can write-protect */
	/* minor faults come too: an access to a page that the file has and it has not mapped yet */
	bool minor;
	uint64_t released_addr; /* below it nothing is registered: see registration_release_piece() */
	uint64_t release_pages; /* how many to unregister next; 0: none has been yet */
	uint64_t dummy_addr;	/* 0: none */
	size_t ranges_n, ranges_room;
	struct range *ranges; /* sorted by addr */
};

#define ADDRESS_SPACE_SPARES 16

struct address_spaces {
	_Atomic uint64_t living; /* not gone; to be read at any time */
	size_t n, room;
	struct process **processes;
	uint32_t next_id;
	size_t spares_n; /* processes to be, each with room for spares_ranges ranges */
	size_t spares_ranges;
	struct process *spares[ADDRESS_SPACE_SPARES];
};

void address_spaces_destroy(struct address_spaces *spaces);

/* Have memory for so many processes that are added later, ADDRESS_SPACE_SPARES at most, with so many ranges
 * each. For how many there is. With the gate held alone. */
size_t address_space_reserve(struct address_spaces *spaces, size_t processes_n, size_t ranges_n);

/* The uffd becomes the process's: closed with it. NULL without memory (the uffd is then still the
 * caller's). */
struct process *address_space_add(struct address_spaces *spaces, int uffd);
void address_space_remove(struct address_spaces *spaces, uint32_t id);

/* Give the process up: it is not counted any more. */
void address_space_leave(struct address_spaces *spaces, struct process *process);
struct process *address_space_find(const struct address_spaces *spaces, uint32_t id);

/* -EEXIST if the range overlaps one that is already there. */
int process_add_range(struct process *process, struct range range);
bool process_has_range(const struct process *process, const struct range *range);
int process_copy_ranges(struct process *to, const struct process *from);

/* Forget addresses that the process unmapped, or follow those that it moved (UFFD_EVENT_UNMAP,
 * UFFD_EVENT_REMAP). */
int process_forget(struct process *process, uint64_t start_addr, uint64_t end_addr);
int process_move(struct process *process, uint64_t from_addr, uint64_t to_addr, uint64_t size_bytes);
void process_forget_pages(struct process *process, uint64_t page_idx, uint64_t pages);

bool process_page_at(const struct process *process, uint64_t addr, uint64_t *page_idx);

/* Where the process maps the page. Returns how many pages from there on, at most pages_n, it maps
 * contiguously; 0: it does not map the page. */
uint64_t process_addr_of(const struct process *process, uint64_t page_idx, uint64_t pages_n, uint64_t *addr);

/* Walk over the places where the pages are mapped, in all processes that are not gone, or in one of them.
 * Each step is a run of pages that the process maps contiguously:
 *
 * 	for (struct mapped at = mapped_everywhere(spaces, page_idx, pages); mapped_next(&at);)
 * 		... at.process, at.addr, at.pages ... */
struct mapped {
	struct process *process;
	uint64_t addr, pages;
	/* where to look next: from this page on in this process, then from page_idx on in the next process */
	uint64_t next_idx, page_idx, end_idx;
	const struct address_spaces *spaces;
	size_t next_process;
};

struct mapped mapped_everywhere(const struct address_spaces *spaces, uint64_t page_idx, uint64_t pages);
struct mapped mapped_in(struct process *process, uint64_t page_idx, uint64_t pages);
bool mapped_next(struct mapped *at);

#endif
