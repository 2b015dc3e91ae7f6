/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Large VMs: 100 processes, 64 regions, 64 GiB that are nearly all holes. And no fd left. */
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <stdatomic.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>

#include "engine.h"
#include "harness.h"

#define FAIL(...) test_fail(__FILE__, __LINE__, __VA_ARGS__)
#define PROCESSES 100
#define REGIONS 64
#define REGION_BYTES ((uint64_t)1 << 30)
#define PAGE 4096
#define WRITTEN 8 /* pages in each region, far apart */
#define STEP_BYTES (REGION_BYTES / WRITTEN)

struct shared {
	_Atomic int uffds[PROCESSES];
	_Atomic int go;		/* so many of the processes look at all pages */
	_Atomic uint64_t right; /* pages that they found right */
};

static struct shared *shared;
static char *bases[REGIONS];
static int memfds[REGIONS];

static uint64_t wanted(int region, int i)
{
	return (uint64_t)region << 32 | (uint64_t)i << 8 | 1;
}

static void write_pages(void)
{
	for (int region = 0; region < REGIONS; region++)
		for (int i = 0; i < WRITTEN; i++)
			*(uint64_t *)(bases[region] + (uint64_t)i * STEP_BYTES) = wanted(region, i);
}

static void look(void)
{
	for (int region = 0; region < REGIONS; region++)
		for (int i = 0; i < WRITTEN; i++)
			if (*(volatile uint64_t *)(bases[region] + (uint64_t)i * STEP_BYTES) ==
			    wanted(region, i))
				atomic_fetch_add(&shared->right, 1);
}

static void be_process(int number)
{
	struct uffdio_api api = { .api = UFFD_API,
				  .features = UFFD_FEATURE_EVENT_REMOVE | UFFD_FEATURE_MISSING_SHMEM |
					      UFFD_FEATURE_PAGEFAULT_FLAG_WP |
					      UFFD_FEATURE_WP_HUGETLBFS_SHMEM };
	int uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (ioctl(uffd, UFFDIO_API, &api) != 0)
		_exit(1);
	atomic_store(&shared->uffds[number], uffd);
	while (shared->go <= number)
		poll(NULL, 0, 5);
	look();
	pause();
}

static int start_process(int number)
{
	pid_t pid = fork();
	int pidfd, uffd;

	if (pid == 0)
		be_process(number);
	CHECK_SYS(pid);
	while (shared->uffds[number] < 0) {
		CHECK(waitpid(pid, NULL, WNOHANG) == 0);
		poll(NULL, 0, 1);
	}
	pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
	uffd = (int)syscall(SYS_pidfd_getfd, pidfd, shared->uffds[number], 0);
	CHECK(uffd >= 0);
	close(pidfd);
	return uffd;
}

static void map_regions(void)
{
	int uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC);

	if (uffd < 0)
		test_skip("no userfaultfd here: %s", strerror(errno));
	close(uffd);
	shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	CHECK(shared != MAP_FAILED);
	for (int i = 0; i < PROCESSES; i++)
		shared->uffds[i] = -1;
	for (int region = 0; region < REGIONS; region++) {
		memfds[region] = memfd_create("test guest", MFD_CLOEXEC);
		CHECK(memfds[region] >= 0 && ftruncate(memfds[region], (off_t)REGION_BYTES) == 0);
		bases[region] = mmap(NULL, REGION_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE,
				     memfds[region], 0);
		CHECK(bases[region] != MAP_FAILED);
	}
}

static struct engine *create_engine(struct range *ranges)
{
	struct engine_config config = {
		.swap_dir = test_dir(), .workers = 2, .fault_threads = 2, .page_map_fd = -1, .store_fd = -1
	};
	struct engine *engine;
	struct error err;

	CHECK_OK(engine_create(&config, &engine, &err));
	for (int region = 0; region < REGIONS; region++) {
		ranges[region] =
			(struct range){ .addr = (uintptr_t)bases[region], .pages = REGION_BYTES / PAGE };
		CHECK_OK(engine_add_region(engine, memfds[region], 0, REGION_BYTES, &ranges[region].page_idx,
					   &err));
	}
	return engine;
}

static uint64_t run_job(struct engine *engine, enum job_kind job)
{
	struct swap_out_options options = { .mode = MODE_LIVE, .max_passes = 1 };
	struct pollfd waiting = { .fd = engine_notices_fd(engine), .events = POLLIN };
	struct notice notice = { 0 };
	struct error err;
	struct timespec since, now;

	clock_gettime(CLOCK_MONOTONIC, &since);
	CHECK_OK(engine_start_job(engine, job, &options, &err));
	while (notice.kind != NOTICE_JOB_DONE) {
		CHECK(poll(&waiting, 1, 60000) == 1);
		engine_take_notice(engine, &notice);
	}
	if (notice.code)
		FAIL("job: %s", notice.message);
	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)((now.tv_sec - since.tv_sec) * 1000 + (now.tv_nsec - since.tv_nsec) / 1000000);
}

