/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What a guest touches when it wakes up: learned from its page faults, for a replay to bring back ahead of
 * them.
 *
 * A cycle begins when a swap-out has ended. From then on each first touch of a page is noted, in order: a
 * page that is back raises no further fault. Touches that come fast are a wake-up; it is over once they come
 * slowly, and then nothing is noted until the next swap-out. That is when the cycle is folded into the set:
 * the pages that wake-ups touch, in the order in which they did, at most WAKE_PAGES_MAX.
 *
 * A page leaves the set if it is not touched any more. That is easy to see where nothing is brought back
 * ahead of the guest: the page raised no fault at two wake-ups in a row. A page that a replay has brought
 * back raises no fault in any case. So each replay holds back some pages of the set, at random; a page that
 * was held back and not touched leaves the set at once. The share of those that were not touched is also the
 * best estimate of what share of the replay was wasted, and the larger it is, the more the next replay holds
 * back. A page that raised a fault at the last wake-up is not held back at the next one.
 *
 * Everything is in one memfd, so that a successor continues. What it says comes from a guest's behaviour:
 * nothing of it is trusted, and whoever uses a page index from here must look whether there is such a
 * page. */
#ifndef VMMSWAP_WAKE_RECORD_H
#define VMMSWAP_WAKE_RECORD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

#define WAKE_PAGES_MAX ((size_t)1 << 19) /* 2 GiB of guest memory; the record then takes 4 to 12 MiB */

/* So many touches of the set's pages within so short a time are a wake-up, if they are not of pages that the
 * guest touches while it is idle, too. */
#define WAKE_BURST_PAGES 32
#define WAKE_BURST_MS 250

/* So are so many touches of any pages. */
#define WAKE_ANY_PAGES 256
#define WAKE_ANY_MS 1000

/* So soon after a swap-out a burst may be what an idle guest always touches then. */
#define WAKE_EARLY_MS 10000

struct wake_record;

int wake_record_create(struct wake_record **out, struct error *err);

/* Take over the record of a process that died. The fd is dup'ed. If it is no record, or damaged, a new one is
 * made. */
int wake_record_adopt(int fd, struct wake_record **out, struct error *err);
void wake_record_destroy(struct wake_record *record); /* NULL is allowed */
int wake_record_fd(const struct wake_record *record);

/* A swap-out begins, and the last cycle has been folded: note touches from now on. Nothing counts as a
 * wake-up. */
void wake_record_begin_leaving(struct wake_record *record);

/* A swap-out has ended: note touches from now on, or go on to. */
void wake_record_begin(struct wake_record *record);

/* Note a touch: `missing` if the page was out, else it was written to and had a kept copy. True if it shows
 * that the guest wakes up; once for each wake-up. Any thread may call this at any time; it waits for
 * nothing. */
bool wake_record_touch(struct wake_record *record, uint64_t page_idx, bool missing, bool write);

/* A wake-up has begun, by an order or by what wake_record_touch() said. False: one is under way, or nothing
 * is noted. */
bool wake_record_wake(struct wake_record *record);

/* The guest touches little any more: the wake-up is over. False: it has touched hardly anything, so it was
 * none, and touches are noted further. So they are after a wake-up that nobody ordered and that began within
 * WAKE_EARLY_MS of the swap-out: the one that somebody waits for may be yet to come. */
bool wake_record_settle(struct wake_record *record);

/* All memory is being brought back: what is not touched from now on says nothing. */
void wake_record_spoil(struct wake_record *record);

/* A swap-out begins: fold the cycle into the set. Takes 0.1 s for a cycle of WAKE_PAGES_MAX. */
void wake_record_fold(struct wake_record *record);

/* After the fold: choose the pages that do not go out now, pages_max at most. They are those that the guest
 * touched within WAKE_EARLY_MS of the swap-out, or later while it was idle, in two cycles in a row, and not
 * after an order to wake up. If there are more, those stay that did so more often, and of these the ones that
 * are touched first. As nothing is seen of a page that stays, some go out with the others, at random: who is
 * not touched then is no such page any more. */
void wake_record_choose_idle(struct wake_record *record, uint64_t pages_max);

/* True if the page was chosen. */
bool wake_record_is_idle(const struct wake_record *record, uint64_t page_idx);

struct wake_page {
	uint32_t page_idx;
	bool is_written; /* the guest wrote to it when it was last seen to touch it */
};

/* The pages to bring back, in order of rank; some are held back. The caller frees *out. How many there
 * are. */
size_t wake_record_offer(struct wake_record *record, struct wake_page **out);

/* Pages were brought back ahead of the guest. */
void wake_record_prefetched(struct wake_record *record, uint64_t pages);

/* The same of neighbours of page faults, and how many of them are not used, by an estimate. */
void wake_record_brought(struct wake_record *record, uint64_t pages, uint64_t wasted_pages);

/* These came back as neighbours of page faults, and the guest most likely touches them: note them as if they
 * had raised page faults. Nothing is noted unless a wake-up is under way. */
void wake_record_note(struct wake_record *record, const struct wake_page *pages, size_t n);

/* True if a wake-up is under way. */
bool wake_record_is_waking(const struct wake_record *record);

/* True if this cycle's replay holds the page back. */
bool wake_record_holds(const struct wake_record *record, uint64_t page_idx);

/* A replay is under way: a successor does it again. */
void wake_record_set_replaying(struct wake_record *record, bool is_replaying);

struct wake_stats {
	uint64_t set_pages;
	uint64_t idle_pages;	   /* of these, did not go out at the last swap-out; 0 once all comes back */
	uint64_t touched_pages;	   /* since the last swap-out has ended */
	uint64_t prefetched_pages; /* since the VM registered */
	uint64_t wasted_pages;	   /* of these, by the best estimate, up to the last swap-out */
	uint64_t wake_ms;	   /* from the first fault of the last wake-up to its last one, or to now */
	bool is_waking, is_replaying;
	bool is_ordered; /* a caller said so since the last swap-out */
};

/* Waits for nothing. */
void wake_record_stats(const struct wake_record *record, struct wake_stats *out);

#endif
