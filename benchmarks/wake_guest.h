/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The guest of wake_up.c: a process that touches the same part of its memory once each time that it is told
 * to, in an order that differs each time, with 1 us of work between two touches. */
#ifndef VMMSWAP_BENCHMARK_WAKE_GUEST_H
#define VMMSWAP_BENCHMARK_WAKE_GUEST_H

#include "rig.h"

#include <pthread.h>
#include <string.h>
#include <sys/resource.h>

#include "contents.h"

#define RUN_PAGES_MAX 8
#define TOUCHES_MAX 8 /* how often */
#define THREADS_MAX 64
#define SLOW_US 100
#define OTHERS_RUNS 4 /* a page outside of the set for so many runs in it */

struct figures {
	double other_p50_us, other_p99_us; /* of pages that are not in the set */
	double touch_us;		   /* until all was touched */
	double p50_us, p99_us;		   /* of all touches */
	double fault_p50_us, fault_p99_us; /* of those that were page faults */
	uint64_t faults, slow_n;	   /* of these, took longer than SLOW_US */
};

struct shared {
	_Atomic uint32_t order, done; /* the guest carries out order number `order`: touch all of its set */
	_Atomic int uffd;
	_Atomic uint64_t base_addr;
	struct figures figures[TOUCHES_MAX];
};

struct run {
	uint32_t page, pages;
};

struct guest {
	struct shared *shared;
	volatile char *memory;
	size_t pages;
	unsigned threads;
	struct run *runs;
	size_t runs_n;
	float *took_us, *fault_us, *other_us;
	uint32_t *others; /* pages that are not in the set, in random order */
	size_t others_n, next_other;
	_Atomic size_t next_run, touched, faults;
	size_t others_touched; /* by this order */
};

static uint64_t next_random(uint64_t *seed)
{
	*seed ^= *seed << 13;
	*seed ^= *seed >> 7;
	*seed ^= *seed << 17;
	return *seed;
}

/* The same runs always: a fifth of memory. */
static void choose_set(struct guest *guest)
{
	uint64_t seed = 88172645463325252u;

	for (size_t at = 0; at + 5 * RUN_PAGES_MAX < guest->pages;) {
		uint32_t length = 1 + (uint32_t)(next_random(&seed) % RUN_PAGES_MAX);

		guest->runs[guest->runs_n++] =
			(struct run){ (uint32_t)(at + next_random(&seed) % (4 * length + 1)), length };
		at += 5 * length;
	}
}

/* Pages of no run, in random order. Each is touched once at most: then it is in the set. */
static void choose_others(struct guest *guest)
{
	bool *in_set = calloc(guest->pages, sizeof *in_set);
	uint64_t seed = 88172645463325252u;

	need(in_set, "guest");
	for (size_t i = 0; i < guest->runs_n; i++)
		for (uint32_t k = 0; k < guest->runs[i].pages; k++)
			in_set[guest->runs[i].page + k] = true;
	for (size_t page = 0; page < guest->pages; page++)
		if (!in_set[page])
			guest->others[guest->others_n++] = (uint32_t)page;
	for (size_t i = guest->others_n; i > 1; i--) {
		size_t k = next_random(&seed) % i;
		uint32_t other = guest->others[k];

		guest->others[k] = guest->others[i - 1];
		guest->others[i - 1] = other;
	}
	free(in_set);
}

/* All of memory, in address order. */
static void choose_all(struct guest *guest)
{
	for (size_t at = 0; at < guest->pages; at += RUN_PAGES_MAX)
		guest->runs[guest->runs_n++] = (struct run){ (uint32_t)at, RUN_PAGES_MAX };
}

static void shuffle(struct run *runs, size_t n, uint64_t seed)
{
	seed = seed * 0x9e3779b97f4a7c15u | 1;
	for (size_t i = n; i > 1; i--) {
		size_t k = next_random(&seed) % i;
		struct run other = runs[k];

		runs[k] = runs[i - 1];
		runs[i - 1] = other;
	}
}

/* Of the calling thread. The kernel's count: a thread that only had to wait for its turn on a processor
 * raised none. */
static long page_faults(void)
{
	struct rusage usage;

	getrusage(RUSAGE_THREAD, &usage);
	return usage.ru_minflt + usage.ru_majflt;
}

static void work_until(double until_us)
{
	while (now_us() < until_us)
		;
}

static int by_size(const void *left, const void *right)
{
	const float a = *(const float *)left, b = *(const float *)right;

	return a < b ? -1 : a > b;
}

