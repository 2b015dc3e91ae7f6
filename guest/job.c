/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "job.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>

#include "device.h"

static bool process_takes_part(const struct shared *shared, int process)
{
	int state = atomic_load(&shared->process[process].state);

	return state == PROCESS_STARTING || state == PROCESS_RUNNING;
}

/* A worker may still be looking at a job that has ended, to find that it has. */
static bool is_in_use(const struct shared *shared, const struct job *job)
{
	if (job->id)
		return true;
	for (int process = 0; process < MAX_PROCESSES; process++)
		if (atomic_load(&job->active[process]) && process_takes_part(shared, process))
			return true;
	return false;
}

struct job *job_new(struct shared *shared, int kind)
{
	for (unsigned i = 0; i < JOB_SLOTS; i++) {
		struct job *job = &shared->job[i];

		if ((i == RECOVERY_SLOT) != (kind == JOB_RECOVER) || is_in_use(shared, job))
			continue;
		job->kind = kind;
		job->process = 0;
		job->first_page = 0;
		job->pages = job->chunk_pages = 1;
		job->cursor_is_shared = job->skip_untouched = job->is_write = job->is_either = false;
		job->remove_how = 0;
		job->offset_bytes = 0;
		return job;
	}
	return NULL;
}

void job_start(struct shared *shared, struct job *job)
{
	static uint64_t last_id;

	for (int process = 0; process < MAX_PROCESSES; process++) {
		job->participates[process] = job->kind < JOB_BACKEND &&
					     (job->process < 0 || job->process == process) &&
					     atomic_load(&shared->process[process].state) == PROCESS_RUNNING;
		atomic_store(&job->has_more[process], job->participates[process]);
		atomic_store(&job->cursor[process], 0);
	}
	atomic_store(&job->done_pages, 0);
	atomic_store(&job->bytes, 0);
	atomic_store(&job->wrong_bytes, 0);
	atomic_store(&job->wrong_pages, 0);
	atomic_store(&job->bus_errors, 0);
	atomic_store(&job->longest_ns, 0);
	atomic_store(&job->error, 0);
	atomic_store(&job->lost, 0);
	atomic_store(&job->first_wrong.claimed, 0);
	atomic_store(&job->first_wrong.ready, 0);
	job->id = ++last_id;
	job->start_ns = now_ns();
	atomic_store(&job->state, JOB_RUNNING);
	atomic_fetch_add(&shared->wake, 1);
	futex_wake_all(&shared->wake);
	if (job->kind == JOB_RECOVER) {
		atomic_fetch_add(&shared->unlocked, 1);
		futex_wake_all(&shared->unlocked);
	}
}

static bool all_are_idle(const struct shared *shared)
{
	for (int process = 0; process < MAX_PROCESSES; process++) {
		if (!process_takes_part(shared, process))
			continue;
		for (int i = 0; i < MAX_WORKERS; i++)
			if (atomic_load(&shared->process[process].worker[i].busy))
				return false;
	}
	return true;
}

static bool processes_are_up(const struct shared *shared, const struct job *job)
{
	for (int process = 0; process < MAX_PROCESSES; process++)
		if (atomic_load(&shared->process[process].job_id) == job->id &&
		    atomic_load(&shared->process[process].state) == PROCESS_STARTING)
			return false;
	return true;
}

bool job_is_complete(struct shared *shared, struct job *job)
{
	unsigned lost = 0;

	if (job->kind == JOB_QUIESCE)
		return all_are_idle(shared);
	if ((job->kind == JOB_FORK || job->kind == JOB_BACKEND) && !processes_are_up(shared, job))
		return false;
	if (job->kind == JOB_BACKEND)
		return true;
	for (int process = 0; process < MAX_PROCESSES; process++) {
		if (!job->participates[process])
			continue;
		uint64_t cursor = atomic_load(&job->cursor[job->cursor_is_shared ? 0 : process]);
		bool has_rest = cursor < job->pages || atomic_load(&job->active[process]);
		if (process_takes_part(shared, process) && has_rest)
			return false;
		lost += has_rest;
	}
	atomic_store(&job->lost, lost);
	return true;
}

void job_free(struct job *job)
{
	atomic_store(&job->state, JOB_FREE);
	job->id = 0;
}

static void set_error(struct job *job, int err)
{
	int none = 0;

	atomic_compare_exchange_strong(&job->error, &none, err);
}

