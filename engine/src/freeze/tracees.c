/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "freeze/tracees.h"

#include "base/failpoint.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define NAP_MAX_NS 1000000
#define REFUSALS_MAX 10

enum task_state {
	TASK_RUNNING, /* interrupted, and about to stop */
	TASK_STOPPED,
	TASK_DEAD, /* an ended leader: its process still has the number, or a sibling after exec */
};

struct task {
	pid_t pid, tid;
	enum task_state state;
	int stop_code; /* valid when stopped: the signal in hand, or signal | PTRACE_EVENT_STOP << 8 */
};

uint64_t tracees_now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

/* The kernel offers no wait for a tracee with a timeout: waitid() has none, a pidfd does not poll readable
 * for a stop, and SIGCHLD belongs to the program that uses us as a library. Stops take some ten microseconds,
 * so sleep for short times that double. */
void tracees_nap(uint64_t *pause_ns)
{
	struct timespec pause = { .tv_nsec = (long)*pause_ns };

	nanosleep(&pause, NULL);
	*pause_ns = *pause_ns * 2 < NAP_MAX_NS ? *pause_ns * 2 : NAP_MAX_NS;
}

/* ---- catching threads ---- */

static bool is_known(const struct tracees *tracees, pid_t tid)
{
	for (size_t i = 0; i < tracees->tasks_n; i++)
		if (tracees->tasks[i].tid == tid)
			return true;
	return false;
}

static int make_room(struct tracees *tracees)
{
	size_t max = tracees->tasks_max ? 2 * tracees->tasks_max : 64;
	struct task *tasks;

	if (tracees->tasks_n < tracees->tasks_max)
		return 0;
	tasks = realloc(tracees->tasks, max * sizeof *tasks);
	if (!tasks)
		return error_set(&tracees->err, ENOMEM, "no memory for a list of %zu threads", max);
	tracees->tasks = tasks;
	tracees->tasks_max = max;
	return 0;
}

/* PTRACE_SEIZE waits for a mutex that the target's execve() holds, and execve() in turn waits until the
 * other threads of its process have ended and been waited for, by us if we hold one: a deadlock (seen on
 * 6.18, in begin_new_exec()). An executable on a hanging file system stalls it as well. The wait ends at a
 * signal, but starts again when its handler returns, so only a handler that ends the thread helps, and the
 * one signal of this kind that a library may use without asking the program is that of pthread_cancel().
 * Hence this call, and nothing else in the tracer, can be cancelled, and no memory or file descriptor hangs
 * on a local variable here or in a caller. */
static int seize(struct tracees *tracees, pid_t tid)
{
	int rc, old;

	tracees->seizing_tid = tid;
	pthread_setcanceltype(PTHREAD_CANCEL_ASYNCHRONOUS, &old);
	pthread_setcancelstate(PTHREAD_CANCEL_ENABLE, &old);
	rc = ptrace(PTRACE_SEIZE, tid, NULL, NULL) ? -errno : 0;
	pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &old);
	return rc;
}

static int not_permitted(struct tracees *tracees, pid_t pid, pid_t tid, pid_t tracer, const char *name)
{
	struct procfs_task info;

	if (!tracer)
		return error_set(&tracees->err, EPERM,
				 "cannot freeze thread %d of process %d (%s): tracing it is not permitted; "
				 "give the monitor CAP_SYS_PTRACE over the VM's user namespace",
				 tid, pid, name);
	if (procfs_task(tracer, tracer, &info))
		strcpy(info.name, "?");
	return error_set(&tracees->err, EPERM,
			 "cannot freeze thread %d of process %d (%s): process %d (%s) traces it already; end "
			 "that debugger and try again",
			 tid, pid, name, tracer, info.name);
}

/* EPERM has many meanings: the thread has ended; it is ours, and has taken its leader's number by exec;
 * somebody else traces it; tracing is not permitted. Any further question comes after the refusal and may be
 * about another thread: exec replaces a dead leader, which cannot be seized, by a living thread with the same
 * number (seen). So if there is no tracer to name, try again a few times. */
