/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A job from the inside: what its own thread and its workers share. swap_out.c and swap_in.c are the jobs; swapper.h is what others
 * see of them. */
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
	bool thread_to_join; /* the caller's */
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
	struct memory memory; /* as it was when the job began; no region of it is removed while one runs */
	struct error error;   /* the first one; ends the job */
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

/* The job ends with this error, unless it has one already. Any thread of it. */
void job_fail(struct swapper *swapper, const struct error *error);

/* False once it has failed or was cancelled. Any thread of it. */
bool job_goes_on(struct swapper *swapper);

/* What was protected before is not protected from him: all passes are done again. */
bool job_was_joined(struct swapper *swapper);

/* Before the passes: no copy that a join has made stale is there then, and a later join shows. */
void job_begin_with_all(struct swapper *swapper);

/* Go over memory: the next window that holds data, or else of which the page map says something. False: that was the last, or the job
 * has failed. */
void job_rewind(struct swapper *swapper);
bool job_next_window(struct swapper *swapper, bool data, struct window *out);

/* Run one worker function on all workers until it returns on each. The more the storage lets overlap, the better: while one
 * chunk is written the next is read. */
void job_run_workers(struct swapper *swapper, void *(*run)(void *));

/* The jobs. */
void swap_out(struct swapper *swapper);
void swap_in(struct swapper *swapper);
void trim(struct swapper *swapper);

#endif
