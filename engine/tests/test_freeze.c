/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "base/failpoint.h"
#include "freeze_target.h"

#include <sys/prctl.h>

static void body_four_threads(struct memory *memory)
{
	start_counting(memory, 3);
	count_forever(memory);
}

TEST(nothing_moves_between_freeze_and_thaw)
{
	struct target target = target_start(body_four_threads);
	struct pid_list tids;
	struct freeze *freeze;
	struct error err;

	wait_until_moving(target.memory, 4);
	for (int round = 0; round < 5; round++) {
		uint64_t while_frozen_us;

		CHECK_OK(freeze_create(list_mappers, &target, LONG_MS, &freeze, &err));
		CHECK_EQ(freeze_task_count(freeze), threads_of(target.pid, &tids));
		for (size_t i = 0; i < tids.pids_n; i++)
			CHECK(procfs_tracer(target.pid, tids.pids[i]) != 0);
		pid_list_free(&tids);
		check_still(target.memory);
		while_frozen_us = freeze_duration_us(freeze);
		CHECK(while_frozen_us >= 10000); /* check_still() alone sleeps that long */
		freeze_thaw(freeze);
		CHECK(freeze_duration_us(freeze) >= while_frozen_us);
		CHECK_EQ(freeze_duration_us(freeze), freeze_duration_us(freeze));
		check_untraced(target.pid);
		wait_until_moving(target.memory, 4);
		freeze_destroy(freeze);
	}
	CHECK_EQ(WTERMSIG(target_end(&target)), SIGKILL);
	freeze_destroy(NULL);
}

static int list_many(void *ctx, struct pid_list *out)
{
	struct target *targets = ctx;
	int rc = list_mappers(&targets[0], out);

	return rc ? rc : list_mappers(&targets[1], out);
}

TEST(several_processes)
{
	struct target targets[2] = { target_start(body_four_threads), target_start(body_four_threads) };
	struct freeze *freeze;

	wait_until_moving(targets[0].memory, 4);
	wait_until_moving(targets[1].memory, 4);
	CHECK_OK(freeze_create(list_many, targets, LONG_MS, &freeze, NULL));
	check_still(targets[0].memory);
	check_still(targets[1].memory);
	freeze_destroy(freeze);
	wait_until_moving(targets[0].memory, 4);
	wait_until_moving(targets[1].memory, 4);
	target_end(&targets[0]);
	target_end(&targets[1]);
}

static int list_nothing(void *ctx, struct pid_list *out)
{
	(void)ctx;
	(void)out;
	return 0;
}

static int list_self(void *ctx, struct pid_list *out)
{
	(void)ctx;
	return pid_list_add(out, getpid());
}

static int list_error(void *ctx, struct pid_list *out)
{
	(void)out;
	return *(int *)ctx ? -EIO : ((*(int *)ctx)++, 0);
}

TEST(odd_sets)
{
	struct freeze *freeze;
	struct error err;
	int calls = 1;

	CHECK_OK(freeze_create(list_nothing, NULL, 0, &freeze, &err));
	CHECK_EQ(freeze_task_count(freeze), 0);
	CHECK_EQ(freeze_duration_us(freeze), 0);
	freeze_destroy(freeze);
	CHECK_EQ(freeze_create(list_self, NULL, LONG_MS, &freeze, &err), -EINVAL);
	CHECK_EQ(err.code, EINVAL);
	CHECK_CONTAINS(err.message, "itself");
	CHECK_EQ(freeze_create(list_self, NULL, LONG_MS, &freeze, NULL), -EINVAL);
	CHECK_EQ(freeze_create(list_error, &calls, LONG_MS, &freeze, &err), -EIO);
	CHECK_CONTAINS(err.message, "list");
}

/* The first call names the target, the second, with the target frozen, fails. */
static int list_then_fail(void *ctx, struct pid_list *out)
{
	static _Atomic int calls;

	return atomic_fetch_add(&calls, 1) % 2 ? -EIO : list_mappers(ctx, out);
}

TEST(every_failure_thaws)
{
	static const char *const points[] = { "freeze.seized=once:EIO", "freeze.seized=once:ENOMEM@1",
					      "freeze.stopped=once:EIO" };
	struct target target = target_start(body_four_threads);
	struct freeze *freeze;
	struct error err;

	wait_until_moving(target.memory, 4);
	CHECK_EQ(freeze_create(list_then_fail, &target, LONG_MS, &freeze, &err), -EIO);
	check_untraced(target.pid);
	wait_until_moving(target.memory, 4);
	for (size_t i = 0; i < sizeof points / sizeof *points; i++) {
		CHECK_OK(failpoint_arm(points[i]));
		CHECK_EQ(freeze_create(list_mappers, &target, LONG_MS, &freeze, &err),
			 i == 1 ? -ENOMEM : -EIO);
		CHECK_CONTAINS(err.message, "cannot freeze");
		check_untraced(target.pid);
		wait_until_moving(target.memory, 4);
	}
	CHECK_OK(freeze_create(list_mappers, &target, LONG_MS, &freeze, &err));
	check_frozen_and_thaw(freeze, &target);
	target_end(&target);
}

