/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What a successor does with the page map of a process that died at any instant. */
#ifndef VMMSWAP_RECOVER_H
#define VMMSWAP_RECOVER_H

#include "vm/vm.h"

/* With all regions and processes added, and no thread running yet. The memfd decides: data there means resident; a hole and
 * STORED: the store has it, and the slot is taken over; a hole and anything else but POISONED: zeros. Then all threads that
 * wait for a page are woken: what the dead process had read of their faults is lost, so they must fault again.
 * -EBUSY, with nothing changed: a thread of it has not ended yet (vm/owner.h), also two seconds later. */
int recover_pages(struct vm *vm, struct error *err);

#endif