static uint64_t page_map_bytes(struct engine *engine)
{
	struct stat status;

	CHECK_SYS(fstat(engine_page_map_fd(engine), &status));
	return (uint64_t)status.st_blocks * 512;
}

/* What is used costs, not what could be: 512 pages of 16 million, through 100 processes. */
TEST(a_large_sparse_vm)
{
	struct range ranges[REGIONS];
	struct engine_stats stats;
	struct engine *engine;
	struct error err;
	uint64_t out_ms, in_ms, map_bytes;
	uint32_t id;

	map_regions();
	write_pages();
	engine = create_engine(ranges);
	for (int i = 0; i < PROCESSES; i++) {
		int uffd = start_process(i);

		CHECK_OK(engine_add_process(engine, uffd, ranges, REGIONS, &id, &err));
		close(uffd);
	}
	for (int region = 0; region < REGIONS; region++)
		munmap(bases[region], REGION_BYTES);
	CHECK_OK(engine_start(engine, &err));
	out_ms = run_job(engine, JOB_SWAP_OUT);
	engine_read_stats(engine, &stats);
	CHECK_EQ(stats.swap_pages, REGIONS * WRITTEN);
	CHECK_EQ(stats.resident_pages, 0);
	CHECK_EQ(stats.processes, PROCESSES);
	map_bytes = page_map_bytes(engine);
	/* A page of words and one of hashes at each of the pages that were written, and the header. */
	CHECK(map_bytes <= (uint64_t)(2 * REGIONS * WRITTEN + 1) * PAGE);
	shared->go = 10;
	while (shared->right < 10 * REGIONS * WRITTEN)
		poll(NULL, 0, 1);
	in_ms = run_job(engine, JOB_SWAP_IN);
	shared->go = PROCESSES;
	while (shared->right < PROCESSES * REGIONS * WRITTEN)
		poll(NULL, 0, 1);
	printf("summary: 64 GiB in %d regions, %d processes: out in %llu ms, in in %llu ms, page map %llu KiB\n",
	       REGIONS, PROCESSES, (unsigned long long)out_ms, (unsigned long long)in_ms,
	       (unsigned long long)map_bytes >> 10);
	engine_destroy(engine);
}

/* Without a free fd a process is refused with the reason, and all goes on as before. */
TEST(no_fd_left)
{
	struct rlimit limit;
	struct range ranges[REGIONS];
	struct engine *engine;
	struct error err = { 0 };
	int first, second, next;
	uint32_t id;

	map_regions();
	write_pages();
	engine = create_engine(ranges);
	first = start_process(0);
	second = start_process(1);
	for (int region = 0; region < REGIONS; region++)
		munmap(bases[region], REGION_BYTES);
	CHECK_OK(engine_add_process(engine, first, ranges, REGIONS, &id, &err));
	CHECK_OK(engine_start(engine, &err));
	CHECK_SYS(getrlimit(RLIMIT_NOFILE, &limit));
	next = dup(0);
	close(next);
	CHECK_SYS(setrlimit(RLIMIT_NOFILE, &(struct rlimit){ (rlim_t)next, limit.rlim_max }));
	CHECK_EQ(engine_add_process(engine, second, ranges, REGIONS, &id, &err), -EMFILE);
	CHECK_CONTAINS(err.message, strerror(EMFILE));
	run_job(engine, JOB_SWAP_OUT);
	shared->go = 1;
	while (shared->right < REGIONS * WRITTEN)
		poll(NULL, 0, 1);
	CHECK_SYS(setrlimit(RLIMIT_NOFILE, &limit));
	CHECK_OK(engine_add_process(engine, second, ranges, REGIONS, &id, &err));
	run_job(engine, JOB_SWAP_IN);
	shared->go = 2;
	while (shared->right < 2 * REGIONS * WRITTEN)
		poll(NULL, 0, 1);
	engine_destroy(engine);
}

/* More than there is room for is refused, with the number. */
TEST(too_many_regions)
{
	struct engine_config config = {
		.swap_dir = test_dir(), .workers = 1, .fault_threads = 1, .page_map_fd = -1, .store_fd = -1
	};
	int memfd = memfd_create("test guest", MFD_CLOEXEC);
	struct engine *engine;
	struct error err = { 0 };
	uint64_t page_idx;
	int rc = 0, n = 0;

	CHECK(ftruncate(memfd, PAGE) == 0);
	CHECK_OK(engine_create(&config, &engine, &err));
	for (; n < 1000 && !rc; n++)
		rc = engine_add_region(engine, memfd, 0, PAGE, &page_idx, &err);
	CHECK_EQ(rc, -E2BIG);
	CHECK_CONTAINS(err.message, "256 regions");
	CHECK_EQ(n, 257);
	page_idx = 0;
	for (n = 0; n < 1000; n++) { /* that many at a time: what is removed makes room */
		CHECK_OK(engine_remove_region(engine, page_idx, &err));
		CHECK_OK(engine_add_region(engine, memfd, 0, PAGE, &page_idx, &err));
	}
	CHECK_EQ(engine_add_region(engine, memfd, 0, PAGE, &page_idx, &err), -E2BIG);
	engine_destroy(engine);
}
