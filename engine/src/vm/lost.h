/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Lost pages: they were out, and something other than us filled their holes in the memfd. The guest reads
 * what is there now, so the store's copy must not come back.
 *
 * One access from outside fills as many holes as the folio has pages that the kernel allocates for it: one,
 * or up to 512 where large folios are allowed. So a thread that finds a lost page looks for others around it,
 * and they are reported together. */
#ifndef VMMSWAP_LOST_H
#define VMMSWAP_LOST_H

#include <pthread.h>
#include <stddef.h>
#include <stdint.h>

struct lane;
struct vm;
struct window;

struct lost_range {
	uint64_t page_idx, pages;
};

#define LOST_RANGES_MAX 64

/* The lost pages that were found since the last report. */
struct lost_incident {
	uint64_t pages;	 /* all of them, with those that there was no room for below */
	size_t ranges_n; /* ascending */
	struct lost_range ranges[LOST_RANGES_MAX];
};

/* Count one more page, which is in none of the ranges yet. */
void lost_add_page(struct lost_incident *incident, uint64_t page_idx);

struct lost {
	pthread_mutex_t lock;
	struct lost_incident incident; /* under lock */
};

/* Count a page as lost. NOTICE_PAGES_LOST reports the first one after each lost_take(). */
void lost_note(struct vm *vm, uint64_t page_idx);

/* Take the pages that were noted since the last call. Returns how many there are. */
uint64_t lost_take(struct vm *vm, struct lost_incident *out);

/* Look for lost pages in the window around a page. Passes the gate, several times. Opens a mapping, which
 * waits for nobody. */
void lost_look_around(struct vm *vm, struct lane *lane, uint64_t page_idx);

/* Call lost_look_around() if the window has data for a page that is out by the page map. */
void lost_look_in(struct vm *vm, struct lane *lane, const struct window *window);

#endif
