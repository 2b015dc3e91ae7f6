/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Pages that are lost: they were out, and something besides us filled their holes in the memfd. What is there then is what the
 * guest reads, so the store's copy must not come back.
 *
 * One access from outside fills as many holes as the folio has that the kernel allocates for it: one, or up to 512 where large
 * folios are allowed. So whoever finds one such page looks at the others around it, and what was found is reported together. */
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

/* What was found since the last report. */
struct lost_incident {
	uint64_t pages;	 /* in all */
	size_t ranges_n; /* ascending; those that found no place are counted in `pages` alone */
	struct lost_range ranges[LOST_RANGES_MAX];
};

/* Count one more page, which is in none of the ranges yet. */
void lost_add_page(struct lost_incident *incident, uint64_t page_idx);

struct lost {
	pthread_mutex_t lock;
	struct lost_incident incident; /* under lock */
};

/* Count a page as lost. NOTICE_PAGES_LOST tells of the first one after each lost_take(). */
void lost_note(struct vm *vm, uint64_t page_idx);

/* What was noted since the last call: how many pages. */
uint64_t lost_take(struct vm *vm, struct lost_incident *out);

/* Look for lost pages in the window around a page. Passes the gate in pieces; opens a mapping, which waits for nobody. */
void lost_look_around(struct vm *vm, struct lane *lane, uint64_t page_idx);

/* The same if the window has data where the page map says that the page is out. */
void lost_look_in(struct vm *vm, struct lane *lane, const struct window *window);

#endif
