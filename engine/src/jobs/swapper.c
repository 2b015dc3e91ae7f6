/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "jobs/swapper.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/failpoint.h"
#include "jobs/job.h"
#include "vm/backing.h"
#include "vm/resident.h"

static void *run_job(void *argument)
{
	struct swapper *swapper = argument;
	struct page_map_header *header = page_map_header(swapper->vm->map);
	struct notice done = { .kind = NOTICE_JOB_DONE, .job = atomic_load(&swapper->job) };
	uint64_t since_ns = monotonic_ns();

	switch (done.job) {
	case JOB_SWAP_OUT:
		swap_out(swapper);
		atomic_store(&header->swap_time_ms, (monotonic_ns() - since_ns) / 1000000);
		break;
	case JOB_SWAP_IN:
		swap_in(swapper);
		atomic_store(&header->swap_time_ms, (monotonic_ns() - since_ns) / 1000000);
		break;
	case JOB_TRIM:
		trim(swapper);
		break;
	case JOB_FLUSH:
		flush(swapper);
		break;
	}
	resident_count(swapper->vm); /* whoever gets the end notice asks how much is left */
	FAILPOINT_HERE("swapper.done");
	atomic_store(&header->job, JOB_NONE);
	done.cancelled = atomic_load(&swapper->cancel);
	done.code = swapper->error.code;
	if ((done.job == JOB_SWAP_OUT || done.job == JOB_FLUSH) && !done.code)
		done.limited_by = atomic_load(&header->limited_by);
	memcpy(done.message, swapper->error.message, sizeof done.message);
	pins_destroy(swapper->pins);
	swapper->pins = NULL;
	atomic_store(&swapper->job, JOB_NONE);
	notices_post(swapper->vm->notices, &done);
	return NULL;
}

int swapper_create(struct vm *vm, struct swapper **out, struct error *err)
{
	struct swapper *swapper = calloc(1, sizeof *swapper);

	if (!swapper || gate_join(vm->gate, &swapper->lane) != 0) {
		free(swapper);
		return error_set(err, ENOMEM, "no memory for the swapper");
	}
	swapper->vm = vm;
	atomic_init(&swapper->pin_check, "");
	budget_init(&swapper->budget, BUDGET_UNLIMITED);
	pthread_mutex_init(&swapper->lock, NULL);
	left_init(&swapper->left);
	pthread_cond_init(&swapper->resumed, NULL);
	*out = swapper;
	return 0;
}

static void join_last(struct swapper *swapper)
{
	if (swapper->thread_to_join)
		pthread_join(swapper->thread, NULL);
	swapper->thread_to_join = false;
}

void swapper_stop(struct swapper *swapper)
{
	swapper_cancel(swapper);
	join_last(swapper);
}

void swapper_destroy(struct swapper *swapper)
{
	if (!swapper)
		return;
	swapper_stop(swapper);
	pins_destroy(swapper->pins);
	pthread_cond_destroy(&swapper->resumed);
	pthread_mutex_destroy(&swapper->lock);
	gate_part(swapper->vm->gate, swapper->lane);
	left_destroy(&swapper->left);
	budget_destroy(&swapper->budget);
	free(swapper);
}

static const char *why_it_stays(struct vm *vm)
{
	const char *why = NULL;

	pthread_mutex_lock(&vm->regions_lock);
	for (size_t i = 0; i < vm->memory.regions_n && !why; i++)
		why = vm->memory.regions[i].backing->stays;
	pthread_mutex_unlock(&vm->regions_lock);
	return why;
}

static void copy_memory(struct swapper *swapper)
{
	const struct memory *memory = &swapper->vm->memory;
	size_t n = 0;

	pthread_mutex_lock(&swapper->vm->regions_lock);
	for (size_t i = 0; i < memory->regions_n; i++)
		if (!memory->regions[i].is_leaving)
			swapper->memory.regions[n++] = memory->regions[i];
	swapper->memory.regions_n = n;
	pthread_mutex_unlock(&swapper->vm->regions_lock);
}

