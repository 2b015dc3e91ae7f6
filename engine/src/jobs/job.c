/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "jobs/job.h"

#include <errno.h>
#include <string.h>

#include "base/big_buffer.h"
#include "freeze/freeze.h"
#include "vm/page.h"

#define STACK_BYTES ((size_t)256 << 10)
#define WORKERS_MAX 16 /* as Workers= has it */
#define TIMES_MAX 2

void job_fail(struct swapper *swapper, const struct error *error)
{
	pthread_mutex_lock(&swapper->lock);
	if (!swapper->error.code)
		swapper->error = *error;
	pthread_mutex_unlock(&swapper->lock);
}

/* The guest has been stopped long enough: pages that are not out yet stay. */
static void look_at_freeze(struct swapper *swapper)
{
	uint32_t limit_ms = swapper->options.freeze_limit_ms;
	struct error error;

	if (!swapper->freeze || !limit_ms || freeze_duration_us(swapper->freeze) / 1000 < limit_ms)
		return;
	error_set(&error, ETIMEDOUT,
		  "the VM was frozen for %u ms, which is FreezeLimitSec=, and runs again: what is not out "
		  "yet stays on RAM. Call Enable again for the rest, or set Mode=live if the kernel can",
		  limit_ms);
	job_fail(swapper, &error);
}

bool job_goes_on(struct swapper *swapper)
{
	bool failed;

	look_at_freeze(swapper);
	pthread_mutex_lock(&swapper->lock);
	failed = swapper->error.code != 0;
	pthread_mutex_unlock(&swapper->lock);
	return !failed && !atomic_load(&swapper->cancel);
}

bool job_was_joined(struct swapper *swapper)
{
	return atomic_load(&swapper->vm->joined) != swapper->joined;
}

void job_begin_with_all(struct swapper *swapper)
{
	swapper->joined = atomic_load(&swapper->vm->joined);
	vm_drop_stale_copies(swapper->vm);
}

/* What an idle guest touches all the time is not looked at: it stays. If it is out, it may be lost. */
static void leave_idle(struct vm *vm, struct window *window)
{
	for (uint64_t idx = window->page_idx; idx < window->page_idx + window->pages; idx++) {
		enum page_state state;

		if (!wake_record_is_idle(vm->wake, idx) || !window_has_data(window, idx))
			continue;
		state = page_state_of(page_word(vm, idx));
		if (state == PAGE_IN_MEMFD || state == PAGE_PROTECTED || state == PAGE_KEPT)
			window_take_out(window, idx);
	}
}

bool job_next_window(struct swapper *swapper, bool data, struct window *out)
{
	struct vm *vm = swapper->vm;
	bool found;
	int rc;

	/* Not inside the gate: the holder of the memfd's inode lock may be waiting for a page fault. */
	pthread_mutex_lock(&swapper->lock);
	found = data ? window_next_data(&swapper->memory, &swapper->cursor, out) :
		       window_next_used(&swapper->memory, vm->map, &swapper->cursor, out);
	rc = swapper->cursor.error;
	if (rc && !swapper->error.code)
		error_set(&swapper->error, -rc,
			  "cannot tell what is in guest memory (lseek on its memfd): %s", strerror(-rc));
	pthread_mutex_unlock(&swapper->lock);
	if (data && found && !rc)
		leave_idle(vm, out);
	return found && !rc;
}

void job_rewind(struct swapper *swapper)
{
	memset(&swapper->cursor, 0, sizeof swapper->cursor);
}

static void put_worker_away(struct worker *worker)
{
	big_buffer_free(worker->buffer);
	gate_part(worker->swapper->vm->gate, worker->lane);
}

/* 0, or an errno after full cleanup. */
static int start_worker(struct worker *worker, struct swapper *swapper, void *(*run)(void *))
{
	pthread_attr_t attr;
	int code = ENOMEM;

	*worker = (struct worker){ .swapper = swapper };
	worker->buffer = big_buffer_new();
	if (worker->buffer && gate_join(swapper->vm->gate, &worker->lane) == 0) {
		pthread_attr_init(&attr);
		pthread_attr_setstacksize(&attr, STACK_BYTES);
		code = pthread_create(&worker->thread, &attr, run, worker);
		pthread_attr_destroy(&attr);
	}
	if (code)
		put_worker_away(worker);
	return code;
}

void job_run_workers(struct swapper *swapper, size_t times, void *(*run)(void *))
{
	struct worker workers[WORKERS_MAX * TIMES_MAX];
	size_t n = 0;
	int code = 0;

	while (n < swapper->vm->workers_n * times && !code) {
		code = start_worker(&workers[n], swapper, run);
		n += !code;
	}
	if (code && n == 0) { /* with at least one worker, the job only takes longer */
		struct error error;

		error_set(&error, code, "cannot start a worker thread: %s", strerror(code));
		job_fail(swapper, &error);
	}
	while (n-- > 0) {
		pthread_join(workers[n].thread, NULL);
		put_worker_away(&workers[n]);
	}
}

void job_forget_limit(struct swapper *swapper)
{
	store_forget_limit(swapper->vm->store);
	atomic_store(&page_map_header(swapper->vm->map)->limited_by, LIMITED_BY_NOTHING);
}

void job_note_limit(struct swapper *swapper)
{
	struct store_account account;

	if (!store_is_limit(swapper->error.code))
		return;
	store_account(swapper->vm->store, &account);
	atomic_store(&page_map_header(swapper->vm->map)->limited_by,
		     account.limited_by ? account.limited_by : LIMITED_BY_NO_SPACE);
	swapper->error.code = 0;
}
