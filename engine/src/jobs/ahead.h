/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Brings pages back ahead of the guest, a few at a time.
 *
 * Nothing depends on it: a page for which anything is odd (no process has it mapped, it cannot be read,
 * something else is in its place) is left out, for the page fault that needs it. That is why this is not
 * restore.c, which must bring back every page.
 *
 * Page faults go first. A page that needs no device is claimed as a swap-in claims it, until it is put in
 * place: a page fault takes it over, and makes it of the store's bytes sooner than this thread might. A page
 * that a device reads is claimed as page faults claim theirs: a page fault waits for the read that is under
 * way instead of reading the page once more. It waits for the other reads of the batch, too, so these are
 * few; of what has been read, it comes first. */
#ifndef VMMSWAP_AHEAD_H
#define VMMSWAP_AHEAD_H

#include "store/near_reads.h"
#include "vm/vm.h"
#include "wake/wake_record.h"

#define AHEAD_PAGES_MAX NEAR_PAGES_MAX
#define AHEAD_DEPTH_MAX 4

struct readers;

/* Pages that are on their way together. */
struct ahead_batch {
	uint64_t number; /* 0: not in use; those that began first have the lowest */
	struct wake_page wanted[AHEAD_PAGES_MAX];
	size_t wanted_n;
	size_t n, back_n;   /* of these, only the store had n */
	bool awaits_device; /* page faults on some of these wait until ahead_end() */
	uint64_t idx[AHEAD_PAGES_MAX];
	uint64_t claimed[AHEAD_PAGES_MAX]; /* 0: no longer ours */
	uint64_t slots[AHEAD_PAGES_MAX];
	bool keeps[AHEAD_PAGES_MAX]; /* write-protected, with its copy */
	struct near_reads reads;
};

/* One thread's. */
struct ahead {
	struct vm *vm;
	struct lane *lane;
	struct reads *reads; /* NULL: each read is waited for as it begins */
	char *buffers;
	size_t depth, in_use_n, claiming_n; /* batches; claiming: that have claimed pages */
	uint64_t last_number;
	struct ahead_batch batches[AHEAD_DEPTH_MAX];
};

/* For `depth` batches at a time, AHEAD_DEPTH_MAX at most; if more than 1, with reads in flight: by an
 * io_uring where `uring` allows it and it can be had, else by the readers. lane: the thread's own. 0 or
 * -errno. */
int ahead_create(struct vm *vm, struct lane *lane, size_t depth, struct readers *readers, bool uring,
		 struct ahead **out);
void ahead_destroy(struct ahead *ahead); /* no batch is in use; NULL is allowed */

/* Begin to bring back those of n pages, AHEAD_PAGES_MAX at most, in ascending order, that only the store has.
 * There is a batch that is not in use. From here on page faults on those that a device has wait for
 * ahead_end(), which must follow soon. */
void ahead_begin(struct ahead *ahead, const struct wake_page *pages, size_t n);

/* True if a batch that was begun has been read: ahead_end() will not wait. Begins reads that have not begun
 * yet. */
bool ahead_has_ended(struct ahead *ahead);

struct ahead_end {
	int rc; /* 0; -ENOMEM: the VMM's processes have no memory left; -EAGAIN: events must be read first */
	const struct wake_page *pages; /* that ahead_begin() was given; until the next ahead_begin() */
	size_t n, back_n;	       /* how many came */
};

/* Wait for a batch that was begun, and end it: its pages come back. They keep their copies if that is
 * possible, except those that the guest is likely to write to. On error, other pages of it are out as
 * before. */
struct ahead_end ahead_end(struct ahead *ahead);

/* Begin and end one. No batch is in use. *pages_back: how many came. */
int ahead_bring(struct ahead *ahead, const struct wake_page *pages, size_t n, size_t *pages_back);

/* Fill those of n pages that are holes with zeros, but for those that the guest gave up. As ahead_bring(),
 * and nobody waits for a read. */
int ahead_fill_holes(struct ahead *ahead, const struct wake_page *pages, size_t n, size_t *pages_back);

#endif
