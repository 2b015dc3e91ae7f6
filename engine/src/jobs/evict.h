/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Swap-out of one window of guest memory, while the guest runs or is frozen: protect, check for pins, read,
 * store, mark, punch.
 *
 * A guest write to a page drops that page from the swap-out: the write fault and the mark change the page's
 * word by compare-and-swap, and one of them fails. A writer waits only between mark and punch, until its run
 * of pages is punched. docs/live-swap-out.md goes through all interleavings. */
#ifndef VMMSWAP_EVICT_H
#define VMMSWAP_EVICT_H

#include "jobs/left.h"
#include "pins/pins.h"
#include "vm/vm.h"
#include "vm/window.h"

struct evict_counts {
	uint64_t stored_pages; /* kept ones included */
	/* unchanged since they came back: their kept copy was used, and nothing was written */
	uint64_t kept_pages;
	uint64_t zero_pages;	/* all zeros: punched, nothing stored */
	uint64_t written_pages; /* written to by the guest meanwhile: left resident */
	uint64_t pinned_pages;	/* pinned: left resident */
	uint64_t longest_stop_ns;
};

/* One worker's tools. */
struct evictor {
	struct vm *vm;
	struct lane *lane;
	struct pins *pins; /* NULL: no check for pins */
	bool frozen; /* all processes are stopped: protection is used where there is some, but not needed */
	bool free_only; /* trim: take out only pages that need no write: zeros, and pages with a kept copy */
	struct left *left; /* pages that cannot be read, stored or punched */
	char *buffer;	   /* CHUNK_BYTES, page aligned */
	struct evict_counts counts;
};

/* Write-protect the window's resident pages in every process. Their state becomes PROTECTED. -EAGAIN: a
 * process of the VM is stuck in the middle of changing its mappings; no page stays PROTECTED. */
int evict_protect(struct evictor *evictor, const struct window *window, struct error *err);

/* Store and punch the pages of the window that are still PROTECTED. A page that cannot be read, stored or
 * punched stays resident; that is an error only after many such pages in a row, or when there is no space
 * left. joined: vm->joined from before the first evict_protect(). If a process has joined since, no page is
 * taken out; the caller compares vm->joined itself. On error, all pages that are not out yet are resident as
 * before. */
int evict_protected(struct evictor *evictor, const struct window *window, uint64_t joined, struct error *err);

/* Drop all pages of the window that are still PROTECTED from the swap-out. */
void evict_abandon(struct evictor *evictor, const struct window *window);

#endif
