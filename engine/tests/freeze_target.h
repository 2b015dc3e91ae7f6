/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Processes to be frozen: they map a memfd and count in it, so that any progress shows. */
#ifndef VMMSWAP_TESTS_FREEZE_TARGET_H
#define VMMSWAP_TESTS_FREEZE_TARGET_H

#include "freeze/freeze.h"
#include "harness.h"
#include "linux/mappers.h"

#include <pthread.h>
#include <stdatomic.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>

#define COUNTERS_N 8
#define LONG_MS 60000 /* a deadline that is not meant to be reached */

struct memory {
	_Atomic uint64_t counters[COUNTERS_N];
	_Atomic uint64_t signals;
	_Atomic pid_t tid; /* of the thread that a test is about */
	_Atomic int go;	   /* what a body does next waits for this */
	_Atomic int ready;
};

struct target {
	pid_t pid;
	struct memory *memory;
	struct mapped_file file;
};

/* The counting threads' part: `memory` is the same in all of them, so each takes its counter by a ticket. */
static _Atomic int counter_ticket;

static inline void *count_forever(void *arg)
{
	struct memory *memory = arg;
	int i = atomic_fetch_add(&counter_ticket, 1);

	for (;;) {
		atomic_fetch_add(&memory->counters[i], 1);
		sched_yield();
	}
	return NULL;
}

static inline void start_counting(struct memory *memory, int threads_n)
{
	pthread_t thread;

	for (int i = 0; i < threads_n; i++)
		CHECK_EQ(pthread_create(&thread, NULL, count_forever, memory), 0);
}

static inline struct target target_start(void (*body)(struct memory *memory))
{
	struct target target;
	int memfd = memfd_create("guest", MFD_CLOEXEC);

	CHECK_SYS(memfd);
	CHECK_SYS(ftruncate(memfd, 4096));
	CHECK_OK(mappers_file_of(memfd, &target.file));
	target.memory = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, memfd, 0);
	CHECK(target.memory != MAP_FAILED);
	close(memfd);
	fflush(NULL);
	target.pid = fork();
	CHECK_SYS(target.pid);
	if (target.pid == 0) {
		body(target.memory);
		_exit(0);
	}
	return target;
}

/* Its exit status as waitpid() gives it: that we get it at all shows that nobody holds on to the process. */
static inline int target_end(struct target *target)
{
	int status;

	kill(target->pid, SIGKILL);
	CHECK_SYS(waitpid(target->pid, &status, 0));
	munmap(target->memory, 4096);
	return status;
}

/* A freeze_list_fn: who maps the target's memory. */
static inline int list_mappers(void *ctx, struct pid_list *out)
{
	const struct target *target = ctx;
	struct mapper_list list;
	int rc = mappers_find(&target->file, 1, &list);

	for (size_t i = 0; !rc && i < list.pids.pids_n; i++)
		rc = pid_list_add(out, list.pids.pids[i]);
	if (!rc)
		mappers_free(&list);
	return rc;
}

static inline int list_pid_of_target(void *ctx, struct pid_list *out)
{
	const struct target *target = ctx;

	return pid_list_add(out, target->pid);
}

static inline void wait_until_moving(struct memory *memory, int counters_n)
{
	for (int i = 0; i < counters_n; i++) {
		uint64_t before = atomic_load(&memory->counters[i]);

		while (atomic_load(&memory->counters[i]) == before)
			sched_yield();
	}
}

/* Nothing counts for some milliseconds, on a machine where it counts thousands of times in that. */
static inline void check_still(struct memory *memory)
{
	uint64_t before[COUNTERS_N];

	for (int i = 0; i < COUNTERS_N; i++)
		before[i] = atomic_load(&memory->counters[i]);
	for (int round = 0; round < 20; round++) {
		usleep(500);
		for (int i = 0; i < COUNTERS_N; i++)
			CHECK_EQ(atomic_load(&memory->counters[i]), before[i]);
	}
}

static inline size_t threads_of(pid_t pid, struct pid_list *out)
{
	char path[64];

	*out = (struct pid_list){ 0 };
	snprintf(path, sizeof path, "/proc/%d/task", pid);
	CHECK_OK(procfs_list(path, out));
	return out->pids_n;
}

/* No thread of a process is held by anyone. */
static inline void check_untraced(pid_t pid)
{
	struct pid_list tids;

	threads_of(pid, &tids);
	for (size_t i = 0; i < tids.pids_n; i++)
		CHECK_EQ(procfs_tracer(pid, tids.pids[i]), 0);
	pid_list_free(&tids);
}

static inline void wait_for_state(pid_t pid, pid_t tid, char state)
{
	struct procfs_task info;

	do {
		sched_yield();
		CHECK_OK(procfs_task(pid, tid, &info));
	} while (info.state != state);
}

static inline void wait_for(_Atomic int *flag)
{
	while (!atomic_load(flag))
		sched_yield();
}

static inline void check_frozen_and_thaw(struct freeze *freeze, struct target *target)
{
	check_still(target->memory);
	freeze_destroy(freeze);
	check_untraced(target->pid);
}

#endif