static int seize_refused(struct tracees *tracees, pid_t pid, pid_t tid, bool *ours_out)
{
	pid_t tracer = procfs_tracer(pid, tid);
	struct procfs_task info;

	*ours_out = tracer == tracees->tracer_tid;
	if (*ours_out)
		return 0;
	if (procfs_task(pid, tid, &info)) {
		tracees->changed = true; /* it has just ended */
		return 0;
	}
	if (info.state == 'Z' || info.state == 'X') {
		/* A leader stays in this state while its siblings live. Other threads are about to vanish,
		 * and may have cut the listing short. */
		tracees->changed |= tid != pid;
		return 0;
	}
	if (!tracer && tracees->refusals_n++ < REFUSALS_MAX) {
		tracees->changed = true;
		return 0;
	}
	return not_permitted(tracees, pid, tid, tracer, info.name);
}

static int catch_task(struct tracees *tracees, pid_t pid, pid_t tid)
{
	bool ours = true;
	int rc = make_room(tracees);

	if (rc)
		return rc;
	if (!tracees->start_ns)
		tracees->start_ns = tracees_now_ns();
	rc = seize(tracees, tid);
	if (rc == -ESRCH) {
		tracees->changed = true;
		return 0;
	}
	if (rc == -EPERM) {
		rc = seize_refused(tracees, pid, tid, &ours);
		if (rc || !ours)
			return rc;
	} else if (rc) {
		return error_set(&tracees->err, -rc, "cannot freeze thread %d of process %d: %s", tid, pid,
				 strerror(-rc));
	}
	tracees->changed = true;
	tracees->tasks[tracees->tasks_n++] = (struct task){ .pid = pid, .tid = tid, .state = TASK_RUNNING };
	/* Only one thing can go wrong here: the thread has ended. That shows when it is waited for. */
	ptrace(PTRACE_INTERRUPT, tid, NULL, NULL);
	return 0;
}

static int catch_process(struct tracees *tracees, pid_t pid)
{
	char path[32];
	int rc;

	if (pid == getpid())
		return error_set(&tracees->err, EINVAL,
				 "process %d cannot freeze itself: leave it out of the set", pid);
	tracees->tids.pids_n = 0;
	snprintf(path, sizeof path, "/proc/%d/task", pid);
	rc = procfs_list(path, &tracees->tids);
	if (rc == -ENOENT || rc == -ESRCH)
		return 0;
	if (rc)
		return error_set(&tracees->err, -rc, "cannot list the threads of process %d: %s", pid,
				 strerror(-rc));
	for (size_t i = 0; i < tracees->tids.pids_n && !rc; i++)
		if (!is_known(tracees, tracees->tids.pids[i]))
			rc = catch_task(tracees, pid, tracees->tids.pids[i]);
	return rc;
}

static int catch_all(struct tracees *tracees)
{
	int rc;

	tracees->changed = false;
	tracees->pids.pids_n = 0;
	rc = tracees->list(tracees->ctx, &tracees->pids);
	if (rc)
		return error_set(&tracees->err, -rc, "cannot list the VM's processes: %s", strerror(-rc));
	for (size_t i = 0; i < tracees->pids.pids_n && !rc; i++)
		rc = catch_process(tracees, tracees->pids.pids[i]);
	return rc;
}

/* ---- waiting for them to stop ---- */

/* Look at one thread again, whatever was known: a stopped one dies by SIGKILL, and a dead leader's number
 * comes to life by exec. WNOWAIT matters: reaping a stop clears the signal that the kernel keeps for the
 * thread, and if we then died, the thread would continue without it. False: the thread is gone. */
static bool look_at(struct task *task)
{
	const int options = WEXITED | WNOHANG | __WALL | __WNOTHREAD;
	siginfo_t info = { 0 };
	struct procfs_task proc;

	if (waitid(P_PID, (id_t)task->tid, &info, options | WSTOPPED | WNOWAIT))
		return false;
	if (info.si_pid == 0) {
		/* The kernel reports the end of a leader only after that of its last sibling. */
		bool dead = task->tid == task->pid && !procfs_task(task->pid, task->tid, &proc) &&
			    proc.state == 'Z';

		task->state = dead ? TASK_DEAD : TASK_RUNNING;
	} else if (info.si_code == CLD_TRAPPED || info.si_code == CLD_STOPPED) {
		task->state = TASK_STOPPED;
		task->stop_code = info.si_status;
	} else if (task->tid == task->pid) {
		/* Do not reap it: its status is for its parent, which may be another part of us. */
		task->state = TASK_DEAD;
	} else {
		waitid(P_PID, (id_t)task->tid, &info, options);
		return false;
	}
	return true;
}

