/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Swap-out of one window of private memory: a thread of the VMM moves the pages to scratch (linux/mailbox.h),
 * we read and store them there, and then scratch is emptied.
 *
 * 1. mark     the place in scratch is recorded, then IN_MEMFD becomes MOVED + PUNCHING
 * 2. move     UFFDIO_MOVE: atomic against every access of the guest, and refused (EBUSY) for a page that anything
 *             else holds: I/O in flight, a forked child, KSM. Such a page stays. No other check for pins is needed.
 * 3. settle   PUNCHING ends: MOVED where the page was moved, IN_MEMFD where it was not
 * 4. read     from scratch
 * 5. store    zeros need no slot
 * 6. out      MOVED becomes STORED, or IN_MEMFD for zeros, which are a hole
 * 7. discard  scratch is emptied, and the place is free
 *
 * A page that is MOVED is served from scratch (serve/resolve.c): who touches it claims it, reads it there and
 * copies it, all in one passage of the gate; the page then leaves the swap-out, as its word has changed. So
 * nobody waits for the disk. Who touches a page that is PUNCHING waits for step 2, half a microsecond a page,
 * which is done by a thread of the very process that waits; we hold no lock meanwhile, and wait for nothing
 * else. That is why these waits are allowed though pages are PUNCHING (vm/vm.h).
 *
 * What is where, at any time and after a crash at any step: if guest memory has the page, that is the truth;
 * else, while its word is MOVED, scratch has it, or it is a hole; else the word decides as for all memory.
 * The page is never in both: the kernel moves it. Scratch keeps pages that came back or that are stored until
 * step 7; nobody reads them there, as their words are no longer MOVED. */
#ifndef VMMSWAP_MOVE_OUT_H
#define VMMSWAP_MOVE_OUT_H

#include "jobs/evict.h"

/* Take out the resident pages of the window. Errors, `joined` and what is left as of evict_protected(). */
int move_out(struct evictor *evictor, const struct window *window, uint64_t joined, struct error *err);

/* Bring back what a predecessor, or a move that failed, left in scratch, and empty it. Call this before a job
 * walks over private memory. */
int move_back_left(struct vm *vm, struct lane *lane, struct error *err);

#endif