static bool is_untouched(const struct guest *guest, uint64_t page_idx)
{
	page_word word = atomic_load(&guest->words[page_idx]);

	return word_contents(word) == CONTENTS_UNTOUCHED && !word_writer(word);
}

static void fill_page(struct worker *worker, uint64_t page_idx)
{
	enum page_result result;

	if (content_class(&worker->guest->content, page_idx) == CLASS_UNTOUCHED)
		return;
	worker_intend(worker, page_idx, 1, WRITE_FILL);
	page_word was = page_lock(worker, page_idx);
	page_unlock(worker, page_idx, page_write_locked(worker, page_idx, was, WRITE_FILL, &result));
}

static void touch_page(struct worker *worker, struct job *job, uint64_t page_idx)
{
	enum page_result result;

	if (job->offset_bytes < PAGE_BYTES && page_peek(worker, page_idx, job->offset_bytes) != PAGE_OK)
		return;
	if (!job->is_write) {
		page_check(worker, page_idx);
		return;
	}
	worker_intend(worker, page_idx, 1, WRITE_PART);
	page_word was = page_lock(worker, page_idx);
	page_unlock(worker, page_idx, page_write_locked(worker, page_idx, was, WRITE_PART, &result));
}

static void kernel_io_page(struct worker *worker, struct job *job, uint64_t page_idx)
{
	enum page_result result;

	worker_intend(worker, page_idx, 1, WRITE_WHOLE);
	page_word word = page_lock(worker, page_idx);
	if (job->is_write)
		word = page_kernel_read_locked(worker, page_idx, word, &result);
	else
		page_kernel_write_locked(worker, page_idx, word);
	page_unlock(worker, page_idx, word);
}

static int give_up_run(struct worker *worker, struct job *job, const struct region *region, uint64_t page_idx,
		       uint64_t pages)
{
	int memfd = worker->guest->memory.memfd[region->memfd_idx];
	uint64_t in_region = (page_idx - region->first_page) * PAGE_BYTES;
	void *addr = region->base + in_region;
	uint64_t bytes = pages * PAGE_BYTES;

	if (job->remove_how == REMOVE_MADVISE)
		return madvise(addr, bytes, MADV_REMOVE);
	if (job->remove_how != REMOVE_DONTNEED &&
	    fallocate(memfd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
		      (off_t)(region->offset_bytes + in_region), (off_t)bytes) < 0)
		return -1;
	return job->remove_how == REMOVE_FALLOCATE ? 0 : madvise(addr, bytes, MADV_DONTNEED);
}

static page_word removed_word(page_word was, bool is_either)
{
	if (word_contents(was) == CONTENTS_UNTOUCHED)
		return was;
	if (is_either && word_contents(was) != CONTENTS_ZEROS)
		return word_make(word_version(was), CONTENTS_EITHER);
	return word_make(word_version(was), CONTENTS_ZEROS);
}

/* All pages are held while the kernel takes them away, so that nobody expects one thing or the other
 * meanwhile. */
static void remove_pages(struct worker *worker, struct job *job, uint64_t first_page, uint64_t pages)
{
	struct guest *guest = worker->guest;
	const struct region *region;

	worker_intend(worker, first_page, pages, OP_REMOVE);
	for (uint64_t i = 0; i < pages; i++)
		page_lock(worker, first_page + i);
	for (uint64_t at = 0, run; at < pages; at += run) {
		run = memory_run(&guest->memory, first_page + at, pages - at, &region);
		op_begin(worker, first_page + at);
		int rc = give_up_run(worker, job, region, first_page + at, run);
		op_end(worker);
		if (rc < 0)
			set_error(job, errno);
		for (uint64_t i = 0; i < run; i++) {
			page_word was = atomic_load(&guest->words[first_page + at + i]) & 0xffffffffffu;

			page_unlock(worker, first_page + at + i,
				    rc < 0 ? was : removed_word(was, job->is_either));
		}
	}
}

static void unmap_region(struct worker *worker, struct job *job)
{
	struct region *region = &worker->guest->memory.region[job->first_page];

	if (munmap(region->base, region->size_bytes) < 0)
		set_error(job, errno);
}

