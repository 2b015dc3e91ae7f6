/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "worker.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>

#include "job.h"

#define STACK_BYTES (256u << 10)
#define RETRY_NS 10000000u /* nothing to work on: look again */
#define PAGE_TRIES 16

static _Thread_local struct worker *this_worker;

static void on_bus_error(int signal_number)
{
	if (this_worker && this_worker->bus_error_expected) {
		this_worker->bus_error_expected = 0;
		siglongjmp(this_worker->on_bus_error, 1);
	}
	signal(signal_number, SIG_DFL); /* the same access again ends the program */
}

void workers_catch_bus_errors(void)
{
	struct sigaction action = { .sa_handler = on_bus_error, .sa_flags = SA_NODEFER };

	sigaction(SIGBUS, &action, NULL);
}

void guest_notify(const struct guest *guest)
{
	eventfd_write(guest->notify_fd, 1);
}

uint64_t worker_random(struct worker *worker)
{
	worker->random += UINT64_C(0x9e3779b97f4a7c15);
	return content_mix(worker->random);
}

void worker_init(struct worker *worker, struct guest *guest, int index)
{
	struct process_slot *process = &guest->shared->process[guest->process];

	memset(worker, 0, sizeof(*worker));
	worker->guest = guest;
	worker->index = index;
	worker->id = index < 0 ? 0 : worker_id(guest->process, index);
	worker->slot = index < 0 ? NULL : &process->worker[index];
	worker->random =
		content_mix(guest->content.seed + (uint64_t)guest->process * MAX_WORKERS) + (uint64_t)index;
	worker->pipe_fd[0] = worker->pipe_fd[1] = -1;
}

void op_begin(struct worker *worker, uint64_t page_idx)
{
	atomic_store_explicit(&worker->slot->op_page, page_idx, memory_order_relaxed);
	atomic_store_explicit(&worker->slot->op_start_ns, now_ns(), memory_order_release);
}

static void raise_to(_Atomic uint64_t *most, uint64_t value)
{
	uint64_t seen = atomic_load_explicit(most, memory_order_relaxed);

	while (value > seen && !atomic_compare_exchange_weak(most, &seen, value))
		;
}

void op_end(struct worker *worker)
{
	struct worker_slot *slot = worker->slot;
	uint64_t start_ns = atomic_load_explicit(&slot->op_start_ns, memory_order_relaxed);
	uint64_t took_ns = now_ns() - start_ns;
	uint64_t took_us = took_ns / 1000;
	unsigned bucket = took_us ? 63u - (unsigned)__builtin_clzll(took_us) : 0;

	atomic_store_explicit(&slot->op_start_ns, 0, memory_order_release);
	atomic_fetch_add_explicit(&slot->stall_count[bucket < STALL_BUCKETS ? bucket : STALL_BUCKETS - 1], 1,
				  memory_order_relaxed);
	if (start_ns >= atomic_load_explicit(&worker->guest->shared->stats_epoch_ns, memory_order_relaxed))
		raise_to(&slot->longest_ns, took_ns);
	if (worker->job)
		raise_to(&worker->job->longest_ns, took_ns);
}

void worker_intend(struct worker *worker, uint64_t page_idx, uint64_t pages, uint32_t how)
{
	atomic_store(&worker->slot->held_pages, 0);
	atomic_store(&worker->slot->held_page, page_idx);
	atomic_store(&worker->slot->held_how, how);
	atomic_store(&worker->slot->held_pages, pages);
}

/* A page that somebody has written before: work leaves untouched pages untouched. */
static bool choose_page(struct worker *worker, uint64_t *page_idx)
{
	struct guest *guest = worker->guest;
	struct shared *shared = guest->shared;
	uint64_t hot_pages = atomic_load(&shared->hot_pages);

	for (unsigned i = 0; i < PAGE_TRIES; i++) {
		uint64_t random = worker_random(worker);

		*page_idx = random % guest->memory.pages;
		if (hot_pages)
			*page_idx = (atomic_load(&shared->hot_first) +
				     random % hot_pages * atomic_load(&shared->hot_stride)) %
				    guest->memory.pages;
		if (word_contents(atomic_load(&guest->words[*page_idx])) != CONTENTS_UNTOUCHED)
			return true;
	}
	return false;
}

static void work_kernel(struct worker *worker, uint64_t page_idx)
{
	enum page_result result;
	page_word word;

	worker_intend(worker, page_idx, 1, WRITE_WHOLE);
	if (!page_trylock(worker, page_idx, &word))
		return;
	if (worker_random(worker) & 1)
		word = page_kernel_read_locked(worker, page_idx, word, &result);
	else
		page_kernel_write_locked(worker, page_idx, word);
	page_unlock(worker, page_idx, word);
}

