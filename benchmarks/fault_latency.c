/* SPDX-License-Identifier: GPL-2.0-or-later */
/* How long a guest thread waits for one page, under the engine and under the smallest handlers that could do
 * the same.
 *
 *	fault_latency HANDLER PAGES seq|rnd SWAP_DIR [CONTENTS]
 *
 * HANDLER: `engine`; `engine-ram`, with the RAM tier instead of a file; `poll`: one thread in another
 * process, poll() then read(), on whatever CPU; `samecpu`: the same, bound to the CPU of the faulting thread,
 * so that no wake-up crosses CPUs: the floor. The small handlers read the page with pread() from a file in
 * SWAP_DIR and hash it, as the engine does; `samecpu-lz4` decompresses it from its own memory instead. Each
 * page is touched once; what is printed are microseconds as the touching thread sees them: p50 p90 p99 mean,
 * one line of JSON. */
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <lz4.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/hash.h"
#include "contents.h"
#include "engine.h"

#define PAGE 4096ul

struct shared {
	_Atomic uint64_t guest_addr;
	_Atomic int uffd;
	_Atomic bool go;
	double latency_us[]; /* one for each page, in the order of touching */
};

static void need(bool good, const char *what)
{
	if (good)
		return;
	perror(what);
	exit(1);
}

static double now_us(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (double)now.tv_sec * 1e6 + (double)now.tv_nsec / 1e3;
}

static void bind_to_cpu(int cpu)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	need(sched_setaffinity(0, sizeof set, &set) == 0, "sched_setaffinity");
}

static void touch_all(struct shared *shared, volatile char *guest, size_t pages, bool random)
{
	size_t *order = malloc(pages * sizeof *order);

	need(order != NULL, "malloc");
	srandom(1);
	for (size_t i = 0; i < pages; i++)
		order[i] = i;
	for (size_t i = pages - 1; random && i > 0; i--) {
		size_t j = (size_t)rand() % (i + 1), kept = order[i];

		order[i] = order[j];
		order[j] = kept;
	}
	for (size_t i = 0; i < pages; i++) {
		double since_us = now_us();

		(void)guest[order[i] * PAGE];
		shared->latency_us[i] = now_us() - since_us;
	}
	free(order);
}

/* The guest: its pages hold data, its uffd watches them. It touches all of them once it is told to go. */
static void be_guest(struct shared *shared, int memfd, size_t pages, bool random, bool bound,
		     const char *contents)
{
	struct uffdio_api api = { .api = UFFD_API,
				  .features = UFFD_FEATURE_MISSING_SHMEM | UFFD_FEATURE_PAGEFAULT_FLAG_WP |
					      UFFD_FEATURE_WP_HUGETLBFS_SHMEM };
	char *guest = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, memfd, 0);
	int uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	need(guest != MAP_FAILED && uffd >= 0 && ioctl(uffd, UFFDIO_API, &api) == 0, "guest");
	if (contents)
		fill_contents(guest, pages, contents);
	for (size_t i = 0; i < pages * PAGE / sizeof(uint64_t) && !contents; i++)
		((uint64_t *)guest)[i] = i * 0x9e3779b97f4a7c15;
	shared->uffd = uffd;
	shared->guest_addr = (uintptr_t)guest;
	while (!shared->go)
		usleep(1000);
	if (bound)
		bind_to_cpu(0);
	touch_all(shared, guest, pages, random);
	_exit(0);
}

static int fetch_uffd(struct shared *shared, pid_t pid)
{
	int pidfd = (int)syscall(SYS_pidfd_open, pid, 0), uffd;

	while (!shared->guest_addr)
		usleep(1000);
	uffd = (int)syscall(SYS_pidfd_getfd, pidfd, shared->uffd, 0);
	need(uffd >= 0, "pidfd_getfd");
	close(pidfd);
	return uffd;
}

/* Where a small handler has the guest's pages: in a file, each at its own offset, or packed by LZ4. */
struct source {
	int file;
	char **packed; /* NULL: they are in the file. */
	int *packed_bytes;
};

static void fetch_page(const struct source *source, uint64_t offset, char *page)
{
	uint64_t i = offset / PAGE;

	if (!source->packed)
		need(pread(source->file, page, PAGE, (off_t)offset) == (ssize_t)PAGE, "pread");
	else
		need(LZ4_decompress_safe(source->packed[i], page, source->packed_bytes[i], (int)PAGE) ==
			     (int)PAGE,
		     "LZ4");
}