static void recover_process(struct worker *worker, int process)
{
	struct shared *shared = worker->guest->shared;

	for (int i = 0; i < MAX_WORKERS; i++) {
		struct worker_slot *slot = &shared->process[process].worker[i];
		uint32_t id = worker_id(process, i);
		uint64_t first_page = atomic_load(&slot->held_page);
		uint64_t pages = atomic_load(&slot->held_pages);

		for (uint64_t page = first_page; page < first_page + pages; page++) {
			if (word_writer(atomic_load(&worker->guest->words[page])) != id)
				continue;
			worker_intend(worker, page, 1, WRITE_WHOLE);
			page_recover(worker, page, atomic_load(&slot->held_how));
		}
		atomic_store(&slot->held_pages, 0);
		atomic_store(&slot->op_start_ns, 0);
		atomic_store(&slot->busy, 0);
	}
}

static void recover_all(struct worker *worker)
{
	struct shared *shared = worker->guest->shared;

	for (int process = 1; process < MAX_PROCESSES; process++) {
		if (atomic_load(&shared->process[process].state) != PROCESS_DYING)
			continue;
		recover_process(worker, process);
		atomic_store(&shared->process[process].state, PROCESS_DEAD);
	}
}

static void run_page(struct worker *worker, struct job *job, uint64_t page_idx)
{
	switch (atomic_load(&job->kind)) {
	case JOB_FILL:
		fill_page(worker, page_idx);
		break;
	case JOB_TOUCH:
		touch_page(worker, job, page_idx);
		break;
	case JOB_KERNEL_IO:
		kernel_io_page(worker, job, page_idx);
		break;
	case JOB_VERIFY:
		if (!job->skip_untouched || !is_untouched(worker->guest, page_idx))
			page_check(worker, page_idx);
		break;
	case JOB_CORRUPT:
		page_corrupt(worker, page_idx, job->offset_bytes);
		break;
	default:
		break;
	}
	atomic_fetch_add(&job->done_pages, 1);
}

static void run_piece(struct worker *worker, struct job *job, uint64_t first_page, uint64_t pages)
{
	switch (atomic_load(&job->kind)) {
	case JOB_REMOVE:
		remove_pages(worker, job, first_page, pages);
		break;
	case JOB_MUNMAP:
		unmap_region(worker, job);
		break;
	case JOB_RECOVER:
		recover_all(worker);
		break;
	case JOB_FORK:
		set_error(job, device_fork(worker->guest, job->id));
		break;
	case JOB_EXEC:
		set_error(job, device_exec(worker->guest));
		break;
	default:
		for (uint64_t i = 0; i < pages; i++)
			run_page(worker, job, first_page + i);
		return;
	}
	atomic_fetch_add(&job->done_pages, pages);
}

static bool is_for_first_thread(int kind)
{
	return kind == JOB_FORK || kind == JOB_EXEC;
}

static bool may_have_piece(struct job *job, const struct worker *worker)
{
	return atomic_load(&job->state) == JOB_RUNNING &&
	       atomic_load(&job->has_more[worker->guest->process]) &&
	       is_for_first_thread(atomic_load(&job->kind)) == (worker->index < 0);
}

static bool take_piece(struct worker *worker, struct job *job)
{
	int process = worker->guest->process;
	uint64_t at = atomic_fetch_add(&job->cursor[job->cursor_is_shared ? 0 : process], job->chunk_pages);
	struct job *outer = worker->job;

	if (at >= job->pages) {
		atomic_store(&job->has_more[process], false);
		return false;
	}
	uint64_t left = job->pages - at;
	worker->job = job;
	run_piece(worker, job, job->first_page + at, left < job->chunk_pages ? left : job->chunk_pages);
	worker->job = outer;
	return true;
}

/* One piece, if there is one. Active is raised before a piece is taken, so that a job never looks complete
 * meanwhile; whoever lowers it to 0 tells the control thread, which may have looked just before. The job
 * is looked at again once active is raised: before that it may have ended, and its slot be another's. */
static bool job_step(struct worker *worker, struct job *job)
{
	int process = worker->guest->process;
	bool took = false;

	if (!may_have_piece(job, worker))
		return false;
	atomic_fetch_add(&job->active[process], 1);
	if (may_have_piece(job, worker))
		took = take_piece(worker, job);
	if (atomic_fetch_sub(&job->active[process], 1) == 1)
		guest_notify(worker->guest);
	return took;
}

bool jobs_step(struct worker *worker)
{
	for (unsigned i = 0; i < JOB_SLOTS; i++)
		if (job_step(worker, &worker->guest->shared->job[i]))
			return true;
	return false;
}

void jobs_recover(struct worker *worker)
{
	job_step(worker, &worker->guest->shared->job[RECOVERY_SLOT]);
}
