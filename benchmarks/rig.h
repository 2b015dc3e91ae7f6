/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What the benchmark programs share: time, failure, a guest's uffd, waiting for the engine's jobs. */
#ifndef VMMSWAP_BENCHMARK_RIG_H
#define VMMSWAP_BENCHMARK_RIG_H

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "engine.h"

#define PAGE 4096ul

static inline void need(bool good, const char *what)
{
	if (good)
		return;
	perror(what);
	exit(1);
}

static inline double now_us(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (double)now.tv_sec * 1e6 + (double)now.tv_nsec / 1e3;
}

static inline int open_uffd(void)
{
	struct uffdio_api api = { .api = UFFD_API,
				  .features = UFFD_FEATURE_MISSING_SHMEM | UFFD_FEATURE_PAGEFAULT_FLAG_WP |
					      UFFD_FEATURE_WP_HUGETLBFS_SHMEM };
	int uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);

	need(uffd >= 0 && ioctl(uffd, UFFDIO_API, &api) == 0, "userfaultfd");
	return uffd;
}

/* Incompressible, and no page like another. */
static inline void fill(uint64_t *words, size_t pages)
{
	uint64_t state = 0x9e3779b97f4a7c15;

	for (size_t i = 0; i < pages * PAGE / sizeof *words; i++) {
		state ^= state << 13;
		state ^= state >> 7;
		state ^= state << 17;
		words[i] = state;
	}
}

static inline int fetch_fd(pid_t pid, int fd)
{
	int pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
	int fetched = (int)syscall(SYS_pidfd_getfd, pidfd, fd, 0);

	need(fetched >= 0, "pidfd_getfd");
	close(pidfd);
	return fetched;
}

/* An engine that serves one process's mapping of all of memfd; -1: of its private memory. */
static inline struct engine *engine_with(const struct engine_config *config, int memfd, size_t pages,
					 int uffd, uint64_t addr)
{
	struct range range = { .addr = addr, .pages = pages };
	struct engine *engine;
	struct error err;
	uint32_t id;

	if (engine_create(config, &engine, &err) ||
	    (memfd < 0 ? engine_add_private_region(engine, addr, pages * PAGE, &range.page_idx, &err) :
			 engine_add_region(engine, memfd, 0, pages * PAGE, &range.page_idx, &err)) ||
	    engine_add_process(engine, uffd, &range, 1, &id, &err) || engine_start(engine, &err)) {
		fprintf(stderr, "engine: %s\n", err.message);
		exit(1);
	}
	return engine;
}

static inline struct engine *engine_for(int memfd, size_t pages, int uffd, uint64_t addr,
					const char *swap_dir)
{
	struct engine_config config = {
		.swap_dir = swap_dir, .workers = 3, .page_map_fd = -1, .store_fd = -1
	};

	return engine_with(&config, memfd, pages, uffd, addr);
}

/* Run a job to its end; its duration in microseconds. */
static inline double run_job(struct engine *engine, uint32_t job, uint32_t mode)
{
	struct swap_out_options options = { .mode = mode,
					    .max_passes = 1,
					    .freeze_timeout_ms = 10000,
					    .check_pins = getenv("CHECK_PINS") != NULL,
					    .pins = { .allow_bpf = true } };
	struct pollfd waiting = { engine_notices_fd(engine), POLLIN, 0 };
	double since_us = now_us();
	struct notice notice;
	struct error err;

	if (engine_start_job(engine, job, &options, &err)) {
		fprintf(stderr, "job: %s\n", err.message);
		exit(1);
	}
	for (;;) {
		need(poll(&waiting, 1, 300000) == 1, "waiting for the job");
		while (engine_take_notice(engine, &notice)) {
			if (notice.kind != NOTICE_JOB_DONE)
				continue;
			if (notice.code) {
				fprintf(stderr, "job: %s\n", notice.message);
				exit(1);
			}
			return now_us() - since_us;
		}
	}
}

#endif