/* The smallest handler. */
static void serve(int uffd, const struct source *source, uint64_t guest_addr, size_t pages)
{
	struct pollfd waiting = { uffd, POLLIN, 0 };
	char *page =
		mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	uint32_t sum = 0;

	for (size_t served = 0; served < pages;) {
		struct uffd_msg msg;

		need(poll(&waiting, 1, 20000) == 1, "poll");
		while (read(uffd, &msg, sizeof msg) == (ssize_t)sizeof msg) {
			uint64_t addr = msg.arg.pagefault.address & ~(PAGE - 1);
			struct uffdio_copy copy = { .dst = addr, .src = (uintptr_t)page, .len = PAGE };

			fetch_page(source, addr - guest_addr, page);
			sum += page_hash(page);
			need(ioctl(uffd, UFFDIO_COPY, &copy) == 0, "UFFDIO_COPY");
			served++;
		}
	}
	fprintf(stderr, "%s", sum == 1 ? "" : ""); /* keeps the hash from being optimised away */
}

static void pack_pages(struct source *source, int memfd, size_t pages)
{
	char page[PAGE], packed[LZ4_COMPRESSBOUND(4096)];

	source->packed = calloc(pages, sizeof *source->packed);
	source->packed_bytes = calloc(pages, sizeof *source->packed_bytes);
	need(source->packed && source->packed_bytes, "memory");
	for (size_t i = 0; i < pages; i++) {
		need(pread(memfd, page, PAGE, (off_t)(i * PAGE)) == (ssize_t)PAGE, "pread");
		source->packed_bytes[i] = LZ4_compress_default(page, packed, (int)PAGE, (int)sizeof packed);
		source->packed[i] = malloc((size_t)source->packed_bytes[i]);
		need(source->packed[i] != NULL, "memory");
		memcpy(source->packed[i], packed, (size_t)source->packed_bytes[i]);
	}
}

static void copy_pages(struct source *source, int memfd, size_t pages, const char *dir)
{
	char *block = malloc(1 << 20);

	source->file = open(dir, O_TMPFILE | O_RDWR, 0600);
	need(source->file >= 0 && block, "swap file");
	for (size_t done = 0; done < pages * PAGE; done += 1 << 20)
		need(pread(memfd, block, 1 << 20, (off_t)done) > 0 &&
			     pwrite(source->file, block, 1 << 20, (off_t)done) > 0,
		     "copy to the swap file");
	free(block);
}

/* dir NULL: the pages are packed instead. */
static void run_small_handler(struct shared *shared, pid_t pid, int memfd, size_t pages, const char *dir,
			      bool bound)
{
	int uffd = fetch_uffd(shared, pid);
	struct uffdio_register registration = { .range = { shared->guest_addr, pages * PAGE },
						.mode = UFFDIO_REGISTER_MODE_MISSING };
	struct source source = { .file = -1 };

	if (dir)
		copy_pages(&source, memfd, pages, dir);
	else
		pack_pages(&source, memfd, pages);
	need(ioctl(uffd, UFFDIO_REGISTER, &registration) == 0, "UFFDIO_REGISTER");
	need(fallocate(memfd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, (off_t)(pages * PAGE)) == 0,
	     "punch");
	if (bound)
		bind_to_cpu(0);
	shared->go = true;
	serve(uffd, &source, shared->guest_addr, pages);
}

static void wait_job(struct engine *engine)
{
	struct pollfd waiting = { engine_notices_fd(engine), POLLIN, 0 };
	struct notice notice;

	for (;;) {
		need(poll(&waiting, 1, 60000) == 1, "job");
		while (engine_take_notice(engine, &notice)) {
			if (notice.kind != NOTICE_JOB_DONE)
				continue;
			if (notice.code) {
				fprintf(stderr, "swap-out: %s\n", notice.message);
				exit(1);
			}
			return;
		}
	}
}