static void touch_other(struct guest *guest)
{
	double from_us = now_us();

	(void)guest->memory[guest->others[guest->next_other++] * PAGE];
	guest->other_us[guest->others_touched++] = (float)(now_us() - from_us);
}

static void *touch(void *argument)
{
	struct guest *guest = argument;
	long faults = page_faults();
	size_t i;

	while ((i = atomic_fetch_add(&guest->next_run, 1)) < guest->runs_n) {
		struct run run = guest->runs[i];

		if (i % OTHERS_RUNS == 0 && guest->next_other < guest->others_n) {
			touch_other(guest);
			faults = page_faults();
		}
		for (uint32_t k = 0; k < run.pages; k++) {
			double from_us = now_us(), until_us;
			long faults_before = faults;

			(void)guest->memory[(run.page + k) * PAGE];
			until_us = now_us();
			faults = page_faults();
			guest->took_us[atomic_fetch_add(&guest->touched, 1)] = (float)(until_us - from_us);
			if (faults != faults_before)
				guest->fault_us[atomic_fetch_add(&guest->faults, 1)] =
					(float)(until_us - from_us);
			work_until(until_us + 1);
		}
	}
	return NULL;
}

static void touch_all(struct guest *guest, struct figures *out)
{
	pthread_t threads[THREADS_MAX];
	double since_us = now_us();
	size_t n, faults_n;

	guest->next_run = guest->touched = guest->faults = guest->others_touched = 0;
	for (unsigned i = 1; i < guest->threads; i++)
		need(pthread_create(&threads[i], NULL, touch, guest) == 0, "pthread_create");
	touch(guest);
	for (unsigned i = 1; i < guest->threads; i++)
		pthread_join(threads[i], NULL);
	out->touch_us = now_us() - since_us;
	n = guest->touched;
	faults_n = guest->faults;
	qsort(guest->took_us, n, sizeof *guest->took_us, by_size);
	qsort(guest->fault_us, faults_n, sizeof *guest->fault_us, by_size);
	out->p50_us = guest->took_us[n / 2];
	out->p99_us = guest->took_us[n * 99 / 100];
	out->faults = out->slow_n = faults_n;
	while (out->slow_n && guest->fault_us[faults_n - out->slow_n] < SLOW_US)
		out->slow_n--;
	out->fault_p50_us = faults_n ? guest->fault_us[faults_n / 2] : 0;
	out->fault_p99_us = faults_n ? guest->fault_us[faults_n * 99 / 100] : 0;
	n = guest->others_touched;
	qsort(guest->other_us, n, sizeof *guest->other_us, by_size);
	out->other_p50_us = n ? guest->other_us[n / 2] : 0;
	out->other_p99_us = n ? guest->other_us[n * 99 / 100] : 0;
}

/* Never returns. shape: "set", a fifth of memory in short runs; "beside", the same, and now and then a page
 * outside of it, by one thread; or "all", in address order. */
static void be_guest(struct shared *shared, int memfd, size_t pages, const char *shape, unsigned threads)
{
	struct guest guest = { .shared = shared, .pages = pages, .threads = threads };
	bool all = !strcmp(shape, "all");

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	guest.runs = calloc(pages, sizeof *guest.runs);
	guest.took_us = calloc(pages, sizeof *guest.took_us);
	guest.fault_us = calloc(pages, sizeof *guest.fault_us);
	guest.other_us = calloc(pages, sizeof *guest.other_us);
	guest.others = calloc(pages, sizeof *guest.others);
	/* what the kernel's swap must not take: it is the VMM's, not the guest's */
	need(guest.runs && guest.took_us && guest.fault_us && guest.other_us && guest.others &&
		     mlockall(MCL_CURRENT) == 0,
	     "guest");
	guest.memory = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, memfd, 0);
	need(guest.memory != MAP_FAILED, "guest");
	(all ? choose_all : choose_set)(&guest);
	if (!strcmp(shape, "beside"))
		choose_others(&guest);
	fill_contents((char *)guest.memory, pages, "mixed");
	shared->base_addr = (uint64_t)(uintptr_t)guest.memory;
	shared->uffd = open_uffd();
	for (uint32_t number = 0;; number++) {
		shared->done = number;
		while (shared->order == number)
			usleep(200);
		if (!all)
			shuffle(guest.runs, guest.runs_n, number + 1);
		touch_all(&guest, &shared->figures[number]);
	}
}

#endif
