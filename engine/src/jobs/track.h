/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Guest memory is registered with every process's userfaultfd from the first swap-out until all pages are
 * back. */
#ifndef VMMSWAP_TRACK_H
#define VMMSWAP_TRACK_H

#include "jobs/job.h"

/* Register all guest memory. */
void track_memory(struct swapper *swapper);

/* Unregister all guest memory, a part at a time. Nothing may be out. If the job is cancelled meanwhile, all
 * stays registered. */
void untrack_memory(struct swapper *swapper);

/* True, with the job's error set, if some process can touch guest memory without raising a fault. */
bool refuse_unwatched(struct swapper *swapper);

/* True if every process's userfaultfd can write-protect. */
bool all_protect(struct swapper *swapper);

#endif
