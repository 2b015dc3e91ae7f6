/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Guest memory registered with every process's userfaultfd, from the first swap-out until all is back. */
#ifndef VMMSWAP_TRACK_H
#define VMMSWAP_TRACK_H

#include "jobs/job.h"

/* Register all of it. */
void track_memory(struct swapper *swapper);

/* Unregister all of it, a piece at a time; nothing is out. A job that is cancelled meanwhile leaves all registered. */
void untrack_memory(struct swapper *swapper);

/* True, with the job's error set, if a process may touch guest memory without being seen. */
bool refuse_unwatched(struct swapper *swapper);

/* True if every process's userfaultfd can write-protect. */
bool all_protect(struct swapper *swapper);

#endif
