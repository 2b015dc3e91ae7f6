/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Pages on their way from a device: each is claimed for a page fault, its read has begun, and nobody waits
 * for it.
 *
 *	resolve()           claims the page and begins its read: READING. The thread is free for other faults.
 *	fetches_ended()     a fetch whose read has ended
 *	resolve_fetched()   puts the page in place, or says what is to become of the fault
 *
 * The claim (FILLING) is what a later fault on the same page joins: it asks for a wake (page_ask_for_wake())
 * instead of reading again, and is woken when the claim ends. A page that no thread has asked for yet can be
 * fetched the same way, by resolve() of a fault that nobody raised; threads that fault on it meanwhile join
 * it. A REMOVE takes the claim away, and the bytes are then not used.
 *
 * One thread's own. */
#ifndef VMMSWAP_FETCH_H
#define VMMSWAP_FETCH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "store/page_read.h"
#include "store/reads.h"
#include "vm/vm.h"

/* For each thread that serves faults: as deep as a disk's queue. A power of two. */
#define FETCHES_MAX 64

/* A fault that is to be served, or to be tried again. */
struct fault {
	uint32_t process_id;
	uint32_t flags; /* UFFD_PAGEFAULT_FLAG_* */
	uint64_t addr;	/* page aligned, in that process */
	uint64_t read_ns;
	uint64_t not_before_ns; /* 0: now */
	uint32_t strays;	/* how often its address was not known as guest memory */
	uint32_t read_errors;	/* how often the store failed to give the page */
	bool starved;		/* counted in vm->starved_faults */
	bool awaits_fetch;	/* to be tried again when a fetch has ended: all were in use */
};

struct fetch {
	struct file_read file; /* first: what has ended is found by it */
	struct page_read read;
	struct fault fault;
	uint64_t page_idx;
	uint64_t claimed;
	uint32_t hash;
	bool was_poisoned;
	struct fetch *next; /* that is not in use */
};

struct fetches {
	struct reads *reads;
	struct fetch *unused;
	size_t in_use_n;
	size_t begun_n;	  /* since the last fetches_submit() */
	size_t touched_n; /* buffers that have memory, or more */
	char *buffers;
	struct fetch list[FETCHES_MAX];
};

int fetches_create(struct readers *readers, bool uring, struct fetches **out);
void fetches_destroy(struct fetches *fetches); /* none is in use; NULL is allowed */

static inline bool fetches_have_room(const struct fetches *fetches)
{
	return fetches->unused;
}

/* A fetch to fill in; there is room. */
struct fetch *fetches_take(struct fetches *fetches);
void fetches_give_back(struct fetches *fetches, struct fetch *fetch);

/* The monitor's memory is locked: what a burst of faults needed is given back some time after it. */
bool fetches_hold_memory(const struct fetches *fetches);
void fetches_rest(struct fetches *fetches);

/* Begin the read that fetch->read says. It may begin only with fetches_submit(). */
void fetches_begin(struct fetches *fetches, struct fetch *fetch);
bool fetches_submit(struct fetches *fetches); /* as reads_submit() */

/* A fetch whose read has ended; NULL: none now. It goes to resolve_fetched(), which gives it back. */
struct fetch *fetches_ended(struct fetches *fetches);

#endif
