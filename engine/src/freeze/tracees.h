/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The threads that one OS thread, the tracer, holds by ptrace. Private to freeze, which has the rules.
 * Only the tracer may call these functions. When it ends, the threads that tracees_detach() could not
 * release continue. */
#ifndef VMMSWAP_TRACEES_H
#define VMMSWAP_TRACEES_H

#include "base/error.h"
#include "freeze/freeze.h"
#include "linux/procfs.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct task;

struct tracees {
	freeze_list_fn *list;
	void *ctx;
	uint32_t timeout_ms;
	uint64_t deadline_ns; /* CLOCK_MONOTONIC, as all times here */
	pid_t tracer_tid;

	uint64_t start_ns;  /* when the first thread was interrupted; 0: none was */
	uint64_t thawed_ns; /* when the last was detached; 0: not yet */
	pid_t seizing_tid;  /* the last thread that PTRACE_SEIZE was tried on */
	size_t stopped_n;   /* threads that are stopped */
	struct error err;

	/* Inside. */
	struct task *tasks;
	size_t tasks_n, tasks_max;
	struct pid_list pids, tids;
	unsigned refusals_n;
	bool changed; /* a thread was found or has ended since this round began */
};

/* Stop every thread of every process that list() names. 0, or -errno with tracees->err filled in, and the
 * threads stopped so far stay stopped. Call it with cancellation disabled. It enables cancellation while
 * PTRACE_SEIZE waits, so the calling thread may end there. */
int tracees_stop_all(struct tracees *tracees);

/* Let the stopped threads continue, each with the signal that it stopped with. */
void tracees_detach(struct tracees *tracees);

/* Free the memory; once the tracer thread has ended. */
void tracees_free(struct tracees *tracees);

uint64_t tracees_now_ns(void);
void tracees_nap(uint64_t *pause_ns); /* sleep, and double the pause up to 1 ms */

#define TRACEES_NAP_MIN_NS 20000

#endif