bool swapper_is_idle(struct swapper *swapper, uint64_t *started)
{
	bool idle;

	pthread_mutex_lock(&swapper->lock);
	idle = atomic_load(&swapper->job) == JOB_NONE;
	*started = swapper->started;
	pthread_mutex_unlock(&swapper->lock);
	return idle;
}

bool swapper_leave_out(struct swapper *swapper, uint64_t started, uint64_t page_idx)
{
	struct vm *vm = swapper->vm;
	bool idle;

	pthread_mutex_lock(&swapper->lock);
	idle = atomic_load(&swapper->job) == JOB_NONE && swapper->started == started;
	if (idle) {
		pthread_mutex_lock(&vm->regions_lock);
		memory_leave(&vm->memory, page_idx);
		pthread_mutex_unlock(&vm->regions_lock);
	}
	pthread_mutex_unlock(&swapper->lock);
	return idle;
}

int swapper_start(struct swapper *swapper, enum job_kind job, const struct swap_out_options *options,
		  struct error *err)
{
	struct page_map_header *header = page_map_header(swapper->vm->map);
	const char *why;
	int code;

	if (atomic_load(&swapper->job) != JOB_NONE)
		return error_set(err, EBUSY, "another operation is still under way");
	if (job != JOB_SWAP_IN && (why = why_it_stays(swapper->vm)))
		return error_set(err, ENOTSUP, "%s", why);
	join_last(swapper);
	swapper->options = *options;
	swapper->frozen = swapper->free_only = false;
	memset(&swapper->error, 0, sizeof swapper->error);
	memset(&swapper->counts, 0, sizeof swapper->counts);
	swapper->restored_pages = swapper->unreadable_pages = 0;
	atomic_store(&swapper->cancel, false);
	atomic_store(&swapper->progress_pages, 0);
	pthread_mutex_lock(&swapper->lock);
	copy_memory(swapper);
	swapper->started++;
	atomic_store(&swapper->job, job);
	pthread_mutex_unlock(&swapper->lock);
	if (job != JOB_FLUSH) /* which leaves nothing that a successor must finish */
		atomic_store(&header->job,
			     job); /* now: once this returns, a successor must know of the job */
	code = pthread_create(&swapper->thread, NULL, run_job, swapper);
	if (code) {
		atomic_store(&header->job, JOB_NONE);
		atomic_store(&swapper->job, JOB_NONE);
		return error_set(err, code, "cannot start a thread: %s", strerror(code));
	}
	swapper->thread_to_join = true;
	return 0;
}

void swapper_forget_last(struct swapper *swapper)
{
	if (atomic_load(&swapper->job) == JOB_NONE)
		atomic_store(&page_map_header(swapper->vm->map)->job, JOB_NONE);
}

void swapper_continue(struct swapper *swapper)
{
	pthread_mutex_lock(&swapper->lock);
	swapper->resume = true;
	pthread_cond_broadcast(&swapper->resumed);
	pthread_mutex_unlock(&swapper->lock);
}

void swapper_cancel(struct swapper *swapper)
{
	atomic_store(&swapper->cancel, true);
}

void swapper_set_budget(struct swapper *swapper, uint64_t pages)
{
	budget_set(&swapper->budget, pages);
}

uint64_t swapper_left_pages(struct swapper *swapper, struct lost_incident *pages)
{
	struct error why;

	return left_pages(&swapper->left, pages, &why);
}

enum job_kind swapper_job(const struct swapper *swapper)
{
	return (enum job_kind)atomic_load(&swapper->job);
}

uint64_t swapper_progress_pages(const struct swapper *swapper)
{
	return atomic_load(&swapper->progress_pages);
}

const char *swapper_pin_check(const struct swapper *swapper)
{
	return atomic_load(&swapper->pin_check);
}
