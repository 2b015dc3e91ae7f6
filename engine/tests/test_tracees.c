/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Threads that are hard to stop: blocked in the kernel, ending, calling exec, led by a zombie. */
#include "freeze_target.h"

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>

/* ---- a fault inside a system call, which only an answer ends ---- */

static void *read_into_missing_page(void *arg)
{
	struct memory *memory = arg;
	int fds[2];

	CHECK_SYS(pipe(fds));
	CHECK_EQ(write(fds[1], "x", 1), 1);
	atomic_store(&memory->tid, gettid());
	atomic_store(&memory->counters[7], 1);
	CHECK_EQ(read(fds[0], (void *)atomic_load(&memory->counters[6]), 1), 1);
	atomic_store(&memory->counters[7], 2);
	return NULL;
}

static void body_kernel_fault(struct memory *memory)
{
	struct uffdio_api api = { .api = UFFD_API };
	struct uffdio_register reg = { .mode = UFFDIO_REGISTER_MODE_MISSING };
	pthread_t thread;
	int uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC);

	if (uffd < 0) {
		atomic_store(&memory->ready, -errno);
		return;
	}
	CHECK_SYS(ioctl(uffd, UFFDIO_API, &api));
	reg.range.start = (uintptr_t)test_pages(1);
	reg.range.len = 4096;
	CHECK_SYS(ioctl(uffd, UFFDIO_REGISTER, &reg));
	atomic_store(&memory->counters[6], reg.range.start);
	CHECK_EQ(pthread_create(&thread, NULL, read_into_missing_page, memory), 0);
	start_counting(memory, 2);
	atomic_store(&memory->ready, 1 + uffd);
	count_forever(memory);
}

struct fault_server {
	struct target *target;
	int uffd;
};

static void serve_fault(struct fault_server *server)
{
	struct uffdio_zeropage zero = { .range = { atomic_load(&server->target->memory->counters[6]),
						   4096 } };

	CHECK_SYS(ioctl(server->uffd, UFFDIO_ZEROPAGE, &zero));
}

/* A freeze that one thread does not let succeed: it gives up, and names that thread. A limit that is too
 * short for the others on a busy machine names one of those, rightly: then it gets a longer one. */
static void check_times_out_by_name(struct target *target, const char *name, struct error *err)
{
	char within[32];
	struct freeze *freeze;

	for (uint32_t limit_ms = 200;; limit_ms *= 2) {
		CHECK_EQ(freeze_create(list_mappers, target, limit_ms, &freeze, err), -ETIMEDOUT);
		snprintf(within, sizeof within, "within %u ms", limit_ms);
		CHECK_CONTAINS(err->message, within);
		check_untraced(target->pid);
		if (strstr(err->message, name) || limit_ms >= LONG_MS / 4)
			break;
	}
	CHECK_CONTAINS(err->message, name);
}

static struct target start_kernel_fault(struct fault_server *server)
{
	struct target target = target_start(body_kernel_fault);
	struct uffd_msg message;
	int ready, pidfd;

	wait_for(&target.memory->ready);
	ready = atomic_load(&target.memory->ready);
	if (ready < 0)
		test_skip("needs userfaultfd with kernel-mode faults (%s): root, CAP_SYS_PTRACE or "
			  "vm.unprivileged_userfaultfd=1",
			  strerror(-ready));
	pidfd = (int)CHECK_SYS(syscall(SYS_pidfd_open, target.pid, 0));
	server->uffd = (int)CHECK_SYS(syscall(SYS_pidfd_getfd, pidfd, ready - 1, 0));
	close(pidfd);
	CHECK_EQ(read(server->uffd, &message, sizeof message), (ssize_t)sizeof message);
	CHECK_EQ(message.event, UFFD_EVENT_PAGEFAULT);
	wait_until_moving(target.memory, 3);
	return target;
}

TEST(unserved_fault_times_out_and_all_run_on)
{
	struct fault_server server;
	struct target target = start_kernel_fault(&server);
	struct freeze *freeze;
	struct error err;
	char text[64];

	server.target = &target;
	snprintf(text, sizeof text, "thread %d of process %d (test_tracees)",
		 atomic_load(&target.memory->tid), target.pid);
	check_times_out_by_name(&target, text, &err);
	wait_until_moving(target.memory, 3);
	CHECK_EQ(atomic_load(&target.memory->counters[7]), 1);
	serve_fault(&server);
	while (atomic_load(&target.memory->counters[7]) != 2)
		sched_yield();
	CHECK_OK(freeze_create(list_mappers, &target, LONG_MS, &freeze, &err));
	check_frozen_and_thaw(freeze, &target);
	target_end(&target);
}

static void *serve_when_seized(void *arg)
{
	struct fault_server *server = arg;

	while (!procfs_tracer(server->target->pid, atomic_load(&server->target->memory->tid)))
		sched_yield();
	serve_fault(server);
	return NULL;
}

