/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The thread of a VMM that moves private guest memory: linux/mailbox.h says what it does.
 *
 * A VMM that hands private memory over compiles mover_thread.c and runs vmmswap_mover_run() on a thread of
 * its own, with all signals blocked. The code uses no C library and no memory but what is given here. */
#ifndef VMMSWAP_MOVER_THREAD_H
#define VMMSWAP_MOVER_THREAD_H

#include <stdint.h>

#include "linux/mailbox.h"

#define VMMSWAP_MOVER_RANGES_MAX 256

struct vmmswap_mover_range {
	uint64_t addr, size_bytes;
};

struct vmmswap_mover {
	/* Mapped shared, from a memfd of VMMSWAP_MAILBOX_BYTES that is sealed against shrinking and
	 * growing. */
	struct vmmswap_mailbox *mailbox;
	/* Private, anonymous memory of VMMSWAP_SCRATCH_BYTES, aligned to VMMSWAP_WINDOW_BYTES, that nobody
	 * else touches and no child inherits (MADV_DONTFORK). */
	uint64_t scratch_addr;
	/* A userfaultfd for user mode only, with which scratch, and nothing else, is registered for missing
	 * faults. Only so does the kernel take moved pages there, and refuse readers of what is not there. */
	int uffd;
	/* Guest memory. Others may be added while the thread runs: first the range, then their number. */
	uint32_t ranges_n;
	struct vmmswap_mover_range ranges[VMMSWAP_MOVER_RANGES_MAX];
};

/* Returns when it was asked to leave. */
void vmmswap_mover_run(struct vmmswap_mover *mover);

#endif