/* A chain without end: each process counts, forks the next one and goes, while threads come and go too. */
static void *count_a_little(void *arg)
{
	struct memory *memory = arg;

	for (int i = 0; i < 50; i++)
		atomic_fetch_add(&memory->counters[1], 1);
	return NULL;
}

static void body_forking(struct memory *memory)
{
	for (;;) {
		pthread_t thread;
		pid_t pid = fork();

		if (pid == 0) {
			count_a_little(memory);
			atomic_fetch_add(&memory->counters[0], 1);
			_exit(0);
		}
		if (pthread_create(&thread, NULL, count_a_little, memory) == 0)
			pthread_join(thread, NULL);
		atomic_fetch_add(&memory->counters[2], 1);
		while (atomic_load(&memory->counters[2]) % 4 == 0 && waitpid(-1, NULL, 0) > 0)
			;
	}
}

TEST(children_forked_and_threads_made_meanwhile)
{
	struct target target = target_start(body_forking);
	struct freeze *freeze;
	struct error err;

	for (int round = 0; round < 25; round++) {
		wait_until_moving(target.memory, 3);
		if (freeze_create(list_mappers, &target, LONG_MS, &freeze, &err))
			test_fail(__FILE__, __LINE__, "%s", err.message);
		check_frozen_and_thaw(freeze, &target);
	}
	wait_until_moving(target.memory, 3);
	target_end(&target);
}

/* ---- signals ---- */

static struct memory *handler_memory;

/* TSan's sigaction() keeps one pending signal of each number and drops the others: go round it, and let it
 * not look into the handler, which may then run in the middle of its own code. */
int __sigaction(int number, const struct sigaction *new, struct sigaction *old);
#if defined(__has_attribute) && __has_attribute(disable_sanitizer_instrumentation)
#define PLAIN __attribute__((disable_sanitizer_instrumentation))
#else
#define PLAIN
#endif

PLAIN static void on_signal(int number)
{
	(void)number;
	atomic_fetch_add(&handler_memory->signals, 1);
}

static void body_signals(struct memory *memory)
{
	const struct sigaction action = { .sa_handler = on_signal, .sa_flags = SA_RESTART };

	handler_memory = memory;
	CHECK_SYS(__sigaction(SIGRTMIN, &action, NULL));
	CHECK_SYS(__sigaction(SIGUSR1, &action, NULL));
	start_counting(memory, 2);
	atomic_store(&memory->ready, 1);
	count_forever(memory);
}

struct sender {
	struct target target;
	_Atomic int stop;
	uint64_t sent;
};

/* Real-time signals queue, so that each one sent must be counted once. */
static void *send_signals(void *arg)
{
	struct sender *sender = arg;

	while (!atomic_load(&sender->stop)) {
		if (sigqueue(sender->target.pid, SIGRTMIN, (union sigval){ 0 }) == 0)
			sender->sent++;
		while (atomic_load(&sender->target.memory->signals) + 500 < sender->sent &&
		       !atomic_load(&sender->stop))
			sched_yield();
	}
	return NULL;
}

static void wait_for_signals(struct memory *memory, uint64_t want)
{
	while (atomic_load(&memory->signals) < want)
		sched_yield();
	wait_until_moving(memory, 3);
	CHECK_EQ(atomic_load(&memory->signals), want);
}

TEST(no_signal_is_lost)
{
	struct sender sender = { .target = target_start(body_signals) };
	struct freeze *freeze;
	pthread_t thread;

	wait_for(&sender.target.memory->ready);
	CHECK_EQ(pthread_create(&thread, NULL, send_signals, &sender), 0);
	for (int round = 0; round < 40; round++) {
		if (round % 4 == 3) {
			CHECK_OK(failpoint_arm("freeze.seized=once:EIO"));
			CHECK_EQ(freeze_create(list_mappers, &sender.target, LONG_MS, &freeze, NULL), -EIO);
			continue;
		}
		CHECK_OK(freeze_create(list_mappers, &sender.target, LONG_MS, &freeze, NULL));
		freeze_destroy(freeze);
	}
	atomic_store(&sender.stop, 1);
	pthread_join(thread, NULL);
	CHECK(sender.sent > 100);
	wait_for_signals(sender.target.memory, sender.sent);
	target_end(&sender.target);
}

