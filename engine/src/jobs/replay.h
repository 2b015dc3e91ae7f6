/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Replay of a wake-up: brings the pages of the VM's record (wake/wake_record.h) back, in their order, while
 * page faults are served. On threads of its own, which exist only while a replay runs. It may run beside a
 * job of the swapper, and ends soon once that has begun. */
#ifndef VMMSWAP_REPLAY_H
#define VMMSWAP_REPLAY_H

#include "jobs/budget.h"
#include "vm/vm.h"

struct replay;

/* uring: read by an io_uring, if it can be had; else by threads. */
int replay_create(struct vm *vm, bool uring, struct replay **out, struct error *err);
void replay_destroy(struct replay *replay); /* NULL is allowed */

/* Start one, unless one runs. NOTICE_REPLAY_DONE follows. -EBUSY: one was cancelled and has not ended. Not
 * from two threads at once. */
int replay_start(struct replay *replay, struct error *err);

/* It ends within a few pages, and keeps what it has done. */
void replay_cancel(struct replay *replay);

/* Cancel it and wait for its end. */
void replay_stop(struct replay *replay);

/* What it may bring back; also for others that bring pages back ahead of the guest. */
struct budget *replay_budget(struct replay *replay);

/* Set how many pages it may bring back from now on; then it waits for more. See swapper_set_budget(). */
void replay_set_budget(struct replay *replay, uint64_t pages);

#endif
