/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What a successor does with the page map of a process that died at any instant. */
#ifndef VMMSWAP_RECOVER_H
#define VMMSWAP_RECOVER_H

#include "vm/vm.h"

/* Call this with all regions and processes added, and no thread running yet. The memfd decides. Data there:
 * the page is resident. A hole, and STORED: the store has the page, and its slot is taken over. A hole, and
 * anything else but POISONED: the page is zeros. Then all threads that wait for a page are woken and fault
 * again, as the faults that the dead process had read are lost. -EBUSY, with nothing changed: a thread of the
 * dead process has not ended within two seconds (vm/owner.h). */
int recover_pages(struct vm *vm, struct error *err);

#endif