TEST(a_signal_sent_while_frozen_comes_after)
{
	struct target target = target_start(body_signals);
	struct freeze *freeze;

	wait_for(&target.memory->ready);
	CHECK_OK(freeze_create(list_mappers, &target, LONG_MS, &freeze, NULL));
	CHECK_SYS(kill(target.pid, SIGUSR1));
	check_still(target.memory);
	CHECK_EQ(atomic_load(&target.memory->signals), 0);
	freeze_destroy(freeze);
	wait_for_signals(target.memory, 1);
	target_end(&target);
}

/* A process of its own that freezes the target and is killed at a failpoint. */
static void freezer_killed_at(const char *armed, struct target *target)
{
	struct freeze *freeze;
	int status;
	pid_t pid = fork();

	CHECK_SYS(pid);
	if (pid == 0) {
		CHECK_OK(failpoint_arm(armed));
		CHECK_OK(freeze_create(list_mappers, target, LONG_MS, &freeze, NULL));
		freeze_destroy(freeze);
		_exit(1);
	}
	CHECK_SYS(waitpid(pid, &status, 0));
	CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
}

TEST(killed_freezer_releases_all_and_loses_no_signal)
{
	static const char *const points[] = { "freeze.seized=kill", "freeze.seized=kill@1",
					      "freeze.stopped=kill", "freeze.before-thaw=kill" };
	struct target target = target_start(body_signals);
	uint64_t sent = 0;

	wait_for(&target.memory->ready);
	for (int round = 0; round < 24; round++) {
		for (int i = 0; i < 20; i++, sent++)
			CHECK_SYS(sigqueue(target.pid, SIGRTMIN, (union sigval){ 0 }));
		freezer_killed_at(points[round % 4], &target);
		wait_until_moving(target.memory, 3);
		check_untraced(target.pid);
	}
	wait_for_signals(target.memory, sent);
	target_end(&target);
}

/* ---- job control ---- */

static void wait_stopped_by(struct target *target, int signal_number)
{
	siginfo_t info;

	CHECK_SYS(waitid(P_PID, (id_t)target->pid, &info, WSTOPPED));
	CHECK_EQ(info.si_code, CLD_STOPPED);
	CHECK_EQ(info.si_status, signal_number);
}

static void check_all_in_state(pid_t pid, char state)
{
	struct pid_list tids;

	threads_of(pid, &tids);
	for (size_t i = 0; i < tids.pids_n; i++)
		wait_for_state(pid, tids.pids[i], state);
	pid_list_free(&tids);
}

TEST(a_stopped_process_stays_stopped)
{
	struct target target = target_start(body_four_threads);
	struct freeze *freeze;

	wait_until_moving(target.memory, 4);
	CHECK_SYS(kill(target.pid, SIGTSTP));
	wait_stopped_by(&target, SIGTSTP);
	for (int round = 0; round < 3; round++) {
		CHECK_OK(freeze_create(list_mappers, &target, LONG_MS, &freeze, NULL));
		check_frozen_and_thaw(freeze, &target);
		check_all_in_state(target.pid, 'T');
		check_still(target.memory);
	}
	CHECK_SYS(kill(target.pid, SIGCONT));
	wait_until_moving(target.memory, 4);
	target_end(&target);
}

TEST(stop_and_continue_sent_while_frozen)
{
	struct target target = target_start(body_four_threads);
	struct freeze *freeze;

	wait_until_moving(target.memory, 4);
	CHECK_OK(freeze_create(list_mappers, &target, LONG_MS, &freeze, NULL));
	CHECK_SYS(kill(target.pid, SIGSTOP));
	check_frozen_and_thaw(freeze, &target);
	wait_stopped_by(&target, SIGSTOP);
	check_all_in_state(target.pid, 'T');
	CHECK_OK(freeze_create(list_mappers, &target, LONG_MS, &freeze, NULL));
	CHECK_SYS(kill(target.pid, SIGCONT));
	check_frozen_and_thaw(freeze, &target);
	wait_until_moving(target.memory, 4);
	target_end(&target);
}

/* The stop signal is anywhere on its way when the freeze comes: in a thread's hand, half through the
 * threads, done. */
TEST(stop_signal_meets_freeze)
{
	struct target target = target_start(body_four_threads);
	struct freeze *freeze;

	wait_until_moving(target.memory, 4);
	for (int round = 0; round < 40; round++) {
		CHECK_SYS(kill(target.pid, SIGSTOP));
		CHECK_OK(freeze_create(list_mappers, &target, LONG_MS, &freeze, NULL));
		freeze_destroy(freeze);
		check_all_in_state(target.pid, 'T');
		CHECK_SYS(kill(target.pid, SIGCONT));
		wait_until_moving(target.memory, 4);
	}
	target_end(&target);
}

