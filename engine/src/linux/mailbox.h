/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The mailbox of a thread of the VMM that moves private guest memory: one page of shared memory.
 *
 * Only a process itself can move its pages (UFFDIO_MOVE), and drop what it moved. So a thread of the VMM does
 * these two things for the monitor, and nothing else: it takes pages of a window of guest memory to its place
 * in scratch, a second mapping of the VMM, and empties that place. engine/planted/mover_thread.c is the
 * thread.
 *
 * A window is 2 MiB of the VMM's addresses, aligned; so is a place in scratch, and page i of the window goes
 * to page i of the place: a huge page moves whole.
 *
 * `state` is a futex, and says whose the rest is:
 *
 *   IDLE --monitor--> ASKED --thread--> TAKEN --thread--> DONE --monitor--> IDLE
 *                       +-----monitor, which does not want to wait any longer----> IDLE
 *
 * The monitor and the VMM do not trust each other: each reads a field once and checks it. The thread knows by
 * itself which addresses are guest memory and scratch, and refuses all others. The file must be sealed
 * against shrinking, or the VMM could have the monitor killed by SIGBUS. */
#ifndef VMMSWAP_MAILBOX_H
#define VMMSWAP_MAILBOX_H

#include <stdint.h>

#define VMMSWAP_MAILBOX_MAGIC 0x31786f6270617773u /* "swapbox1" */
#define VMMSWAP_MAILBOX_BYTES 4096
#define VMMSWAP_WINDOW_BYTES ((uint64_t)2 << 20)
#define VMMSWAP_WINDOW_WORDS 8 /* one bit a page */
#define VMMSWAP_PLACES 4       /* how many windows can be in scratch */
#define VMMSWAP_SCRATCH_BYTES (VMMSWAP_PLACES * VMMSWAP_WINDOW_BYTES)

enum vmmswap_mailbox_state {
	VMMSWAP_MAILBOX_IDLE,
	VMMSWAP_MAILBOX_ASKED,
	VMMSWAP_MAILBOX_TAKEN,
	VMMSWAP_MAILBOX_DONE,
};

enum vmmswap_mailbox_call {
	/* pages of the window to the place; adjacent ones only if one mapping has them all, else EINVAL */
	VMMSWAP_MAILBOX_MOVE = 1,
	VMMSWAP_MAILBOX_DISCARD, /* empty the place */
	VMMSWAP_MAILBOX_LEAVE,	 /* end the thread */
};

struct vmmswap_mailbox {
	uint64_t magic; /* the VMM's, as are the next three; all are there before the monitor gets it */
	uint64_t scratch_addr; /* VMMSWAP_SCRATCH_BYTES, aligned to a window */
	uint32_t tid;	       /* of the thread */
	uint32_t reserved;

	uint32_t state;

	/* What is asked. */
	uint32_t call;
	uint32_t place;
	uint32_t reserved_too;
	uint64_t window_addr;
	uint64_t wanted[VMMSWAP_WINDOW_WORDS]; /* bit i: page i of the window */

	/* What came of it. A page that is in neither was not there, or could not be moved for another reason:
	 * `error` has the errno of the last of these. */
	uint64_t moved[VMMSWAP_WINDOW_WORDS];
	uint64_t busy[VMMSWAP_WINDOW_WORDS]; /* something else holds the page: EBUSY */
	int32_t error;
	uint32_t reserved_last;

	/* The monitor's own record for its successor: which window is, or may be, in which place. 0: none. */
	uint64_t windows[VMMSWAP_PLACES];
};

#endif
