/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Brings back the neighbours of page faults (wake/nearby.h), while the guest wakes up and there is memory for
 * it. On a thread of its own: the page fault has been answered by then. */
#ifndef VMMSWAP_AROUND_H
#define VMMSWAP_AROUND_H

#include "jobs/budget.h"
#include "vm/vm.h"

struct around;

/* Start the thread. budget: how many pages may be brought back, the replay's; it outlives the thread. vm has
 * no `nearby`: *out is NULL. */
int around_start(struct vm *vm, struct budget *budget, struct around **out, struct error *err);
void around_stop(struct around *around); /* NULL is allowed */

#endif
