/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <errno.h>
#include <time.h>

#include "base/held.h"
#include "jobs/job.h"
#include "jobs/move_out.h"
#include "jobs/restore.h"
#include "jobs/track.h"
#include "vm/page.h"
#include "vm/poison.h"

#define BUDGET_LOOK_NS 1000000
/* A worker waits for the disk for as long as it works: with twice as many, a read is on its way beside each
 * that is copied. */
#define WORKERS_TIMES 2

/* Wait until at least one of these pages may be swapped in. Returns how many may; 0: the job ends. */
static struct budget_share wait_for_budget(struct swapper *swapper, uint64_t pages)
{
	struct budget_share taken = budget_take(&swapper->budget, pages);

	HELD_MAY_WAIT(WAIT_TIME);
	while (!taken.pages && job_goes_on(swapper)) {
		nanosleep(&(struct timespec){ .tv_nsec = BUDGET_LOOK_NS }, NULL);
		taken = budget_take(&swapper->budget, pages);
	}
	return taken;
}

/* Each page counts against the budget, and no window waits for its full budget: a budget for one or two pages
 * brings in one or two. */
static void restore_window(struct swapper *swapper, struct restorer *restorer, const struct window *window)
{
	uint64_t idx = window->page_idx, end_idx = window->page_idx + window->pages, wanted;

	while (job_goes_on(swapper) && (wanted = restore_wanted(swapper->vm, idx, end_idx)) > 0) {
		struct budget_share share = wait_for_budget(swapper, wanted);
		struct error error = { 0 };

		if (share.pages && restore_chunk(restorer, &idx, end_idx, &share.pages, &error))
			job_fail(swapper, &error);
		budget_return(&swapper->budget, &share);
	}
}

static void *restore_worker(void *argument)
{
	struct worker *worker = argument;
	struct swapper *swapper = worker->swapper;
	struct restorer restorer = { .vm = swapper->vm, .lane = worker->lane, .buffer = worker->buffer };
	struct window window;

	while (job_goes_on(swapper) && job_next_window(swapper, false, &window)) {
		restore_window(swapper, &restorer, &window);
		atomic_fetch_add(&swapper->progress_pages, window.pages);
	}
	pthread_mutex_lock(&swapper->lock);
	swapper->restored_pages += restorer.restored_pages;
	swapper->unreadable_pages += restorer.unreadable_pages;
	pthread_mutex_unlock(&swapper->lock);
	return NULL;
}

/* Until nothing is out, or the job fails. */
static void restore_all(struct swapper *swapper)
{
	struct vm *vm = swapper->vm;
	uint64_t idle_since_ns = 0;

	/* Demand faults also bring pages in, and may give up on a page that we must then try, so loop until
	 * nothing is out. A poisoned page may be readable by now. */
	while (pages_out(vm) && job_goes_on(swapper)) {
		uint64_t before = pages_out(vm);

		swapper->unreadable_pages = 0;
		job_rewind(swapper);
		job_run_workers(swapper, WORKERS_TIMES, restore_worker);
		poison_lift(vm, swapper->lane);
		if (swapper->unreadable_pages && swapper->unreadable_pages >= pages_out(vm) &&
		    pages_out(vm) >= before)
			break; /* else demand faults hold some, and will release them */
		if (pages_out(vm) < before) {
			idle_since_ns = 0;
			continue;
		}
		idle_since_ns = idle_since_ns ? idle_since_ns : monotonic_ns();
		if (monotonic_ns() - idle_since_ns > VM_STUCK_NS &&
		    poison_pages_to_lift(vm) + swapper->unreadable_pages >= pages_out(vm)) {
			error_set(&swapper->error, EAGAIN,
				  "%llu pages could not be brought back in a process of the VM: it is stuck "
				  "in the middle of changing its memory mappings, or has no memory left; is "
				  "it stopped (SIGSTOP, a debugger)?",
				  (unsigned long long)pages_out(vm));
			return;
		}
		nanosleep(&(struct timespec){ .tv_nsec = 1000000 }, NULL);
	}
}

void swap_in(struct swapper *swapper)
{
	struct vm *vm = swapper->vm;

	wake_record_spoil(vm->wake);
	if (move_back_left(vm, swapper->lane, &swapper->error))
		return;
	store_keep_buffers(vm->store, true);
	restore_all(swapper);
	store_keep_buffers(vm->store, false);
	if (!job_goes_on(swapper))
		return;
	if (pages_out(vm)) {
		error_set(&swapper->error, EIO,
			  "%llu pages of guest memory cannot be read back from the %s file: they are still "
			  "out, and the VM cannot be released until they are back",
			  (unsigned long long)pages_out(vm), store_file_kind(vm->store));
		return;
	}
	untrack_memory(swapper);
	atomic_store(&page_map_header(vm->map)->limited_by, LIMITED_BY_NOTHING);
	store_trim(vm->store);
}
