/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Brings pages back ahead of the guest, a few at a time.
 *
 * Nothing depends on it: a page for which anything is odd (no process has it mapped, it cannot be read,
 * something else is in its place) is left out, for the page fault that needs it. That is why this is not
 * restore.c, which must bring back every page.
 *
 * The pages of one call are claimed as page faults claim theirs, not as a swap-in does: a page fault on one
 * of them waits for the read that is under way instead of reading the page once more. It waits for the other
 * pages of the call, too, so these are few. */
#ifndef VMMSWAP_AHEAD_H
#define VMMSWAP_AHEAD_H

#include "vm/vm.h"
#include "wake/wake_record.h"

#define AHEAD_PAGES_MAX 16

struct ahead {
	struct vm *vm;
	struct lane *lane;
	char *buffer; /* AHEAD_PAGES_MAX pages, page aligned */
};

/* Bring back those of n pages, AHEAD_PAGES_MAX at most, in ascending order, that only the store has.
 * *pages_back: how many came. They keep their copies if that is possible, except those that the guest is
 * likely to write to. 0, -ENOMEM: the VMM's processes have no memory left, -EAGAIN: events must be read
 * first. On error, other pages are out as before. */
int ahead_bring(struct ahead *ahead, const struct wake_page *pages, size_t n, size_t *pages_back);

/* Fill those of n pages that are holes with zeros, but for those that the guest gave up. As ahead_bring(),
 * and nobody waits for a read. */
int ahead_fill_holes(struct ahead *ahead, const struct wake_page *pages, size_t n, size_t *pages_back);

#endif
