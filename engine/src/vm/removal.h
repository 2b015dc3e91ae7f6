/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What the guest gave up, and the page map does not say yet.
 *
 * A REMOVE lets the guest go on the moment it is read, so the map must say so by the time that anybody acts on one of the pages. To
 * update it takes 14 ms a GiB, and with the gate held alone for all of that every other page fault would wait. So the reader of a
 * large REMOVE only writes down which pages it is about. The map is updated a piece at a time, each with the gate held alone, by
 * the threads that serve faults; between two pieces everybody else gets on.
 *
 * Who could give the guest what it gave up looks here, in the passage of the gate in which it acts: a page fault on such a page is
 * tried again (resolve.c), and a swap-in waits until the map is right (restore.c). A swap-out leaves such a page (punch.c): what a
 * VMM writes to its file after the hole would be struck off with what was given up. All others may act as if the REMOVE came a moment
 * later, as it may in any case: the one change of the word that takes a page from them is the same.
 *
 * If we are killed in between, the rest of the REMOVE is lost, like one that was read and not written down at all. */
#ifndef VMMSWAP_REMOVAL_H
#define VMMSWAP_REMOVAL_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#define REMOVAL_PIECE_PAGES 4096u /* 16 MiB: a fraction of a millisecond */
#define REMOVALS_MAX 64

struct removal {
	uint64_t page_idx, end_idx;
	uint32_t given_up_ms;
};

/* All of it changes with the gate held alone. */
struct removals {
	_Atomic uint32_t n; /* may be looked at without the gate, for whether there is anything to do */
	struct removal list[REMOVALS_MAX];
};

/* Write down pages of one region. False: there is no room; then the caller updates the map itself. With the gate held alone. */
bool removals_add(struct removals *removals, uint64_t page_idx, uint64_t pages, uint32_t given_up_ms);

/* The next piece, taken off. False: there is none. With the gate held alone. */
bool removals_take(struct removals *removals, struct removal *piece);

/* Pages of a region that goes are nobody's. With the gate held alone. */
void removals_forget(struct removals *removals, uint64_t page_idx, uint64_t pages);

/* True if any of the pages was given up and the map does not say so yet. With the gate passed or held. */
bool removals_have(const struct removals *removals, uint64_t page_idx, uint64_t pages);

#endif
