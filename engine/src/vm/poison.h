/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Poison markers in the page tables of the VM's processes: put where a page cannot be read back, lifted when that is over.
 *
 * A marker outlives MADV_REMOVE, UNREGISTER and us, and whoever touches it gets SIGBUS without any event. Only what is put
 * over it through that very process's uffd replaces it: COPY or ZEROPAGE in one process; for all others the page is then in
 * the memfd, and CONTINUE maps it. That takes several ioctls, and any of them may have to wait for an event to be read. So
 * until all are done the page is POISONED without a slot: the memfd holds the truth (a hole: zeros), and some process may
 * have a marker yet. A successor goes on from there. */
#ifndef VMMSWAP_POISON_H
#define VMMSWAP_POISON_H

#include "vm/vm.h"

/* Put a marker into every process; who waits for the page runs into it. With the gate passed. False: events of a process must
 * be read first, then try again. Kernels before 6.6 have no such marker: the waiting threads go on waiting. */
bool poison_mark(struct vm *vm, uint64_t page_idx);

/* The pages are POISONED without a slot from now on: their markers are to be lifted by whoever comes to it. */
void poison_lift_later(struct vm *vm, uint64_t page_idx, uint64_t pages);

/* Lift what there is to lift. False: some must be tried again after events were read. Takes the gate. */
bool poison_lift(struct vm *vm, struct lane *lane);

/* How many pages are back, with markers yet to be lifted. Looks through the page map. */
uint64_t poison_pages_to_lift(struct vm *vm);

#endif
