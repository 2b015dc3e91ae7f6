/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "jobs/replay.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/failpoint.h"
#include "base/held.h"
#include "jobs/ahead.h"
#include "jobs/budget.h"

/* Wake-ups repeat the set of pages, and hardly their order: so many pages of the order are sorted by place,
 * for fewer reads and larger copies. */
#define BAND_PAGES 4096
#define WORKERS_MAX 4
#define STACK_BYTES ((size_t)256 << 10)
#define BUDGET_LOOK_NS 1000000
#define RETRY_NS 50000
#define RETRIES 20

struct replay {
	struct vm *vm;
	pthread_t thread;
	bool thread_to_join; /* belongs to the caller's thread */
	_Atomic bool runs, cancel;
	struct budget budget;
	struct readers *readers; /* where io_uring is not allowed */
	bool uring;
	struct wake_page *pages; /* of the replay that runs */
	size_t n;
	_Atomic size_t next; /* the first that no worker has taken */
	_Atomic int code;    /* positive errno that ended it; 0: none */
};

struct worker {
	struct replay *replay;
	struct lane *lane;
	struct ahead *ahead;
	const struct wake_page *pages; /* that were taken, and have not begun */
	size_t n;
	struct wake_page late[AHEAD_DEPTH_MAX * AHEAD_PAGES_MAX]; /* that wait for events to be read */
	size_t late_n;
	pthread_t thread;
};

static bool goes_on(struct replay *replay)
{
	return !atomic_load(&replay->cancel) && !atomic_load(&replay->code);
}

static int by_place(const void *left, const void *right)
{
	const struct wake_page *a = left, *b = right;

	return a->page_idx < b->page_idx ? -1 : a->page_idx > b->page_idx;
}

static void sort_bands(struct wake_page *pages, size_t n)
{
	for (size_t i = 0; i < n; i += BAND_PAGES)
		qsort(pages + i, n - i < BAND_PAGES ? n - i : BAND_PAGES, sizeof *pages, by_place);
}

/* Pages of one band. 0: there are no more. */
static size_t take(struct replay *replay, const struct wake_page **pages)
{
	size_t from = atomic_fetch_add(&replay->next, AHEAD_PAGES_MAX);

	if (from >= replay->n)
		return 0;
	*pages = replay->pages + from;
	return replay->n - from < AHEAD_PAGES_MAX ? replay->n - from : AHEAD_PAGES_MAX;
}

static struct budget_share wait_for_budget(struct replay *replay, size_t n)
{
	struct budget_share share = budget_take(&replay->budget, n);

	HELD_MAY_WAIT(WAIT_TIME);
	while (!share.pages && goes_on(replay)) {
		nanosleep(&(struct timespec){ .tv_nsec = BUDGET_LOOK_NS }, NULL);
		share = budget_take(&replay->budget, n);
	}
	return share;
}

/* Begin with some of the pages that were taken. False: there is no budget now. */
static bool begin_some(struct worker *worker)
{
	bool may_wait = worker->ahead->in_use_n == 0;
	struct budget_share share = may_wait ? wait_for_budget(worker->replay, worker->n) :
					       budget_take(&worker->replay->budget, worker->n);

	if (!share.pages)
		return false;
	ahead_begin(worker->ahead, worker->pages, share.pages);
	worker->pages += share.pages;
	worker->n -= share.pages;
	/* What a replay has in flight is little beside the reserve of whoever sets the budget. */
	share.pages = 0;
	budget_return(&worker->replay->budget, &share);
	return true;
}

/* Returns rc: of what comes first if something went wrong. */
static int note_end(struct worker *worker, struct ahead_end end)
{
	struct replay *replay = worker->replay;
	size_t pages_back;

	wake_record_prefetched(replay->vm->wake, end.back_n);
	if (!end.rc) {
		end.rc = ahead_fill_holes(worker->ahead, end.pages, end.n, &pages_back);
		wake_record_prefetched(replay->vm->wake, pages_back);
	}
	if (end.rc == -ENOMEM)
		atomic_store(&replay->code, ENOMEM);
	return end.rc;
}

static void end_one(struct worker *worker)
{
	struct ahead_end end = ahead_end(worker->ahead);

	if (note_end(worker, end) == -EAGAIN) {
		memcpy(worker->late + worker->late_n, end.pages, end.n * sizeof *end.pages);
		worker->late_n += end.n;
	}
	FAILPOINT_HERE("replay.step");
}

/* Pages whose processes keep changing their mappings are left to their page faults. */
static void try_again(struct worker *worker, const struct wake_page *pages, size_t n)
{
	int rc = -EAGAIN;

	HELD_MAY_WAIT(WAIT_TIME);
	for (unsigned tries = 0; tries < RETRIES && rc == -EAGAIN && goes_on(worker->replay); tries++) {
		nanosleep(&(struct timespec){ .tv_nsec = RETRY_NS }, NULL);
		ahead_begin(worker->ahead, pages, n);
		rc = note_end(worker, ahead_end(worker->ahead));
	}
}

/* With no batch in use: who reads the events waits for no page of ours. */
static void bring_late(struct worker *worker)
{
	for (size_t i = 0; i < worker->late_n; i += AHEAD_PAGES_MAX)
		try_again(worker, worker->late + i,
			  worker->late_n - i < AHEAD_PAGES_MAX ? worker->late_n - i : AHEAD_PAGES_MAX);
	worker->late_n = 0;
}

