/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Serving one page fault: look the page up, claim it, fetch it, put it in place, wake, count. */
#ifndef VMMSWAP_RESOLVE_H
#define VMMSWAP_RESOLVE_H

#include "serve/fetch.h"
#include "vm/vm.h"

enum resolved {
	RESOLVED,    /* served, or another thread will wake the one that faulted */
	RETRY_SOON,  /* events of the process must be read first */
	RETRY_LATER, /* the host is out of memory, or the store could not read: try at fault->not_before_ns */
	READING,     /* a fetch has the fault, and a read has begun */
	AWAIT_FETCH, /* all fetches are in use: try again when one has ended */
};

/* What a thread serves faults with. */
struct means {
	struct lane *lane;
	struct fetches *fetches;
	void *page; /* a page-aligned buffer of one page */
};

/* Serve a fault. Waits for no device. Takes the gate. */
enum resolved resolve(struct vm *vm, const struct means *means, struct fault *fault);

/* Serve a fault whose read has ended, and give its fetch back. *fault: the fault, if it is not RESOLVED.
 * Takes the gate. */
enum resolved resolve_fetched(struct vm *vm, const struct means *means, struct fetch *fetch,
			      struct fault *fault);

#endif
