/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Checks whether all that the engine knows agrees with itself: for tests, in builds with failpoints. */
#ifndef VMMSWAP_CHECK_H
#define VMMSWAP_CHECK_H

#include "vm/vm.h"

enum check_when {
	CHECK_ANY_TIME, /* a job may be under way */
	CHECK_NO_JOB,	/* faults may be served */
	CHECK_AT_REST,	/* all threads have ended, or none was started yet */
};

#ifdef VMMSWAP_FAILPOINTS
/* Check that the page map agrees with the counters, the slots, the regions and the threads that run, and that
 * the processes' ranges agree with the regions. -EPROTO, with the first thing that is wrong and its page.
 * Holds the gate alone while it goes over the page map. */
int vm_check(struct vm *vm, enum check_when when, struct error *err);
#endif

#endif
