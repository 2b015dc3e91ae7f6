/* SPDX-License-Identifier: GPL-2.0-or-later */
/* How long a guest takes until it has touched what it touches when it wakes up:
 *
 *	wake_up MODE MIB PLACE [SHAPE [THREADS]]
 *
 * The guest (wake_guest.h) has mixed contents (contents.h). MODE:
 *
 *   resident  memory was never out
 *   kernel    all was out in the kernel's swap: on zram with LZ4, or in a file
 *   demand    all was out in our store, and every page comes by a page fault
 *   around    the same, and page faults bring their neighbours, up to 64 KiB
 *   replay    the same as demand, but the record of wake-ups knows the set, and a replay begins when page faults
 *             show the wake-up
 *   both      replay, and neighbours as well
 *
 * PLACE ram: the RAM tier, or zram; else a directory: the disk tier, with nothing left on RAM, or a swap file
 * there. SHAPE set (the default): 20 % of memory, in short runs in an order that differs each time; beside:
 * the same, and now and then a page that is not in the set; all: all of memory, in address order. THREADS of
 * the guest share it, 1 by default.
 *
 * Prints JSON: first_ms of the first wake-up, of which nothing is recorded, and medians of the later ones. */
#include "rig.h"

#include <string.h>

#include "kernel_swap.h"
#include "wake_guest.h"

#define WAKE_UPS 3 /* after the first; the median counts */
#define SETTLE_MS 20
#define AROUND_PAGES 16

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

static int by_value(const void *left, const void *right)
{
	const double a = *(const double *)left, b = *(const double *)right;

	return a < b ? -1 : a > b;
}

/* Of one figure of the later wake-ups. offset: of a double in struct figures. */
static double median(const struct shared *shared, size_t offset)
{
	double values[WAKE_UPS];

	for (int i = 0; i < WAKE_UPS; i++)
		memcpy(&values[i], (const char *)&shared->figures[i + 1] + offset, sizeof *values);
	qsort(values, WAKE_UPS, sizeof *values, by_value);
	return values[WAKE_UPS / 2];
}

static void print_figures(const struct shared *shared, const struct engine_stats *stats)
{
	printf("{\"first_ms\": %.1f, \"touched_ms\": %.1f, \"p50_us\": %.1f, \"p99_us\": %.1f, "
	       "\"faults\": %llu, \"fault_p50_us\": %.1f, \"fault_p99_us\": %.1f, \"slow_faults\": %llu, "
	       "\"other_p50_us\": %.1f, \"other_p99_us\": %.1f, \"prefetched_pages\": %llu, \"record_mib\": %.1f}\n",
	       shared->figures[0].touch_us / 1000, median(shared, offsetof(struct figures, touch_us)) / 1000,
	       median(shared, offsetof(struct figures, p50_us)),
	       median(shared, offsetof(struct figures, p99_us)),
	       (unsigned long long)shared->figures[WAKE_UPS].faults,
	       median(shared, offsetof(struct figures, fault_p50_us)),
	       median(shared, offsetof(struct figures, fault_p99_us)),
	       (unsigned long long)shared->figures[WAKE_UPS].slow_n,
	       median(shared, offsetof(struct figures, other_p50_us)),
	       median(shared, offsetof(struct figures, other_p99_us)),
	       (unsigned long long)stats->prefetched_pages, (double)stats->record_bytes / (1 << 20));
}

static struct engine *engine_of(const char *mode, const char *place, int memfd, size_t pages, int uffd,
				uint64_t base_addr)
{
	bool to_disk = strcmp(place, "ram") != 0, around = !strcmp(mode, "around") || !strcmp(mode, "both");
	struct engine_config config = { .swap_dir = to_disk ? place : "/tmp",
					.workers = 3,
					.fault_around_pages = around ? AROUND_PAGES : 0,
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
	struct engine *engine = engine_with(&config, memfd, pages, uffd, base_addr);

	if (around)
		engine_set_wake_budget(engine, pages * 1000);
	return engine;
}

int main(int argc, char **argv)
{
	const char *mode = argc > 1 ? argv[1] : "", *place = argc > 3 ? argv[3] : "ram",
		   *shape = argc > 4 ? argv[4] : "set";
	bool is_kernel = !strcmp(mode, "kernel"), is_resident = !strcmp(mode, "resident"),
	     replays = !strcmp(mode, "replay") || !strcmp(mode, "both"), to_disk = strcmp(place, "ram") != 0;
	size_t pages = argc > 3 ? (size_t)atol(argv[2]) << 8 : 0;
	unsigned threads = argc > 5 ? (unsigned)atoi(argv[5]) : 1;
	struct shared *shared =
		mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	struct engine *engine = NULL;
	struct engine_stats stats = { 0 };
	int memfd = memfd_create("guest", MFD_CLOEXEC);
	pid_t pid;

	need(pages && threads && threads <= (strcmp(shape, "beside") ? THREADS_MAX : 1) &&
		     shared != MAP_FAILED && ftruncate(memfd, (off_t)(pages * PAGE)) == 0,
	     "usage");
	shared->done = UINT32_MAX;
	shared->uffd = -1;
	if (is_kernel)
		kernel_swap_open(place, 2 * pages);
	pid = fork();
	if (pid == 0) {
		if (is_kernel)
			kernel_swap_enter();
		be_guest(shared, memfd, pages, shape, threads);
	}
	kernel_swap.guest = pid;
	while (shared->done != 0)
		usleep(1000);
	if (!is_kernel && !is_resident)
		engine = engine_of(mode, place, memfd, pages, fetch_fd(pid, shared->uffd), shared->base_addr);
	for (int i = 0; i <= WAKE_UPS; i++) {
		if (is_kernel)
			kernel_swap_all_out(memfd, pages);
		else if (engine)
			all_out(engine, to_disk);
		guest_wakes(engine, shared, replays && i > 0);
		if (engine)
			engine_read_stats(engine, &stats);
	}
	print_figures(shared, &stats);
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	kernel_swap.guest = 0;
	engine_destroy(engine);
	return 0;
}
