/* SPDX-License-Identifier: GPL-2.0-or-later */
/* How long a guest takes until it has touched what it touches when it wakes up:
 *
 *	wake_up MODE MIB SWAP_DIR
 *
 * 20 % of the guest's memory (contents.h: mixed) are touched once, in short runs in an order that differs
 * each time, with 1 us of work between two. MODE:
 *
 *   resident  memory was never out
 *   demand    all was out, and every page comes by a page fault
 *   replay    the same, but the record of wake-ups knows the set, and a replay begins when page faults show the wake-up
 *
 * SWAP_DIR ram: the RAM tier; else a directory: the disk tier, with nothing left on RAM. Prints JSON. */
#include "rig.h"

#include <string.h>

#include "contents.h"

#define RUN_PAGES_MAX 8
#define WAKE_UPS 3 /* the median counts */
#define SETTLE_MS 20

struct shared {
	_Atomic uint32_t order, done; /* the guest carries out order number `order`: touch all of its set */
	_Atomic int uffd;
	_Atomic uint64_t base_addr;
	double touch_us[WAKE_UPS + 2];
	double p50_us[WAKE_UPS + 2], p99_us[WAKE_UPS + 2];
};

static uint64_t next_random(uint64_t *seed)
{
	*seed ^= *seed << 13;
	*seed ^= *seed >> 7;
	*seed ^= *seed << 17;
	return *seed;
}

struct run {
	uint32_t page, pages;
};

/* The same runs always: a fifth of memory. Returns how many. */
static size_t choose_runs(struct run *runs, size_t pages)
{
	uint64_t seed = 88172645463325252u;
	size_t n = 0, at = 0;

	while (at + 5 * RUN_PAGES_MAX < pages) {
		uint32_t length = 1 + (uint32_t)(next_random(&seed) % RUN_PAGES_MAX);

		runs[n++] = (struct run){ (uint32_t)(at + next_random(&seed) % (4 * length + 1)), length };
		at += 5 * length;
	}
	return n;
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

static void work_1_us(void)
{
	double until_us = now_us() + 1;

	while (now_us() < until_us)
		;
}

static int by_size(const void *left, const void *right)
{
	const float a = *(const float *)left, b = *(const float *)right;

	return a < b ? -1 : a > b;
}

static void touch_set(struct shared *shared, volatile char *guest, struct run *runs, size_t n,
		      uint32_t number, float *took_us)
{
	double since_us = now_us();
	size_t touched = 0;

	for (size_t i = 0; i < n; i++) {
		for (uint32_t k = 0; k < runs[i].pages; k++) {
			double from_us = now_us();

			(void)guest[(runs[i].page + k) * PAGE];
			took_us[touched++] = (float)(now_us() - from_us);
			work_1_us();
		}
	}
	shared->touch_us[number] = now_us() - since_us;
	qsort(took_us, touched, sizeof *took_us, by_size);
	shared->p50_us[number] = took_us[touched / 2];
	shared->p99_us[number] = took_us[touched * 99 / 100];
}

static void be_guest(struct shared *shared, int memfd, size_t pages)
{
	char *guest = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, memfd, 0);
	struct run *runs = calloc(pages, sizeof *runs);
	float *took_us = calloc(pages, sizeof *took_us);
	size_t n = choose_runs(runs, pages);

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	need(guest != MAP_FAILED && runs && took_us, "guest");
	fill_contents(guest, pages, "mixed");
	shared->base_addr = (uint64_t)(uintptr_t)guest;
	shared->uffd = open_uffd();
	for (uint32_t number = 0;; number++) {
		shared->done = number;
		while (shared->order == number)
			usleep(200);
		shuffle(runs, n, number + 1);
		touch_set(shared, guest, runs, n, number, took_us);
	}
}

static void wake(struct engine *engine, bool is_ordered)
{
	struct error err;

	if (engine_wake(engine, is_ordered, &err)) {
		fprintf(stderr, "wake: %s\n", err.message);
		exit(1);
	}
}

/* Until the guest has touched its set; as the monitor does, start a replay when page faults show the
 * wake-up. */
static void guest_wakes(struct engine *engine, struct shared *shared, bool replays)
{
	uint32_t order = ++shared->order;
	struct notice notice;

	while (shared->done != order) {
		struct pollfd waiting = { engine ? engine_notices_fd(engine) : -1, POLLIN, 0 };

		poll(&waiting, 1, 1);
		while (engine && engine_take_notice(engine, &notice))
			if (notice.kind == NOTICE_WAKING && replays)
				wake(engine, false);
	}
	if (engine) {
		poll(NULL, 0, SETTLE_MS);
		engine_settle_wake(engine);
	}
}

static void all_out(struct engine *engine, bool to_disk)
{
	struct error err;

	run_job(engine, JOB_SWAP_OUT, MODE_LIVE);
	while (to_disk && engine_flush_step(engine, &err) == 1)
		;
}

static double median(double *values)
{
	for (int i = 0; i < WAKE_UPS; i++)
		for (int k = i + 1; k < WAKE_UPS; k++)
			if (values[k] < values[i]) {
				double other = values[i];

				values[i] = values[k];
				values[k] = other;
			}
	return values[WAKE_UPS / 2];
}

int main(int argc, char **argv)
{
	bool resident = argc == 4 && !strcmp(argv[1], "resident"),
	     replays = argc == 4 && !strcmp(argv[1], "replay");
	size_t pages = argc == 4 ? (size_t)atol(argv[2]) << 8 : 0;
	bool to_disk = argc == 4 && strcmp(argv[3], "ram") != 0;
	struct engine_config config = { .swap_dir = to_disk ? argv[3] : "/tmp",
					.workers = 3,
					.page_map_fd = -1,
					.store_fd = -1,
					.wake_fd = -1,
					.tiers = true,
					.segments_fd = -1,
					.ram_fd = -1,
					.disk_fd = -1,
					.key_fd = -1,
					.has_disk = to_disk,
					.compress = true,
					.encrypt = true,
					.ram_max_bytes = pages * PAGE };
	struct shared *shared =
		mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	struct engine *engine = NULL;
	struct engine_stats stats = { 0 };
	int memfd = memfd_create("guest", MFD_CLOEXEC);
	pid_t pid;

	need(pages && shared != MAP_FAILED && ftruncate(memfd, (off_t)(pages * PAGE)) == 0, "usage");
	shared->done = UINT32_MAX;
	shared->uffd = -1;
	pid = fork();
	if (pid == 0)
		be_guest(shared, memfd, pages);
	while (shared->done != 0)
		usleep(1000);
	if (!resident) {
		engine = engine_with(&config, memfd, pages, fetch_fd(pid, shared->uffd), shared->base_addr);
		all_out(engine, to_disk);
	}
	guest_wakes(engine, shared, false); /* learned from, or warmed up */
	for (int i = 0; i < WAKE_UPS; i++) {
		if (engine)
			all_out(engine, to_disk);
		guest_wakes(engine, shared, replays);
	}
	if (engine)
		engine_read_stats(engine, &stats);
	printf("{\"touched_ms\": %.1f, \"p50_us\": %.1f, \"p99_us\": %.1f, \"set_pages\": %llu, \"prefetched_pages\": %llu}\n",
	       median(shared->touch_us + 1) / 1000, median(shared->p50_us + 1), median(shared->p99_us + 1),
	       (unsigned long long)stats.wake_set_pages, (unsigned long long)stats.prefetched_pages);
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	engine_destroy(engine);
	return 0;
}
