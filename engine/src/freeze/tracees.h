/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The threads that one OS thread holds by ptrace. The inside of freeze, where the rules stand; every call
 * here from the one thread that is to be their tracer, and its end lets go what tracees_detach() did not. */
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
	size_t stopped_n;   /* threads that stand still */
	struct error err;

	/* Inside. */
	struct task *tasks;
	size_t tasks_n, tasks_max;
	struct pid_list pids, tids;
	unsigned refusals_n;
	bool changed; /* since this round began: a thread was met or lost */
};

/* Stop every thread of every process that list() names. 0, or -errno with tracees->err filled in; those
 * stopped stay so. The caller runs with cancellation disabled; it is enabled while PTRACE_SEIZE waits, and
 * the thread may end there. */
int tracees_stop_all(struct tracees *tracees);

/* Let those that stand still run on, each with the signal that it stopped with. */
void tracees_detach(struct tracees *tracees);

/* Free the memory; once the tracer thread has ended. */
void tracees_free(struct tracees *tracees);

uint64_t tracees_now_ns(void);
void tracees_nap(uint64_t *pause_ns); /* sleep, and double the pause up to 1 ms */

#define TRACEES_NAP_MIN_NS 20000

#endif
