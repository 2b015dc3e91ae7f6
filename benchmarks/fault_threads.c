/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Many threads of a guest touch random pages that are out, and what the storage alone gives to as many
 * readers.
 *
 *	fault_threads engine PAGES THREADS SWAP_DIR	pages a second that the threads get
 *	fault_threads pool PAGES THREADS SWAP_DIR	the same, with threads that read in place of io_uring
 *	fault_threads disk PAGES THREADS SWAP_DIR	as many threads read random pages of a file there, with O_DIRECT
 *
 * Each page is touched, or read, once. One line of JSON; latencies as the threads see them. FAULT_THREADS=:
 * the engine's threads. */
#include <errno.h>
#include <pthread.h>
#include <string.h>

#include "rig.h"

#define THREADS_MAX 256

struct shared {
	_Atomic uint64_t guest_addr;
	_Atomic int uffd;
	_Atomic bool go;
	double took_us;
	double latency_us[]; /* one for each page */
};

static struct shared *shared;
static size_t pages, threads;
static uint32_t *order;
static char *guest; /* in the guest */
static int file;    /* of disk; -1: guest */

static void make_order(void)
{
	order = malloc(pages * sizeof *order);
	need(order != NULL, "malloc");
	srandom(1);
	for (size_t i = 0; i < pages; i++)
		order[i] = (uint32_t)i;
	for (size_t i = pages - 1; i > 0; i--) {
		size_t j = (size_t)random() % (i + 1);
		uint32_t kept = order[i];

		order[i] = order[j];
		order[j] = kept;
	}
}

/* Thread t has every threads-th page of the order. */
static void *touch(void *argument)
{
	size_t first = (size_t)(uintptr_t)argument;
	char *page = aligned_alloc(PAGE, PAGE);

	for (size_t i = first; i < pages; i += threads) {
		double since_us = now_us();

		if (file >= 0)
			need(pread(file, page, PAGE, (off_t)(order[i] * PAGE)) == (ssize_t)PAGE, "pread");
		else
			(void)*(volatile char *)(guest + order[i] * PAGE);
		shared->latency_us[i] = now_us() - since_us;
	}
	free(page);
	return NULL;
}

static void touch_all(void)
{
	pthread_t all[THREADS_MAX];
	double since_us = now_us();

	for (size_t i = 0; i < threads; i++)
		need(pthread_create(&all[i], NULL, touch, (void *)(uintptr_t)i) == 0, "pthread_create");
	for (size_t i = 0; i < threads; i++)
		pthread_join(all[i], NULL);
	shared->took_us = now_us() - since_us;
}

static void be_guest(int memfd)
{
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	guest = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, memfd, 0);
	need(guest != MAP_FAILED, "mmap");
	fill((uint64_t *)(void *)guest, pages);
	shared->uffd = open_uffd();
	shared->guest_addr = (uintptr_t)guest;
	while (!shared->go)
		usleep(1000);
	touch_all();
	_exit(0);
}

static void run_engine(const char *dir, bool no_uring)
{
	const char *fault_threads = getenv("FAULT_THREADS");
	struct engine_config config = { .swap_dir = dir,
					.workers = 3,
					.page_map_fd = -1,
					.store_fd = -1,
					.no_uring = no_uring,
					.fault_threads = fault_threads ? (uint32_t)atoi(fault_threads) : 0 };
	int memfd = memfd_create("guest", MFD_CLOEXEC), status;
	struct range range = { .pages = pages };
	struct engine *engine;
	struct error err;
	uint32_t id;
	pid_t pid;

	need(memfd >= 0 && ftruncate(memfd, (off_t)(pages * PAGE)) == 0, "memfd");
	pid = fork();
	need(pid >= 0, "fork");
	if (pid == 0)
		be_guest(memfd);
	while (!shared->guest_addr)
		usleep(1000);
	range.addr = shared->guest_addr;
	if (engine_create(&config, &engine, &err) ||
	    engine_add_region(engine, memfd, 0, pages * PAGE, &range.page_idx, &err) ||
	    engine_add_process(engine, fetch_fd(pid, shared->uffd), &range, 1, &id, &err) ||
	    engine_start(engine, &err)) {
		fprintf(stderr, "engine: %s\n", err.message);
		exit(1);
	}
	run_job(engine, JOB_SWAP_OUT, MODE_LIVE);
	shared->go = true;
	need(waitpid(pid, &status, 0) == pid && WIFEXITED(status) && WEXITSTATUS(status) == 0,
	     "the guest's end");
	engine_destroy(engine);
}

static void run_disk(const char *dir)
{
	char *block = aligned_alloc(PAGE, 1 << 20);

	file = open(dir, O_TMPFILE | O_RDWR | O_DIRECT, 0600);
	if (file < 0)
		file = open(dir, O_TMPFILE | O_RDWR, 0600);
	need(file >= 0 && block, "file");
	fill((uint64_t *)(void *)block, (1 << 20) / PAGE);
	for (size_t done = 0; done < pages * PAGE; done += 1 << 20)
		need(pwrite(file, block, 1 << 20, (off_t)done) == 1 << 20, "pwrite");
	touch_all();
	free(block);
}

static int by_value(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

int main(int argc, char **argv)
{
	const char *what = argc == 5 ? argv[1] : "";

	pages = argc == 5 ? strtoul(argv[2], NULL, 10) : 0;
	threads = argc == 5 ? strtoul(argv[3], NULL, 10) : 0;
	if (!pages || pages % 256 || !threads || threads > THREADS_MAX ||
	    (strcmp(what, "engine") && strcmp(what, "pool") && strcmp(what, "disk"))) {
		fprintf(stderr,
			"usage: fault_threads engine|pool|disk PAGES THREADS SWAP_DIR (PAGES: a multiple of 256)\n");
		return 2;
	}
	shared = mmap(NULL, sizeof *shared + pages * sizeof(double), PROT_READ | PROT_WRITE,
		      MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	need(shared != MAP_FAILED, "mmap");
	file = -1;
	make_order();
	if (strcmp(what, "disk") == 0)
		run_disk(argv[4]);
	else
		run_engine(argv[4], strcmp(what, "pool") == 0);
	qsort(shared->latency_us, pages, sizeof(double), by_value);
	printf("{\"pages_per_s\": %.0f, \"p50_us\": %.1f, \"p99_us\": %.1f}\n",
	       (double)pages / shared->took_us * 1e6, shared->latency_us[pages / 2],
	       shared->latency_us[pages * 99 / 100]);
	return 0;
}