TEST(fault_served_meanwhile)
{
	struct fault_server server;
	struct target target = start_kernel_fault(&server);
	struct freeze *freeze;
	struct error err;
	pthread_t thread;

	server.target = &target;
	CHECK_EQ(pthread_create(&thread, NULL, serve_when_seized, &server), 0);
	CHECK_OK(freeze_create(list_mappers, &target, LONG_MS, &freeze, &err));
	pthread_join(thread, NULL);
	CHECK_EQ(atomic_load(&target.memory->counters[7]), 1);
	check_frozen_and_thaw(freeze, &target);
	while (atomic_load(&target.memory->counters[7]) != 2)
		sched_yield();
	target_end(&target);
}

/* ---- vfork: the parent sleeps unkillably until the child, which is frozen too, calls exec ---- */

static void *vfork_and_wait(void *arg)
{
	struct memory *memory = arg;

	atomic_store(&memory->tid, gettid());
	if (syscall(SYS_vfork) == 0) {
		atomic_store(&memory->ready, 1);
		while (!atomic_load(&memory->go))
			;
		syscall(SYS_exit_group, 0);
	}
	atomic_store(&memory->go, 2);
	return NULL;
}

static void body_vfork(struct memory *memory)
{
	pthread_t thread;

	CHECK_EQ(pthread_create(&thread, NULL, vfork_and_wait, memory), 0);
	wait_for(&memory->ready);
	count_forever(memory);
}

TEST(vfork_parent_times_out_by_name)
{
	struct target target = target_start(body_vfork);
	struct freeze *freeze;
	struct error err;
	char text[64];

	wait_until_moving(target.memory, 1);
	snprintf(text, sizeof text, "thread %d of process %d ", atomic_load(&target.memory->tid), target.pid);
	check_times_out_by_name(&target, text, &err);
	CHECK_CONTAINS(err.message, "state D");
	atomic_store(&target.memory->go, 1);
	while (atomic_load(&target.memory->go) != 2)
		sched_yield();
	CHECK_OK(freeze_create(list_mappers, &target, LONG_MS, &freeze, &err));
	check_frozen_and_thaw(freeze, &target);
	target_end(&target);
}

/* ---- a thread-group leader that has ended ---- */

static void body_leader_ends(struct memory *memory)
{
	start_counting(memory, 3);
	while (!atomic_load(&memory->go))
		sched_yield();
	syscall(SYS_exit, 0);
}

TEST(zombie_leader)
{
	struct target target = target_start(body_leader_ends);
	struct freeze *freeze;

	wait_until_moving(target.memory, 3);
	atomic_store(&target.memory->go, 1);
	wait_for_state(target.pid, target.pid, 'Z');
	for (int round = 0; round < 3; round++) {
		CHECK_OK(freeze_create(list_mappers, &target, LONG_MS, &freeze, NULL));
		CHECK(freeze_task_count(freeze) >= 3);
		check_frozen_and_thaw(freeze, &target);
		wait_until_moving(target.memory, 3);
	}
	target_end(&target);
}

/* On the tracer thread, so that the freeze finds the leader seized, and ended while its siblings live. It is
 * told to end once it is held: nobody can seize what has ended. */
static int hold_leader_and_end(void *ctx, struct pid_list *out)
{
	struct target *target = ctx;

	if (!atomic_load(&target->memory->go)) {
		CHECK_SYS(ptrace(PTRACE_SEIZE, target->pid, NULL, NULL));
		atomic_store(&target->memory->go, 1);
		wait_for_state(target->pid, target->pid, 'Z');
	}
	return list_mappers(target, out);
}

static int list_and_end_leader(void *ctx, struct pid_list *out)
{
	struct target *target = ctx;

	atomic_store(&target->memory->go, 1);
	return list_mappers(target, out);
}

/* When the process is killed later, its parent must be told, though the process that froze it lives on. */
static void leader_ends(freeze_list_fn *list)
{
	struct target target = target_start(body_leader_ends);
	struct freeze *freeze;
	pid_t freezer;

	wait_until_moving(target.memory, 3);
	freezer = fork();
	if (freezer == 0) {
		CHECK_OK(freeze_create(list, &target, LONG_MS, &freeze, NULL));
		check_still(target.memory);
		freeze_destroy(freeze);
		atomic_store(&target.memory->ready, 1);
		for (;;)
			pause();
	}
	wait_for(&target.memory->ready);
	wait_until_moving(target.memory, 3);
	CHECK_EQ(waitpid(freezer, NULL, WNOHANG), 0);
	target_end(&target);
	kill(freezer, SIGKILL);
	waitpid(freezer, NULL, 0);
}

TEST(leader_ends_after_it_was_seized)
{
	leader_ends(hold_leader_and_end);
}

TEST(leader_ends_anywhere_in_the_freeze)
{
	for (int round = 0; round < 20; round++)
		leader_ends(list_and_end_leader);
}

/* ---- exec ---- */

static void *exec_when_told(void *arg)
{
	struct memory *memory = arg;

	atomic_store(&memory->tid, gettid());
	wait_for(&memory->go);
	if (atomic_load(&memory->go) == 1)
		execl("/bin/true", "true", (char *)NULL);
	else
		execl("/bin/sleep", "sleep", "1000", (char *)NULL);
	return NULL;
}

