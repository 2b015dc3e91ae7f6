/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Poison markers in the page tables of the VM's processes. They are put where a page cannot be read back, and
 * lifted when it can be.
 *
 * A marker outlives MADV_REMOVE, UNREGISTER and us, and a thread that touches it gets SIGBUS without any
 * event. It is only replaced by a page that is put there through the same process's uffd: by COPY or ZEROPAGE
 * in one process; then the memfd has the page, and CONTINUE maps it in all others. This takes several ioctls,
 * and each may have to wait until an event is read. So until all are done, the page is POISONED without a
 * slot: the memfd holds the truth (a hole: zeros), and some process may still have a marker. A successor
 * continues from there. */
#ifndef VMMSWAP_POISON_H
#define VMMSWAP_POISON_H

#include "vm/vm.h"

/* Put a marker into every process. Threads that wait for the page run into it. With the gate passed. False:
 * try again after events of a process were read. Kernels before 6.6 have no such marker, and threads keep
 * waiting. */
bool poison_mark(struct vm *vm, uint64_t page_idx);

/* Ask for the markers of pages that are POISONED without a slot to be lifted, by the next thread that calls
 * poison_lift(). */
void poison_lift_later(struct vm *vm, uint64_t page_idx, uint64_t pages);

/* Lift all markers that were asked for. False: some must be tried again after events were read. Takes the
 * gate. */
bool poison_lift(struct vm *vm, struct lane *lane);

/* How many pages are back but still have markers. Walks over the page map. */
uint64_t poison_pages_to_lift(struct vm *vm);

#endif
