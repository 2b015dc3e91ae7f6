/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef VMMSWAP_TIME_SLICE_H
#define VMMSWAP_TIME_SLICE_H

/* Make the time slice of the calling thread the shortest that there is. A thread that wakes up gets its
 * processor at once from one with a longer slice; with slices alike, it may have to wait until that one's is
 * over, for a millisecond or more. Its share of the time stays the same. Linux 6.12 and newer
 * (kernel/sched/fair.c, PREEMPT_SHORT); no effect with older ones, or where a filter of system calls does not
 * allow it. */
void time_slice_shorten(void);

#endif
