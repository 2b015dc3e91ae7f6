/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Swap-out of one window of guest memory, while the guest runs or frozen: protect, check for pins, read, store, mark, punch.
 *
 * Who writes to a page of it meanwhile takes it out of the operation, by the same compare-and-swap that the mark
 * needs: it stays resident. Only between mark and punch does a writer wait, for the rest of that one window.
 * docs/live-swap-out.md goes through all interleavings. */
#ifndef VMMSWAP_EVICT_H
#define VMMSWAP_EVICT_H

#include "jobs/left.h"
#include "pins/pins.h"
#include "vm/vm.h"
#include "vm/window.h"

struct evict_counts {
	uint64_t stored_pages; /* kept ones included */
	/* unchanged since they came back: their copy was still there, nothing was written */
	uint64_t kept_pages;
	uint64_t zero_pages;	/* held nothing but zeros: given back, nothing stored */
	uint64_t written_pages; /* touched by the guest meanwhile: left resident */
	uint64_t pinned_pages;	/* held by something else: left resident */
	uint64_t longest_stop_ns;
};

/* One worker's tools. */
struct evictor {
	struct vm *vm;
	struct lane *lane;
	struct pins *pins; /* NULL: nothing is looked at */
	bool frozen;	   /* all processes stand still: protection is not needed, only better */
	bool free_only;	   /* trim: take out only what costs no write: zeros, and pages whose copy was kept */
	struct left *left; /* what stays because it cannot be read, stored or punched */
	char *buffer;	   /* CHUNK_BYTES, page aligned */
	struct evict_counts counts;
};

/* Take the window's resident pages into the operation: state PROTECTED, and write-protected in every process. -EAGAIN: the
 * VMM's processes are in the middle of changing their mappings and do not get on; nothing is protected. */
int evict_protect(struct evictor *evictor, const struct window *window, struct error *err);

/* Store and punch what is still PROTECTED there. What cannot be read, stored or punched is left, and no error before that is so
 * of many pages in a row, or there is no space. joined: vm->joined of before the first evict_protect(); if a process has
 * joined since, nothing more is evicted, which the caller sees by the same figure. On error everything that is not out yet is
 * resident as before. */
int evict_protected(struct evictor *evictor, const struct window *window, uint64_t joined, struct error *err);

/* Take what is still PROTECTED there out of the operation again. */
void evict_abandon(struct evictor *evictor, const struct window *window);

#endif
