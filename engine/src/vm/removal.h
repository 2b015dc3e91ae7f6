/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Pages that the guest gave up, but that the page map does not show as given up yet.
 *
 * The guest continues as soon as its REMOVE is read, so the map must be right before any thread acts on one
 * of the pages. Updating it takes 14 ms a GiB, and all page faults would wait if the gate were held alone for
 * so long. So the reader of a large REMOVE only lists its pages. The threads that serve faults update the map
 * a part at a time, each with the gate held alone; other threads pass in between.
 *
 * A thread that could bring back what the guest gave up checks this list in the passage of the gate in which
 * it acts. A page fault on a listed page is tried again (resolve.c). A swap-in waits until the map is right
 * (restore.c). A swap-out leaves a listed page resident (punch.c), because what a VMM writes to its file
 * after the hole would be dropped together with what was given up. All other threads may act as if the REMOVE
 * came a moment later, as it could have: it takes a page from them by the same change of the word.
 *
 * If we are killed in between, the rest of the REMOVE is lost, like one that was read and not listed. */
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

/* List pages of one region. False: the list is full, and the caller must update the map itself. With the gate
 * held alone. */
bool removals_add(struct removals *removals, uint64_t page_idx, uint64_t pages, uint32_t given_up_ms);

/* Take the next part off the list. False: the list is empty. With the gate held alone. */
bool removals_take(struct removals *removals, struct removal *piece);

/* Take the pages of a region that is removed off the list. With the gate held alone. */
void removals_forget(struct removals *removals, uint64_t page_idx, uint64_t pages);

/* True if any page in the range is listed. With the gate passed or held. */
bool removals_have(const struct removals *removals, uint64_t page_idx, uint64_t pages);

#endif