/* Some batches are in flight, so that the disk works while pages are put in place. What has been read goes
 * first. */
static void *work(void *argument)
{
	struct worker *worker = argument;
	struct replay *replay = worker->replay;
	struct ahead *ahead = worker->ahead;

	while (goes_on(replay) && (worker->n || (worker->n = take(replay, &worker->pages)))) {
		bool may_begin = !worker->late_n && ahead->in_use_n < ahead->depth;

		if (!ahead_has_ended(ahead) && may_begin && begin_some(worker))
			continue;
		if (ahead->in_use_n)
			end_one(worker);
		else
			bring_late(worker);
	}
	while (ahead->in_use_n)
		end_one(worker);
	bring_late(worker);
	return NULL;
}

static void put_away(struct worker *worker)
{
	ahead_destroy(worker->ahead);
	gate_part(worker->replay->vm->gate, worker->lane);
}

/* 0, or an errno after full cleanup. */
static int start_worker(struct worker *worker, struct replay *replay)
{
	pthread_attr_t attr;
	int code = ENOMEM;

	*worker = (struct worker){ .replay = replay };
	if (gate_join(replay->vm->gate, &worker->lane) == 0)
		code = -ahead_create(replay->vm, worker->lane, AHEAD_DEPTH_MAX, replay->readers,
				     replay->uring, &worker->ahead);
	if (!code) {
		pthread_attr_init(&attr);
		pthread_attr_setstacksize(&attr, STACK_BYTES);
		code = pthread_create(&worker->thread, &attr, work, worker);
		pthread_attr_destroy(&attr);
	}
	if (code)
		put_away(worker);
	return code;
}

static void run_workers(struct replay *replay)
{
	struct worker workers[WORKERS_MAX];
	size_t wanted = replay->vm->workers_n < WORKERS_MAX ? replay->vm->workers_n : WORKERS_MAX, n = 0;
	int code = 0;

	while (n < wanted && !code) {
		code = start_worker(&workers[n], replay);
		n += !code;
	}
	if (n == 0)
		atomic_store(&replay->code, code);
	while (n-- > 0) {
		pthread_join(workers[n].thread, NULL);
		put_away(&workers[n]);
	}
}

static void *run(void *argument)
{
	struct replay *replay = argument;
	struct notice done = { .kind = NOTICE_REPLAY_DONE };

	replay->n = wake_record_offer(replay->vm->wake, &replay->pages);
	sort_bands(replay->pages, replay->n);
	FAILPOINT_HERE("replay.begins");
	if (replay->n)
		run_workers(replay);
	free(replay->pages);
	replay->pages = NULL;
	if (!atomic_load(&replay->vm->stopping)) /* else a successor does it again */
		wake_record_set_replaying(replay->vm->wake, false);
	done.cancelled = atomic_load(&replay->cancel);
	done.code = atomic_load(&replay->code);
	if (done.code)
		strerror_r(done.code, done.message, sizeof done.message);
	atomic_store(&replay->runs, false);
	notices_post(replay->vm->notices, &done);
	return NULL;
}

int replay_create(struct vm *vm, bool uring, struct replay **out, struct error *err)
{
	struct replay *replay = calloc(1, sizeof *replay);

	if (!replay || readers_create(&replay->readers)) {
		free(replay);
		return error_set(err, ENOMEM, "no memory for the replay");
	}
	replay->vm = vm;
	replay->uring = uring;
	budget_init(&replay->budget, BUDGET_UNLIMITED);
	*out = replay;
	return 0;
}

static void join_last(struct replay *replay)
{
	if (replay->thread_to_join)
		pthread_join(replay->thread, NULL);
	replay->thread_to_join = false;
}

void replay_stop(struct replay *replay)
{
	replay_cancel(replay);
	join_last(replay);
}

void replay_destroy(struct replay *replay)
{
	if (!replay)
		return;
	replay_stop(replay);
	readers_destroy(replay->readers);
	budget_destroy(&replay->budget);
	free(replay);
}

int replay_start(struct replay *replay, struct error *err)
{
	int code;

	if (atomic_load(&replay->runs))
		return atomic_load(&replay->cancel) ? error_set(err, EBUSY, "a replay is just ending") : 0;
	join_last(replay);
	atomic_store(&replay->cancel, false);
	atomic_store(&replay->code, 0);
	atomic_store(&replay->next, 0);
	atomic_store(&replay->runs, true);
	wake_record_set_replaying(replay->vm->wake, true);
	code = pthread_create(&replay->thread, NULL, run, replay);
	if (code) {
		wake_record_set_replaying(replay->vm->wake, false);
		atomic_store(&replay->runs, false);
		return error_set(err, code, "cannot start a thread: %s", strerror(code));
	}
	replay->thread_to_join = true;
	return 0;
}

void replay_cancel(struct replay *replay)
{
	atomic_store(&replay->cancel, true);
}

struct budget *replay_budget(struct replay *replay)
{
	return &replay->budget;
}

void replay_set_budget(struct replay *replay, uint64_t pages)
{
	budget_set(&replay->budget, pages);
}
