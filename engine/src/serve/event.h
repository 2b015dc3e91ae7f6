/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Events of userfaultfds other than page faults: memory given up, unmapped, moved. */
#ifndef VMMSWAP_EVENT_H
#define VMMSWAP_EVENT_H

#include "vm/vm.h"

/* Apply UFFD_EVENT_REMOVE, _UNMAP or _REMAP of a process to the page map and the address space. With the gate
 * held alone. */
void event_apply(struct vm *vm, struct process *process, const struct uffd_msg *msg);

/* Apply the next part of a large REMOVE that was read before. False: the page map is up to date. For threads
 * that serve faults, outside of the gate. */
bool event_go_on(struct vm *vm);

#endif
