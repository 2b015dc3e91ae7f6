/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "jobs/replay.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
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
	struct wake_page *pages; /* of the replay that runs */
	size_t n;
	_Atomic size_t next; /* the first that no worker has taken */
	_Atomic int code;    /* positive errno that ended it; 0: none */
};

struct worker {
	struct replay *replay;
	struct ahead ahead;
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

/* Pages whose processes keep changing their mappings are left to their page faults. */
static void bring(struct worker *worker, const struct wake_page *pages, size_t n)
{
	size_t pages_back;
	int rc;

	HELD_MAY_WAIT(WAIT_TIME);
	for (unsigned tries = 0; tries < RETRIES && goes_on(worker->replay); tries++) {
		rc = ahead_bring(&worker->ahead, pages, n, &pages_back);
		wake_record_prefetched(worker->replay->vm->wake, pages_back);
		if (!rc) {
			rc = ahead_fill_holes(&worker->ahead, pages, n, &pages_back);
			wake_record_prefetched(worker->replay->vm->wake, pages_back);
		}
		if (rc == -ENOMEM)
			atomic_store(&worker->replay->code, ENOMEM);
		if (rc != -EAGAIN)
			return;
		nanosleep(&(struct timespec){ .tv_nsec = RETRY_NS }, NULL);
	}
}

static void *work(void *argument)
{
	struct worker *worker = argument;
	struct replay *replay = worker->replay;
	const struct wake_page *pages;
	size_t n;

	while (goes_on(replay) && (n = take(replay, &pages))) {
		while (n && goes_on(replay)) {
			struct budget_share share = wait_for_budget(replay, n);

			bring(worker, pages, share.pages);
			pages += share.pages;
			n -= share.pages;
			FAILPOINT_HERE("replay.step");
		}
	}
	return NULL;
}

static void put_away(struct worker *worker)
{
	if (worker->ahead.buffer != MAP_FAILED)
		munmap(worker->ahead.buffer, AHEAD_PAGES_MAX * PAGE_BYTES);
	gate_part(worker->replay->vm->gate, worker->ahead.lane);
}

/* 0, or an errno after full cleanup. */
static int start_worker(struct worker *worker, struct replay *replay)
{
	pthread_attr_t attr;
	int code = ENOMEM;

	*worker = (struct worker){ .replay = replay, .ahead = { .vm = replay->vm } };
	worker->ahead.buffer = mmap(NULL, AHEAD_PAGES_MAX * PAGE_BYTES, PROT_READ | PROT_WRITE,
				    MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	if (worker->ahead.buffer != MAP_FAILED && gate_join(replay->vm->gate, &worker->ahead.lane) == 0) {
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

int replay_create(struct vm *vm, struct replay **out, struct error *err)
{
	struct replay *replay = calloc(1, sizeof *replay);

	if (!replay)
		return error_set(err, ENOMEM, "no memory for the replay");
	replay->vm = vm;
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
