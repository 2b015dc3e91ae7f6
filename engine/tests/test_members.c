/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Who is to be frozen: found before, and kept up to date without a look at anybody else's processes. */
#include "base/failpoint.h"
#include "freeze/members.h"
#include "freeze_target.h"

#include <sys/prctl.h>

static void body_waits(struct memory *memory)
{
	atomic_store(&memory->ready, 1);
	for (;;)
		pause();
}

static bool has(const struct pid_list *list, pid_t pid)
{
	for (size_t i = 0; i < list->pids_n; i++)
		if (list->pids[i] == pid)
			return true;
	return false;
}

static void need_children(void)
{
	if (access("/proc/thread-self/children", F_OK))
		test_skip("this kernel has no CONFIG_PROC_CHILDREN");
}

static uint64_t maps_read(void)
{
	return failpoint_hits("mappers.read");
}

#define STRANGERS_N 8

/* What the scan costs inside the freeze does not depend on how many processes there are, or what they map. */
TEST(strangers_are_looked_at_before_and_not_inside)
{
	struct target target, strangers[STRANGERS_N];
	struct pid_list out = { 0 };
	struct members members;
	uint64_t before;

	need_children();
	for (int i = 0; i < STRANGERS_N; i++) {
		strangers[i] = target_start(body_waits);
		wait_for(&strangers[i].memory->ready);
	}
	target = target_start(body_waits); /* after them: they would inherit its memory */
	CHECK_OK(failpoint_arm("mappers.read=count"));
	before = maps_read();
	CHECK_OK(members_find(&members, &target.file, 1));
	CHECK(maps_read() - before > STRANGERS_N);
	before = maps_read();
	CHECK_OK(members_list(&members, &out));
	CHECK_EQ(maps_read() - before, 0);
	CHECK_EQ(out.pids_n, 1);
	CHECK_EQ(out.pids[0], target.pid);
	pid_list_free(&out);
	members_free(&members);
	CHECK_OK(failpoint_arm("mappers.read=off"));
	for (int i = 0; i < STRANGERS_N; i++)
		target_end(&strangers[i]);
	target_end(&target);
}

/* When it is told to: a child that has unmapped the memory, and a child of that which maps it still. */
static void body_forks(struct memory *memory)
{
	atomic_store(&memory->ready, 1);
	wait_for(&memory->go);
	if (fork() == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (fork() == 0) {
			prctl(PR_SET_PDEATHSIG, SIGKILL);
			atomic_store(&memory->tid, getpid());
			atomic_store(&memory->ready, 2);
			for (;;)
				pause();
		}
		munmap(memory, 4096);
		for (;;)
			pause();
	}
	for (;;)
		pause();
}

TEST(what_is_forked_since_is_found)
{
	struct target target = target_start(body_forks);
	struct pid_list out = { 0 };
	struct members members;

	need_children();
	wait_for(&target.memory->ready);
	CHECK_OK(members_find(&members, &target.file, 1));
	CHECK_EQ(members.mappers.pids_n, 1);
	atomic_store(&target.memory->go, 1);
	while (atomic_load(&target.memory->ready) != 2)
		sched_yield();
	/* Its parent, which is on its way to unmap the memory, may be seen with it. */
	CHECK_OK(members_list(&members, &out));
	CHECK(has(&out, target.pid));
	CHECK(has(&out, atomic_load(&target.memory->tid)));
	CHECK(out.pids_n <= 3);
	pid_list_free(&out);
	members_free(&members);
	target_end(&target);
}

TEST(frozen_with_what_it_forks)
{
	struct target target = target_start(body_forks);
	struct freeze *freeze;
	struct members members;

	need_children();
	wait_for(&target.memory->ready);
	CHECK_OK(members_find(&members, &target.file, 1));
	atomic_store(&target.memory->go, 1);
	while (atomic_load(&target.memory->ready) != 2)
		sched_yield();
	CHECK_OK(freeze_create(members_list, &members, LONG_MS, &freeze, NULL));
	CHECK(procfs_tracer(target.pid, target.pid) != 0);
	CHECK(procfs_tracer(atomic_load(&target.memory->tid), atomic_load(&target.memory->tid)) != 0);
	check_frozen_and_thaw(freeze, &target);
	members_free(&members);
	target_end(&target);
}

/* A VM with too much to look at is let go at the deadline, rather than held for as long as that takes. */
TEST(the_deadline_ends_the_look)
{
	struct target target = target_start(body_waits);
	struct pid_list out = { 0 };
	struct members members;
	struct freeze *freeze;
	struct error err;

	CHECK_OK(members_find(&members, &target.file, 1));
	members.deadline_ns = 1;
	CHECK_EQ(members_list(&members, &out), -ETIMEDOUT);
	CHECK_EQ(out.pids_n, 0);
	CHECK_EQ(freeze_create(members_list, &members, LONG_MS, &freeze, &err), -ETIMEDOUT);
	check_untraced(target.pid);
	members_free(&members);
	target_end(&target);
}
