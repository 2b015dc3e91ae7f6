/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "freeze/freeze.h"

#include "base/failpoint.h"
#include "base/held.h"
#include "freeze/tracees.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

#define TRACER_STACK_BYTES (512 << 10)
/* Extra time for the tracer, beyond the deadline, to notice it by itself. */
#define GRACE_NS 500000000

struct freeze {
	struct tracees
		tracees; /* only the tracer uses it until it has settled, and from the thaw to its end */
	pthread_t tracer;
	bool joined;
	pthread_mutex_t lock;
	pthread_cond_t moved;
	bool settled; /* frozen or failed; under lock, like the rest */
	bool thaw;    /* requested */
	int rc;	      /* valid when settled */
};

static void *tracer_main(void *arg)
{
	struct freeze *freeze = arg;
	int rc, old;

	pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &old);
	prctl(PR_SET_TIMERSLACK, 1UL); /* otherwise a nap of 20 us takes 70, while the guest waits */
	freeze->tracees.tracer_tid = gettid();
	rc = tracees_stop_all(&freeze->tracees);

	pthread_mutex_lock(&freeze->lock);
	freeze->rc = rc;
	freeze->settled = true;
	pthread_cond_signal(&freeze->moved);
	while (!rc && !freeze->thaw)
		pthread_cond_wait(&freeze->moved, &freeze->lock);
	pthread_mutex_unlock(&freeze->lock);
	FAILPOINT_HERE("freeze.before-thaw");
	tracees_detach(&freeze->tracees);
	return NULL;
}

static int start_tracer(struct freeze *freeze)
{
	pthread_attr_t attr;
	sigset_t all;
	int rc;

	sigfillset(&all);
	pthread_attr_init(&attr);
	pthread_attr_setstacksize(&attr, TRACER_STACK_BYTES);
	pthread_attr_setsigmask_np(&attr, &all);
	rc = pthread_create(&freeze->tracer, &attr, tracer_main, freeze);
	pthread_attr_destroy(&attr);
	return -rc;
}

/* After the join, the tracer may still hold its threads: the kernel wakes us first, but releases them before
 * it forgets the thread's number. True: cancelled. */
static bool join_tracer(struct freeze *freeze)
{
	uint64_t pause_ns = TRACEES_NAP_MIN_NS;
	void *result;

	pthread_join(freeze->tracer, &result);
	while (!tgkill(getpid(), freeze->tracees.tracer_tid, 0))
		tracees_nap(&pause_ns);
	freeze->joined = true;
	return result == PTHREAD_CANCELED;
}

static bool wait_settled(struct freeze *freeze)
{
	uint64_t limit_ns = freeze->tracees.deadline_ns + GRACE_NS;
	struct timespec limit = {
		.tv_sec = (time_t)(limit_ns / 1000000000),
		.tv_nsec = (long)(limit_ns % 1000000000),
	};
	int rc = 0;

	pthread_mutex_lock(&freeze->lock);
	while (!freeze->settled && rc != ETIMEDOUT)
		rc = pthread_cond_clockwait(&freeze->moved, &freeze->lock, CLOCK_MONOTONIC, &limit);
	pthread_mutex_unlock(&freeze->lock);
	return rc != ETIMEDOUT;
}

static void release(struct freeze *freeze)
{
	pthread_cond_destroy(&freeze->moved);
	pthread_mutex_destroy(&freeze->lock);
	tracees_free(&freeze->tracees);
	free(freeze);
}

static int give_up(struct freeze *freeze, struct error *err)
{
	const struct tracees *tracees = &freeze->tracees;
	bool cancelled = join_tracer(freeze);
	int rc;

	if (cancelled)
		rc = error_set(err, ETIMEDOUT,
			       "thread %d could not be seized within %u ms: its process is in the middle of "
			       "execve(); all run again",
			       tracees->seizing_tid, tracees->timeout_ms);
	else if (tracees->err.code)
		rc = error_set(err, tracees->err.code, "%s", tracees->err.message);
	else if (freeze->rc)
		rc = error_set(err, -freeze->rc, "cannot freeze the VM: %s", strerror(-freeze->rc));
	else
		rc = error_set(err, ETIMEDOUT,
			       "not all threads of the VM stopped within %u ms; all run "
			       "again",
			       tracees->timeout_ms);
	release(freeze);
	return rc;
}

int freeze_create(freeze_list_fn *list, void *ctx, uint32_t timeout_ms, struct freeze **out,
		  struct error *err)
{
	struct freeze *freeze = calloc(1, sizeof *freeze);
	int rc;

	HELD_MAY_WAIT(WAIT_TIME);
	if (!freeze)
		return error_set(err, ENOMEM, "no memory to freeze the VM");
	freeze->tracees = (struct tracees){
		.list = list,
		.ctx = ctx,
		.timeout_ms = timeout_ms,
		.deadline_ns = tracees_now_ns() + (uint64_t)timeout_ms * 1000000,
	};
	pthread_mutex_init(&freeze->lock, NULL);
	pthread_cond_init(&freeze->moved, NULL);
	rc = start_tracer(freeze);
	if (rc) {
		release(freeze);
		return error_set(err, -rc, "cannot start a thread to freeze the VM: %s", strerror(-rc));
	}
	if (!wait_settled(freeze))
		pthread_cancel(freeze->tracer);
	/* If the tracer was not in seize() after all, it has noticed the cancellation or the deadline, or
	 * succeeds this instant. */
	pthread_mutex_lock(&freeze->lock);
	rc = freeze->settled ? freeze->rc : -ETIMEDOUT;
	freeze->thaw = rc != 0;
	pthread_mutex_unlock(&freeze->lock);
	if (rc)
		return give_up(freeze, err);
	*out = freeze;
	return 0;
}

void freeze_thaw(struct freeze *freeze)
{
	if (freeze->joined)
		return;
	pthread_mutex_lock(&freeze->lock);
	freeze->thaw = true;
	pthread_cond_signal(&freeze->moved);
	pthread_mutex_unlock(&freeze->lock);
	join_tracer(freeze);
}

void freeze_destroy(struct freeze *freeze)
{
	if (!freeze)
		return;
	freeze_thaw(freeze);
	release(freeze);
}

uint64_t freeze_duration_us(const struct freeze *freeze)
{
	const struct tracees *tracees = &freeze->tracees;
	uint64_t end_ns = freeze->joined ? tracees->thawed_ns : tracees_now_ns();

	return tracees->start_ns ? (end_ns - tracees->start_ns) / 1000 : 0;
}

size_t freeze_task_count(const struct freeze *freeze)
{
	return freeze->tracees.stopped_n;
}
