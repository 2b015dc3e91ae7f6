/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Looks whether all that the engine knows agrees with itself: in builds with failpoints, for tests. */
#ifndef VMMSWAP_CHECK_H
#define VMMSWAP_CHECK_H

#include "vm/vm.h"

enum check_when {
	CHECK_ANY_TIME, /* a job may be under way */
	CHECK_NO_JOB,	/* faults may be served */
	CHECK_AT_REST,	/* all threads have ended, or none was started yet */
};

#ifdef VMMSWAP_FAILPOINTS
/* The page map against the counters, the slots, the regions and what is being done; the processes against the regions.
 * -EPROTO, with the first thing that is wrong and its page. Takes the gate alone, for as long as it takes to go over the map. */
int vm_check(struct vm *vm, enum check_when when, struct error *err);
#endif

#endif
