/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A thread that tends the store's tiers (store/tend.h), beside all jobs: pages age to disk and sparse
 * segments are compacted while a swap-out runs as well as when nothing does. It sleeps for as long as there
 * is nothing to do. */
#ifndef VMMSWAP_TENDER_H
#define VMMSWAP_TENDER_H

#include "base/error.h"

struct tender;
struct vm;

/* *out is NULL if the VM's store has no tiers. -EAGAIN: no thread can be started. */
int tender_start(struct vm *vm, struct tender **out, struct error *err);

/* Returns when the current step has ended. NULL is allowed. */
void tender_stop(struct tender *tender);

#endif