static void body_execs(struct memory *memory)
{
	pthread_t thread;

	start_counting(memory, 2);
	CHECK_EQ(pthread_create(&thread, NULL, exec_when_told, memory), 0);
	count_forever(memory);
}

/* Wherever exec() is when the freeze comes: it ends well, or times out and all run on. On a busy machine it
 * may take more rounds until one ends well. */
TEST(exec_while_being_frozen)
{
	int frozen = 0;

	for (int round = 0; round < 30 || !frozen; round++) {
		struct target target = target_start(body_execs);
		struct freeze *freeze;
		struct error err;
		int status, rc;

		wait_until_moving(target.memory, 3);
		while (!atomic_load(&target.memory->tid))
			sched_yield();
		atomic_store(&target.memory->go, 1);
		rc = freeze_create(list_pid_of_target, &target, 50, &freeze, &err);
		if (rc && rc != -ETIMEDOUT)
			test_fail(__FILE__, __LINE__, "%d: %s", rc, err.message);
		if (rc == 0) {
			frozen++;
			check_still(target.memory);
			freeze_destroy(freeze);
		}
		CHECK_SYS(waitpid(target.pid, &status, 0));
		CHECK_EQ(status, 0);
		munmap(target.memory, 4096);
	}
}

/* A thread that we hold takes its leader's number: seizing that number fails, but it is ours. */
static int hold_thread_and_exec(void *ctx, struct pid_list *out)
{
	struct target *target = ctx;
	struct procfs_task info;

	if (!atomic_load(&target->memory->go)) {
		CHECK_SYS(ptrace(PTRACE_SEIZE, atomic_load(&target->memory->tid), NULL, NULL));
		atomic_store(&target->memory->go, 2); /* after exec() the number would be another's */
		do {
			sched_yield();
			CHECK_OK(procfs_task(target->pid, target->pid, &info));
		} while (strcmp(info.name, "sleep"));
	}
	return list_pid_of_target(target, out);
}

TEST(exec_by_a_thread_that_we_hold)
{
	struct target target = target_start(body_execs);
	struct freeze *freeze;

	wait_until_moving(target.memory, 3);
	while (!atomic_load(&target.memory->tid))
		sched_yield();
	CHECK_OK(freeze_create(hold_thread_and_exec, &target, LONG_MS, &freeze, NULL));
	CHECK_EQ(freeze_task_count(freeze), 1);
	freeze_destroy(freeze);
	check_untraced(target.pid);
	CHECK_EQ(WTERMSIG(target_end(&target)), SIGKILL);
}

/* The deadlock that tracees.c tells of, made on purpose: a sibling is held before the thread calls exec,
 * and the freeze then seizes that thread. */
static int hold_sibling_and_exec(void *ctx, struct pid_list *out)
{
	struct target *target = ctx;
	struct pid_list tids;
	pid_t exec_tid = atomic_load(&target->memory->tid), sibling;
	size_t n = threads_of(target->pid, &tids);

	sibling = tids.pids[n - 1] == exec_tid ? tids.pids[n - 2] : tids.pids[n - 1];
	pid_list_free(&tids);
	CHECK_SYS(ptrace(PTRACE_SEIZE, sibling, NULL, NULL));
	atomic_store(&target->memory->go, 1);
	wait_for_state(target->pid, sibling, 'Z');
	wait_for_state(target->pid, exec_tid, 'D');
	return list_pid_of_target(target, out);
}

TEST(exec_that_waits_for_us)
{
	struct target target = target_start(body_execs);
	struct freeze *freeze;
	struct error err;
	int status;

	wait_until_moving(target.memory, 3);
	while (!atomic_load(&target.memory->tid))
		sched_yield();
	CHECK_EQ(freeze_create(hold_sibling_and_exec, &target, 200, &freeze, &err), -ETIMEDOUT);
	CHECK_CONTAINS(err.message, "execve");
	CHECK_SYS(waitpid(target.pid, &status, 0));
	CHECK_EQ(status, 0);
}

/* ---- system calls go on ---- */

static void body_blocked(struct memory *memory)
{
	int fds[2];
	char byte;

	CHECK_SYS(pipe(fds));
	if (fork() == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		wait_for(&memory->go);
		CHECK_EQ(write(fds[1], "x", 1), 1);
		_exit(0);
	}
	start_counting(memory, 1);
	atomic_store(&memory->ready, 1);
	CHECK_EQ(read(fds[0], &byte, 1), 1);
	atomic_store(&memory->ready, 2);
	for (;;)
		pause();
}

TEST(a_blocked_read_is_restarted)
{
	struct target target = target_start(body_blocked);
	struct freeze *freeze;

	wait_for(&target.memory->ready);
	wait_for_state(target.pid, target.pid, 'S');
	for (int round = 0; round < 5; round++) {
		CHECK_OK(freeze_create(list_mappers, &target, LONG_MS, &freeze, NULL));
		check_frozen_and_thaw(freeze, &target);
		CHECK_EQ(atomic_load(&target.memory->ready), 1);
	}
	atomic_store(&target.memory->go, 1);
	while (atomic_load(&target.memory->ready) != 2)
		sched_yield();
	target_end(&target);
}
