/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "linux/pagemap.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/ioctl.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "base/units.h"

/* As linux/fs.h has it since 6.7; Debian 12's headers are older. */
struct scan_region {
	uint64_t start, end, categories;
};
struct scan_request {
	uint64_t size, flags, start, end, walk_end, vec, vec_len, max_pages;
	uint64_t category_inverted, category_mask, category_anyof_mask, return_mask;
};
#define SCAN_IOCTL _IOWR('f', 16, struct scan_request)
#define IS_FILE ((uint64_t)1 << 2)
#define IS_PRESENT ((uint64_t)1 << 3)
#define IS_SWAPPED ((uint64_t)1 << 4)
#define IS_ZERO_PAGE ((uint64_t)1 << 5)

#define RUNS_MAX 64

/* The fd if it does what is wanted of it; else -errno, and it is closed. */
static int checked(int fd)
{
	struct scan_request nothing = { .size = sizeof nothing, .return_mask = IS_FILE };
	int code;

	if (fd < 0)
		return -errno;
	if (ioctl(fd, SCAN_IOCTL, &nothing) >= 0)
		return fd;
	code = errno;
	close(fd);
	return -code;
}

int pagemap_of(int fd)
{
	return checked(fcntl(fd, F_DUPFD_CLOEXEC, 3));
}

int pagemap_open(pid_t pid)
{
	char path[64];

	snprintf(path, sizeof path, "/proc/%d/pagemap", (int)pid);
	return checked(open(path, O_RDONLY | O_CLOEXEC));
}

/* Categories are not returned, so that pages of several in a row are one run. Returns how many runs there
 * are; *done_addr: up to where was looked. */
static int scan(int fd, uint64_t addr, uint64_t end_addr, uint64_t pages_max, struct scan_region *runs,
		uint64_t runs_max, uint64_t *done_addr)
{
	struct scan_request request = {
		.size = sizeof request,
		.start = addr,
		.end = end_addr,
		.vec = (uintptr_t)runs,
		.vec_len = runs_max,
		.max_pages = pages_max,
		.category_inverted = IS_ZERO_PAGE,
		.category_mask = IS_ZERO_PAGE,
		.category_anyof_mask = IS_PRESENT | IS_SWAPPED,
		.return_mask = IS_FILE,
	};
	int n;

	do {
		n = ioctl(fd, SCAN_IOCTL, &request);
	} while (n < 0 && errno == EINTR);
	*done_addr = request.walk_end;
	return n < 0 ? -errno : n;
}

int pagemap_next(int fd, uint64_t addr, uint64_t end_addr, uint64_t pages_max, uint64_t *start_addr,
		 uint64_t *run_end_addr)
{
	struct scan_region run;
	uint64_t done_addr;
	int n = fd < 0 ? 0 : scan(fd, addr, end_addr, pages_max, &run, 1, &done_addr);

	if (n > 0) {
		*start_addr = run.start;
		*run_end_addr = run.end;
	}
	return n;
}

int64_t pagemap_count(int fd, uint64_t addr, uint64_t end_addr)
{
	struct scan_region runs[RUNS_MAX];
	int64_t pages = 0;

	while (addr < end_addr && fd >= 0) {
		uint64_t done_addr;
		int n = scan(fd, addr, end_addr, 0, runs, RUNS_MAX, &done_addr);

		if (n < 0)
			return n;
		for (int i = 0; i < n; i++)
			pages += (int64_t)pages_of_bytes(runs[i].end - runs[i].start);
		if (done_addr <= addr)
			break;
		addr = done_addr;
	}
	return pages;
}

int pagemap_look(int fd, uint64_t addr)
{
	struct scan_region run;
	struct scan_request request = {
		.size = sizeof request,
		.start = addr,
		.end = addr + PAGE_BYTES,
		.vec = (uintptr_t)&run,
		.vec_len = 1,
		.category_anyof_mask = IS_PRESENT | IS_SWAPPED,
		.return_mask = IS_PRESENT | IS_SWAPPED,
	};
	int n;

	if (fd < 0)
		return PAGEMAP_NOTHING;
	do {
		n = ioctl(fd, SCAN_IOCTL, &request);
	} while (n < 0 && errno == EINTR);
	if (n <= 0)
		return n < 0 ? -errno : PAGEMAP_NOTHING;
	return run.categories & IS_PRESENT ? PAGEMAP_PRESENT : PAGEMAP_SWAPPED;
}
