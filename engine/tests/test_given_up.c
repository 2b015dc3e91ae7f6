/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What the guest has given up by MADV_REMOVE stays so, however late the kernel punches: it raises its event before. */
#include "inode_lock.h"

static const struct layout layout = { .memfd_pages = { 512 }, .regions = { { 0, 0, 512 } }, .full = 1 };

#define GIVEN_UP 5

static void pin(size_t cpu)
{
	cpu_set_t one;

	CPU_ZERO(&one);
	CPU_SET(cpu, &one);
	CHECK_SYS(sched_setaffinity(0, sizeof one, &one));
}

static long pin_and_tell_tid(void *addr, long cpu)
{
	(void)addr;
	pin((size_t)cpu);
	return syscall(SYS_gettid);
}

static _Atomic bool hog_runs, hog_stop;

/* Nobody else gets CPU 0. */
static void *hog(void *unused)
{
	struct sched_param priority = { .sched_priority = 1 };

	pin(0);
	CHECK_OK(pthread_setschedparam(pthread_self(), SCHED_FIFO, &priority));
	hog_runs = true;
	while (!hog_stop)
		;
	return unused;
}

/* The guest's thread stands between its event and its hole, for the lock of the inode and then for want of a CPU, while a pass of
 * a swap-out begins and ends. */
TEST(remove_whose_hole_comes_late)
{
	struct puppet_order tell_tid = { .kind = ORDER_CALL, .run = pin_and_tell_tid, .argument = 0 };
	struct puppet_order give_up = { .kind = ORDER_REMOVE, .page = GIVEN_UP }, look = { .kind = ORDER_CHECK, .page = GIVEN_UP };
	struct inode_lock lock;
	struct rig rig;
	pthread_t hogging;
	pid_t tid;

	if (sysconf(_SC_NPROCESSORS_ONLN) < 2)
		test_skip("needs two CPUs: one is taken from the guest's thread");
	pin(1);
	rig_start(&rig, &layout);
	tid = (pid_t)puppet_do(&rig, 0, 1, tell_tid);
	rig.options.check_pins = true;
	rig.options.pins.allow_settle = true; /* so that each pass waits to be told to go on */
	rig.options.pins.settle_ms = 60000;
	CHECK_OK(failpoint_arm("uffd.protect=once:EAGAIN;evict.protected=stall")); /* as if an event had been unread */
	rig.hits = 0;
	rig_start_job(&rig, JOB_SWAP_OUT);
	rig_await_point(&rig, "evict.protected");
	inode_lock_take(&lock, rig.memfds[0], 510);
	puppet_tell(&rig, 0, 1, give_up);
	await_wchan(tid, "shmem_fallocate");
	rig_arm(&rig, "evict.protected", "count");
	rig_await_point(&rig, "evict.protected");
	CHECK_OK(pthread_create(&hogging, NULL, hog, NULL));
	while (!hog_runs)
		sched_yield();
	inode_lock_release(&lock);
	engine_continue_job(rig.engine);
	rig_end_job(&rig);
	hog_stop = true;
	CHECK_OK(pthread_join(hogging, NULL));
	puppet_await(&rig, 0, 1);
	CHECK_EQ(puppet_do(&rig, 0, 0, look), 0);
	rig_stop(&rig);
}