/* Count the threads that still run. */
static size_t look_at_all(struct tracees *tracees)
{
	size_t running = 0;

	tracees->stopped_n = 0;
	for (size_t i = 0; i < tracees->tasks_n;) {
		if (!look_at(&tracees->tasks[i])) {
			tracees->changed = true;
			tracees->tasks[i] = tracees->tasks[--tracees->tasks_n];
			continue;
		}
		running += tracees->tasks[i].state == TASK_RUNNING;
		tracees->stopped_n += tracees->tasks[i].state == TASK_STOPPED;
		i++;
	}
	return running;
}

static int timed_out(struct tracees *tracees)
{
	char wait_channel[64];
	struct procfs_task info;
	const struct task *task = tracees->tasks;

	for (; task < tracees->tasks + tracees->tasks_n; task++) {
		if (task->state != TASK_RUNNING || procfs_task(task->pid, task->tid, &info))
			continue;
		procfs_wait_channel(task->pid, task->tid, wait_channel, sizeof wait_channel);
		return error_set(&tracees->err, ETIMEDOUT,
				 "thread %d of process %d (%s) did not stop within %u ms: state %c in kernel "
				 "function %s; %zu threads had stopped, all run again",
				 task->tid, task->pid, info.name, tracees->timeout_ms, info.state,
				 wait_channel, tracees->stopped_n);
	}
	return error_set(&tracees->err, ETIMEDOUT,
			 "the VM made new threads or processes faster than they could be stopped for %u ms; "
			 "%zu threads had stopped, all run again",
			 tracees->timeout_ms, tracees->stopped_n);
}

static int wait_stopped(struct tracees *tracees)
{
	uint64_t pause_ns = TRACEES_NAP_MIN_NS;

	while (look_at_all(tracees)) {
		if (tracees_now_ns() >= tracees->deadline_ns)
			return timed_out(tracees);
		tracees_nap(&pause_ns);
	}
	return 0;
}

int tracees_stop_all(struct tracees *tracees)
{
	uint64_t pause_ns = TRACEES_NAP_MIN_NS;
	size_t known = 0;
	int rc;

	for (;;) {
		rc = catch_all(tracees);
		if (!rc)
			rc = FAILPOINT("freeze.seized");
		if (!rc)
			rc = wait_stopped(tracees);
		if (rc || !tracees->changed)
			return rc ? rc : FAILPOINT("freeze.stopped");
		if (tracees_now_ns() >= tracees->deadline_ns)
			return timed_out(tracees);
		/* The set changed, but there is nothing more to hold: threads are ending, and need a moment
		 * for it. */
		if (tracees->tasks_n <= known)
			tracees_nap(&pause_ns);
		known = tracees->tasks_n;
	}
}

/* A thread in signal-delivery-stop has the signal in hand and takes what we return to it. In
 * PTRACE_EVENT_STOP there is none: pending signals are still pending, and the kernel itself resumes a
 * group-stop. A thread that cannot be detached has ended, or is released with the others when this thread
 * ends. */
void tracees_detach(struct tracees *tracees)
{
	for (size_t i = 0; i < tracees->tasks_n; i++) {
		const struct task *task = &tracees->tasks[i];
		long signal_number = task->stop_code >> 8 ? 0 : task->stop_code;

		if (task->state == TASK_STOPPED)
			ptrace(PTRACE_DETACH, task->tid, NULL, (void *)signal_number);
	}
	tracees->thawed_ns = tracees_now_ns();
}

void tracees_free(struct tracees *tracees)
{
	pid_list_free(&tracees->pids);
	pid_list_free(&tracees->tids);
	free(tracees->tasks);
}
