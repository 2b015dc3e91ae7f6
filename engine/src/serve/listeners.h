/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Which of the threads that listen to userfaultfds do so at the moment: all, or one alone.
 *
 * A page fault wakes all that listen, and one of them serves it. To wake the others for nothing is what a
 * page fault costs most: to wake a CPU that sleeps takes the thread that faulted 10 us in a virtual machine,
 * and whoever is woken there may then take the page fault away from the thread that is on the guest's CPU. So
 * while page faults come one after the other, one thread listens alone, and the others nap. Which one serves
 * them fastest depends on where the guest's thread runs and where the kernel wakes it, and nothing tells that
 * beforehand. So each is tried for a few page faults, and all together as well, and the fastest way is kept
 * until it becomes slower, gets stuck or has been kept for long.
 *
 * A nap is short, and ends by itself. Whoever wakes from one looks for events that nobody has read. To all
 * others a nap looks as if the thread had waited that long for its CPU. So nothing is lost if the one that
 * listens is stuck, and nothing depends on who listens. All listen again as soon as more than one page fault
 * waits, and when nothing was read for the length of a nap: a guest that raises no page faults wakes
 * nobody. */
#ifndef VMMSWAP_LISTENERS_H
#define VMMSWAP_LISTENERS_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Each page fault wakes all threads that listen to its userfaultfd, so no more than this do. */
#define LISTENERS_MAX 4

struct listeners {
	size_t n; /* at least 1 */
	/* The number of the server that listens alone; n: all listen. Naps sleep on it. */
	_Atomic uint32_t way;
	_Atomic uint32_t stuck; /* 1 + the number of a server that was found to be; 0: none was */
	/* Under the lock of those who read: */
	uint32_t turn_way;
	unsigned turn_reads_n; /* in this turn, of one page fault each */
	unsigned turn_timed_n;
	uint64_t turn_ns;	     /* from one to the next, of those that were timed */
	unsigned turns_n, turns_max; /* since all ways were to be tried again, and until they are */
	unsigned slow_n;	     /* turns in a row, much slower than before */
	uint64_t last_ns;	     /* when the last read was */
	/* Of each way, from one page fault to the next; 0: to be tried. */
	uint32_t pace_ns[LISTENERS_MAX + 1];
};

void listeners_start(struct listeners *listeners, size_t n);

/* A read has brought messages. waiting_n: page faults that wait now. Under the lock of those who read. */
void listeners_note(struct listeners *listeners, size_t waiting_n, uint64_t now_ns);

/* If another thread listens alone, nap. False: the thread of this number is to listen. *silent: the number of
 * the server that listened alone, if nothing was read meanwhile and this call has ended that; else
 * listeners->n. */
bool listeners_nap(struct listeners *listeners, size_t number, const _Atomic uint64_t *reads_n,
		   uint32_t *silent);

/* After such a nap, there was something to read. */
void listeners_stuck(struct listeners *listeners, uint32_t silent);

#endif
