/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What every file of the guest needs: units, limits, time, futexes, and how to end with one clear line. */
#ifndef GUEST_COMMON_H
#define GUEST_COMMON_H

#include <linux/futex.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define PAGE_BYTES 4096u
#define PAGE_WORDS (PAGE_BYTES / 8u)

#define MAX_REGIONS 64
#define MAX_PROCESSES 256 /* process 0 is the VMM itself */
#define MAX_WORKERS 8	  /* threads a process */

static inline uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

/* Futexes in memory that processes share. Returns when *word is no longer `seen`, on a wake, on a signal
 * or after timeout_ns (0: no limit): the caller looks again in every case. */
static inline void futex_wait(_Atomic uint32_t *word, uint32_t seen, uint64_t timeout_ns)
{
	struct timespec ts = {
		.tv_sec = (time_t)(timeout_ns / 1000000000u),
		.tv_nsec = (long)(timeout_ns % 1000000000u),
	};

	syscall(SYS_futex, word, FUTEX_WAIT, seen, timeout_ns ? &ts : NULL, NULL, 0);
}

static inline void futex_wake_all(_Atomic uint32_t *word)
{
	syscall(SYS_futex, word, FUTEX_WAKE, INT32_MAX, NULL, NULL, 0);
}

/* One line on standard error, exit status 1. With an errno's text where err is not 0. */
void die(int err, const char *format, ...) __attribute__((noreturn, format(printf, 2, 3)));

#endif