/* dir NULL: the RAM tier. */
static void run_engine(struct shared *shared, pid_t pid, int memfd, size_t pages, const char *dir)
{
	const char *spin = getenv("SPIN_US"), *threads = getenv("FAULT_THREADS");
	struct engine_config config = { .swap_dir = dir,
					.workers = 2,
					.page_map_fd = -1,
					.store_fd = -1,
					.tiers = !dir,
					.segments_fd = -1,
					.ram_fd = -1,
					.disk_fd = -1,
					.key_fd = -1,
					.ram_max_bytes = UINT64_MAX,
					.compress = true,
					.spin_us = spin ? (uint32_t)atoi(spin) : ENGINE_DEFAULT_SPIN_US,
					.fault_threads = threads ? (uint32_t)atoi(threads) : 0 };
	struct swap_out_options options = { .mode = MODE_LIVE, .max_passes = 1 };
	struct range range = { .pages = pages };
	struct engine *engine;
	struct error err;
	uint32_t id;
	int uffd = fetch_uffd(shared, pid);

	need(engine_create(&config, &engine, &err) == 0, "engine_create");
	need(engine_add_region(engine, memfd, 0, pages * PAGE, &range.page_idx, &err) == 0,
	     "engine_add_region");
	range.addr = shared->guest_addr;
	need(engine_add_process(engine, uffd, &range, 1, &id, &err) == 0, "engine_add_process");
	need(engine_start(engine, &err) == 0, "engine_start");
	need(engine_start_job(engine, JOB_SWAP_OUT, &options, &err) == 0, "swap-out");
	wait_job(engine);
	shared->go = true;
	waitid(P_PID, (id_t)pid, &(siginfo_t){ 0 }, WEXITED | WNOWAIT);
	if (getenv("SHOW_OWN")) {
		struct engine_stats stats;

		engine_read_stats(engine, &stats);
		fprintf(stderr, "own p50 %.1f p99 %.1f us faults %llu\n", (double)stats.fault_p50_ns / 1e3,
			(double)stats.fault_p99_ns / 1e3, (unsigned long long)stats.fault_count);
	}
	engine_destroy(engine);
}

static int by_value(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

static void report(double *latency_us, size_t pages)
{
	double sum = 0;

	for (size_t i = 0; i < pages; i++)
		sum += latency_us[i];
	qsort(latency_us, pages, sizeof *latency_us, by_value);
	printf("{\"p50_us\": %.2f, \"p90_us\": %.2f, \"p99_us\": %.2f, \"mean_us\": %.2f}\n",
	       latency_us[pages / 2], latency_us[pages * 9 / 10], latency_us[pages * 99 / 100],
	       sum / (double)pages);
}

int main(int argc, char **argv)
{
	size_t pages = argc == 5 || argc == 6 ? strtoul(argv[2], NULL, 10) : 0;
	bool bound, random, in_memory;
	struct shared *shared;
	int memfd, status;
	pid_t pid;

	if (!pages || pages % 256) {
		fprintf(stderr,
			"usage: fault_latency engine|engine-ram|poll|samecpu|samecpu-lz4 PAGES seq|rnd SWAP_DIR [CONTENTS]"
			" (PAGES: a multiple of 256)\n");
		return 2;
	}
	bound = strncmp(argv[1], "samecpu", strlen("samecpu")) == 0;
	in_memory = strcmp(argv[1], "samecpu-lz4") == 0 || strcmp(argv[1], "engine-ram") == 0;
	random = strcmp(argv[3], "rnd") == 0;
	shared = mmap(NULL, sizeof *shared + pages * sizeof(double), PROT_READ | PROT_WRITE,
		      MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	memfd = memfd_create("guest", MFD_CLOEXEC);
	need(shared != MAP_FAILED && memfd >= 0 && ftruncate(memfd, (off_t)(pages * PAGE)) == 0, "memory");
	pid = fork();
	need(pid >= 0, "fork");
	if (pid == 0)
		be_guest(shared, memfd, pages, random, bound, argv[5]);
	if (strncmp(argv[1], "engine", strlen("engine")) == 0)
		run_engine(shared, pid, memfd, pages, in_memory ? NULL : argv[4]);
	else
		run_small_handler(shared, pid, memfd, pages, in_memory ? NULL : argv[4], bound);
	need(waitpid(pid, &status, 0) == pid && WIFEXITED(status) && WEXITSTATUS(status) == 0,
	     "the guest's end");
	report(shared->latency_us, pages);
	return 0;
}
