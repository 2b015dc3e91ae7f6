/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What userfaultfd tells besides page faults: memory given up, unmapped, moved. All with the gate held alone. */
#ifndef VMMSWAP_EVENT_H
#define VMMSWAP_EVENT_H

#include "vm/vm.h"

/* Apply UFFD_EVENT_REMOVE, _UNMAP or _REMAP of a process to the page map and the address space. */
void event_apply(struct vm *vm, struct process *process, const struct uffd_msg *msg);

/* The contents of these pages are given up, whatever the memfd says just now: drop the stored copy and any copy in
 * flight, break claims, wake who waits. */
void event_give_up(struct vm *vm, uint64_t page_idx, uint64_t pages);

/* One piece of a large REMOVE that was read before. False: all of them are in the page map. By a thread that serves faults, which
 * neither passes the gate nor holds it. */
bool event_go_on(struct vm *vm);

#endif
