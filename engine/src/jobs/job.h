/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A job from the inside: what its own thread and its workers share. The jobs are in swap_out.c and swap_in.c;
 * swapper.h is what others see of them. */
#ifndef VMMSWAP_JOB_H
#define VMMSWAP_JOB_H

#include <pthread.h>

#include "jobs/budget.h"
#include "jobs/evict.h"
#include "jobs/swapper.h"

struct freeze;

struct swapper {
	struct vm *vm;
	pthread_t thread;
	struct lane *lane;   /* the thread's */
	bool thread_to_join; /* belongs to the caller's thread */
	uint64_t started;    /* jobs so far; under lock */
	_Atomic uint32_t job;
	_Atomic bool cancel;
	_Atomic uint64_t progress_pages;
	struct budget budget; /* of a swap-in */
	struct swap_out_options options;
	struct pins *pins;
	_Atomic(const char *) pin_check;

	/* What the workers of a job share; under lock. */
	pthread_mutex_t lock;
	pthread_cond_t resumed;
	bool resume; /* swapper_continue() was called */
	bool frozen;
	struct freeze *freeze; /* set while workers run, if frozen */
	bool free_only;
	uint64_t joined; /* vm->joined before the first pass began */
	struct window_cursor cursor;
	/* As it was when the job began, without what was on its way out; no region of it is removed
	 * meanwhile. */
	struct memory memory;
	struct error error; /* the first one; ends the job */
	struct evict_counts counts;
	struct left left;
	uint64_t restored_pages, unreadable_pages;
};

struct worker {
	struct swapper *swapper;
	struct lane *lane;
	pthread_t thread;
	char *buffer;
};

/* End the job with this error, unless it already has one. Any thread of the job may call this. */
void job_fail(struct swapper *swapper, const struct error *error);

/* False once the job has failed or was cancelled. Any thread of the job may call this. */
bool job_goes_on(struct swapper *swapper);

/* True if a process joined since the first pass began. It may write to pages that were protected before: do
 * all passes again. */
bool job_was_joined(struct swapper *swapper);

/* Call this before the passes. It drops copies that a join made stale, and notes the count of joins, so that
 * a later one is seen. */
void job_begin_with_all(struct swapper *swapper);

/* Walk over memory: the next window that has data, or without `data` the next one that the page map has
 * records of. False if there is none, or the job has failed. */
void job_rewind(struct swapper *swapper);
bool job_next_window(struct swapper *swapper, bool data, struct window *out);

/* Run a function on all workers, `times` as many as were asked for (2 at most), and return once it has
 * returned on each. Several workers make storage faster: one window is read while another is written. */
void job_run_workers(struct swapper *swapper, size_t times, void *(*run)(void *));

/* Before a job that puts or moves pages, and after it: a limit of the store that ended it is no failure. What
 * is out stays out, and the rest stays where it is. The message is for the notice of the job's end. */
void job_forget_limit(struct swapper *swapper);
void job_note_limit(struct swapper *swapper);

/* The jobs. */
void flush(struct swapper *swapper);
void swap_out(struct swapper *swapper);
void swap_in(struct swapper *swapper);
void trim(struct swapper *swapper);

#endif
