/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Neighbours of page faults: how many of them to bring back, and for which page faults.
 *
 * The neighbours of a page are the other pages of its block: the aligned one that is as large as the window.
 * The window is 1, 2, 4, ... pages, up to a largest; 1: there are no neighbours. It changes by what becomes
 * of pages that are watched:
 *
 *   inner  a page of the block that is held back, at random. If fewer than a quarter of these raise a page
 *          fault of their own, what is brought back is not used: the window is halved.
 *   outer  a page of the next larger block that the window does not reach. If at least half of these raise a
 *          page fault, a window twice as large would pay.
 *
 * What is watched is not brought back, whatever raises a page fault near it. So a window grows by page
 * faults, and nothing is brought back to try it. */
#ifndef VMMSWAP_NEARBY_H
#define VMMSWAP_NEARBY_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define NEARBY_PAGES_MAX 512 /* of the largest window */
#define NEARBY_ASKED_MAX 64  /* page faults that wait for their neighbours; of more, the oldest do without */
#define NEARBY_WATCHED_MAX 1024
#define NEARBY_JUDGED 16 /* so many watched pages of a kind say something about the window */
#define NEARBY_ROUNDS 4

enum nearby_kind { NEARBY_INNER, NEARBY_OUTER, NEARBY_KINDS };

/* Pages of one kind that are watched together. */
struct nearby_round {
	uint32_t watched_n;
	_Atomic uint32_t missed_n; /* of these, raised a page fault */
};

struct nearby {
	uint32_t pages_max; /* the largest window */
	_Atomic uint32_t
		held_back_256; /* of 256 neighbours, so many are watched; twice as many in a small window */
	_Atomic uint32_t window_pages;
	_Atomic uint32_t used_256; /* of 256 pages that are brought back, so many are used; an estimate */

	/* Page faults whose neighbours are wanted, page index + 1; 0: none. A ring. */
	_Atomic uint64_t asked[NEARBY_ASKED_MAX];
	_Atomic uint64_t asked_n, taken_n;
	int event_fd; /* readable: neighbours were asked for while the thread slept */
	_Atomic bool sleeps;
	_Atomic uint32_t unasked_n; /* page faults passed over while there is no window */

	/* By hash; what is here longest is overwritten. See word_of(). */
	_Atomic uint64_t watched[NEARBY_WATCHED_MAX];
	struct nearby_round rounds[NEARBY_KINDS][NEARBY_ROUNDS];
	uint32_t round[NEARBY_KINDS]; /* the current one */
};

/* NULL: no memory. pages_max: a power of two, NEARBY_PAGES_MAX at most. */
struct nearby *nearby_create(uint32_t pages_max);
void nearby_destroy(struct nearby *nearby); /* NULL is allowed */

/* A page fault was answered. True if its neighbours were asked for. Any thread; waits for nothing. */
bool nearby_missed(struct nearby *nearby, uint64_t page_idx);

/* Make event_fd readable. */
void nearby_wake(struct nearby *nearby);

/* What follows is for one thread. */

/* The page whose neighbours are to be brought back next. False: there is none. */
bool nearby_take(struct nearby *nearby, uint64_t *page_idx);

/* event_fd becomes readable with the next page fault. False: there was one just now. */
bool nearby_sleep(struct nearby *nearby);

/* Watch a page that is out, and adapt the window. */
void nearby_watch(struct nearby *nearby, uint64_t page_idx, enum nearby_kind kind);

/* True if the page is watched: it is not to be brought back. */
bool nearby_is_watched(const struct nearby *nearby, uint64_t page_idx);

/* True with that probability: one more neighbour is to be watched. random: any number. */
bool nearby_holds_back(const struct nearby *nearby, uint32_t window_pages, uint64_t random);

/* The first page of the aligned block around a page. pages: a power of two. */
static inline uint64_t nearby_block(uint64_t page_idx, uint32_t pages)
{
	return page_idx & ~((uint64_t)pages - 1);
}

#endif