/* ---- death, other tracers ---- */

TEST(killed_while_frozen)
{
	struct target target = target_start(body_four_threads);
	struct freeze *freeze;

	wait_until_moving(target.memory, 4);
	CHECK_OK(freeze_create(list_mappers, &target, LONG_MS, &freeze, NULL));
	CHECK_SYS(kill(target.pid, SIGKILL));
	wait_for_state(target.pid, target.pid, 'Z');
	freeze_destroy(freeze);
	CHECK_EQ(WTERMSIG(target_end(&target)), SIGKILL);
}

static int list_and_kill(void *ctx, struct pid_list *out)
{
	static _Atomic int calls;
	struct target *target = ctx;
	int rc = list_mappers(target, out);

	if (atomic_fetch_add(&calls, 1) % 3 == 0)
		kill(target->pid, SIGKILL);
	return rc;
}

TEST(killed_while_being_frozen)
{
	for (int round = 0; round < 9; round++) {
		struct target target = target_start(body_four_threads);
		struct freeze *freeze;

		wait_until_moving(target.memory, 4);
		CHECK_OK(freeze_create(list_and_kill, &target, LONG_MS, &freeze, NULL));
		check_still(target.memory);
		freeze_destroy(freeze);
		CHECK_EQ(WTERMSIG(target_end(&target)), SIGKILL);
	}
}

static int list_pid(void *ctx, struct pid_list *out)
{
	return pid_list_add(out, *(pid_t *)ctx);
}

static void body_ends(struct memory *memory)
{
	(void)memory;
}

TEST(a_process_that_has_ended)
{
	struct target target = target_start(body_ends);
	struct freeze *freeze;
	siginfo_t info;

	CHECK_SYS(waitid(P_PID, (id_t)target.pid, &info, WEXITED | WNOWAIT));
	CHECK_OK(freeze_create(list_pid, &target.pid, LONG_MS, &freeze, NULL)); /* a zombie */
	CHECK_EQ(freeze_task_count(freeze), 0);
	freeze_destroy(freeze);
	CHECK_EQ(target_end(&target), 0);
	CHECK_OK(freeze_create(list_pid, &target.pid, LONG_MS, &freeze, NULL)); /* nothing at all */
	freeze_destroy(freeze);
}

TEST(traced_by_someone_else)
{
	struct target target = target_start(body_four_threads);
	struct pid_list tids;
	struct freeze *freeze;
	struct error err;
	char text[64];
	int said[2];
	pid_t debugger;
	size_t last;

	wait_until_moving(target.memory, 4);
	last = threads_of(target.pid, &tids) - 1;
	CHECK_SYS(pipe(said));
	debugger = fork();
	if (debugger == 0) {
		prctl(PR_SET_NAME, "my debugger");
		CHECK_SYS(ptrace(PTRACE_SEIZE, tids.pids[last], NULL, NULL));
		CHECK_SYS(write(said[1], "x", 1));
		for (;;)
			pause();
	}
	CHECK_EQ(read(said[0], text, 1), 1);
	CHECK_EQ(freeze_create(list_mappers, &target, LONG_MS, &freeze, &err), -EPERM);
	snprintf(text, sizeof text, "process %d (my debugger)", debugger);
	CHECK_CONTAINS(err.message, text);
	for (size_t i = 0; i < tids.pids_n; i++)
		CHECK_EQ(procfs_tracer(target.pid, tids.pids[i]), i == last ? debugger : 0);
	wait_until_moving(target.memory, 4);
	kill(debugger, SIGKILL);
	waitpid(debugger, NULL, 0);
	CHECK_OK(freeze_create(list_mappers, &target, LONG_MS, &freeze, &err));
	check_frozen_and_thaw(freeze, &target);
	pid_list_free(&tids);
	target_end(&target);
}

TEST(without_permission)
{
	struct target target = target_start(body_four_threads);
	struct freeze *freeze;
	struct error err;
	int status;
	pid_t pid;

	if (geteuid() != 0)
		test_skip("needs root, to become a user who may not trace the target");
	wait_until_moving(target.memory, 4);
	pid = fork();
	if (pid == 0) {
		CHECK_SYS(setresuid(65534, 65534, 65534));
		CHECK_EQ(freeze_create(list_pid, &target.pid, LONG_MS, &freeze, &err), -EPERM);
		CHECK_CONTAINS(err.message, "CAP_SYS_PTRACE");
		_exit(0);
	}
	CHECK_SYS(waitpid(pid, &status, 0));
	CHECK_EQ(status, 0);
	wait_until_moving(target.memory, 4);
	target_end(&target);
}