/* Half of the writes look at the old bytes first, the others meet the page without a read before. */
static void work_write(struct worker *worker, uint64_t page_idx)
{
	uint64_t random = worker_random(worker);
	enum write_how how = random & 6 ? WRITE_PART : WRITE_WHOLE;
	enum page_result result;
	page_word word;

	worker_intend(worker, page_idx, 1, how);
	if (!page_trylock(worker, page_idx, &word))
		return;
	if (random & 1)
		page_check_locked(worker, page_idx, word);
	word = page_write_locked(worker, page_idx, word, how, &result);
	page_unlock(worker, page_idx, word);
}

static bool is_early(struct worker *worker, uint32_t seen_wake)
{
	struct shared *shared = worker->guest->shared;
	uint64_t rate = atomic_load(&shared->rate);

	if (!rate)
		return false;
	uint64_t now = now_ns();
	if (now < worker->next_op_ns) {
		futex_wait(&shared->wake, seen_wake, worker->next_op_ns - now);
		return true;
	}
	/* After a stall, go on at the rate; do not catch up. */
	uint64_t step_ns = 1000000000u / rate;
	worker->next_op_ns =
		worker->next_op_ns + step_ns > now ? worker->next_op_ns + step_ns : now + step_ns;
	return false;
}

static void work_step(struct worker *worker, uint32_t seen_wake)
{
	struct shared *shared = worker->guest->shared;
	uint64_t page_idx;

	if (is_early(worker, seen_wake))
		return;
	if (!choose_page(worker, &page_idx)) {
		futex_wait(&shared->wake, seen_wake, RETRY_NS);
		return;
	}
	uint64_t percent = worker_random(worker) % 100;
	uint32_t kernel_percent = atomic_load(&shared->kernel_percent);
	if (percent < kernel_percent)
		work_kernel(worker, page_idx);
	else if (percent < kernel_percent + atomic_load(&shared->write_percent))
		work_write(worker, page_idx);
	else
		page_check(worker, page_idx);
}

/* Before an exec this process's workers stop for good. The first thread waits for busy to fall. */
static void park(struct worker *worker)
{
	struct shared *shared = worker->guest->shared;

	atomic_store(&worker->slot->busy, 0);
	atomic_fetch_add(&shared->wake, 1);
	futex_wake_all(&shared->wake);
	for (;;)
		pause();
}

static void *worker_main(void *arg)
{
	struct worker *worker = arg;
	struct shared *shared = worker->guest->shared;
	struct process_slot *process = &shared->process[worker->guest->process];

	this_worker = worker;
	for (;;) {
		uint32_t seen_wake = atomic_load(&shared->wake);

		atomic_store(&worker->slot->busy, 1);
		if (atomic_load(&process->state) == PROCESS_SILENT)
			park(worker);
		if (jobs_step(worker))
			continue;
		if (atomic_load(&shared->working)) {
			work_step(worker, seen_wake);
			continue;
		}
		atomic_store(&worker->slot->busy, 0);
		if (atomic_load(&shared->quiesce_waiters))
			guest_notify(worker->guest);
		futex_wait(&shared->wake, seen_wake, 0);
	}
	return NULL;
}

static int start_one(struct guest *guest, int index, const pthread_attr_t *attr)
{
	struct worker *worker = malloc(sizeof(*worker));
	pthread_t thread;

	if (!worker)
		return -ENOMEM;
	worker_init(worker, guest, index);
	if (pipe2(worker->pipe_fd, O_CLOEXEC | O_NONBLOCK) < 0) {
		int err = errno;
		free(worker);
		return -err;
	}
	atomic_store(&worker->slot->busy, 1);
	int err = pthread_create(&thread, attr, worker_main, worker); /* owns worker from here, for ever */
	if (err) {
		atomic_store(&worker->slot->busy, 0);
		close(worker->pipe_fd[0]);
		close(worker->pipe_fd[1]);
		free(worker);
		return -err;
	}
	pthread_detach(thread);
	return 0;
}

int workers_start(struct guest *guest, unsigned workers)
{
	pthread_attr_t attr;
	int rc = 0;

	pthread_attr_init(&attr);
	pthread_attr_setstacksize(&attr, STACK_BYTES);
	for (unsigned i = 0; i < workers && rc == 0; i++)
		rc = start_one(guest, (int)i, &attr);
	pthread_attr_destroy(&attr);
	return rc;
}
