/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The running kernel's own swap as a rival: a swap area of our own, and a memory cgroup of our own that is
 * emptied into it. All is removed as the program ends, also if it fails.
 *
 * The area comes first for all of the host while it is there: nothing else of the host must be short of
 * memory. */
#ifndef VMMSWAP_BENCHMARK_KERNEL_SWAP_H
#define VMMSWAP_BENCHMARK_KERNEL_SWAP_H

#include <errno.h>
#include <linux/limits.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/swap.h>

#include "zram.h"

#define SWAP_PRIORITY 32000
#define EMPTY_TRIES 100

static struct {
	pid_t owner;
	char area[PATH_MAX], group[PATH_MAX];
	bool is_on, is_v1;
	pid_t guest;
} kernel_swap;

static void swap_write(const char *folder, const char *name, const char *text)
{
	char path[PATH_MAX + 64];
	int fd;

	snprintf(path, sizeof path, "%s/%s", folder, name);
	fd = open(path, O_WRONLY | O_CLOEXEC);
	need(fd >= 0, path);
	/* EAGAIN: memory.reclaim found less than it was asked for */
	need(write(fd, text, strlen(text)) == (ssize_t)strlen(text) || errno == EAGAIN, path);
	close(fd);
}

static void end(int signal_number)
{
	exit(128 + signal_number);
}

static void kernel_swap_remove(void)
{
	if (getpid() != kernel_swap.owner)
		return;
	if (kernel_swap.guest > 0) {
		kill(kernel_swap.guest, SIGKILL);
		waitpid(kernel_swap.guest, NULL, 0);
	}
	if (kernel_swap.is_on && swapoff(kernel_swap.area))
		perror(kernel_swap.area);
	unlink(kernel_swap.area);
	if (*kernel_swap.group && rmdir(kernel_swap.group))
		perror(kernel_swap.group);
}

/* What mkswap(8) writes: the header of version 1, on the area's first page. */
static void write_header(int fd, size_t pages)
{
	static _Alignas(4096) char page[PAGE];
	uint32_t header[2] = { 1, (uint32_t)pages - 1 }; /* version, last page */

	memcpy(page + 1024, header, sizeof header);
	memcpy(page + PAGE - 10, "SWAPSPACE2", 10);
	need(pwrite(fd, page, PAGE, 0) == (ssize_t)PAGE && fsync(fd) == 0, "the header of the swap area");
	close(fd);
}

static void make_area(const char *place, size_t pages)
{
	char text[64];
	unsigned major_n, minor_n;
	int fd;

	if (strcmp(place, "ram") != 0) {
		snprintf(kernel_swap.area, sizeof kernel_swap.area, "%s/vmmswap-bench-%d.swap", place,
			 (int)getpid());
		fd = open(kernel_swap.area, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
		need(fd >= 0 && posix_fallocate(fd, 0, (off_t)(pages * PAGE)) == 0, kernel_swap.area);
		write_header(fd, pages);
		return;
	}
	fd = zram_open(pages);
	write_header(fd, pages);
	snprintf(kernel_swap.area, sizeof kernel_swap.area, "/sys/block/zram%d/dev", zram_number);
	zram_read(kernel_swap.area, text, sizeof text);
	need(sscanf(text, "%u:%u", &major_n, &minor_n) == 2, kernel_swap.area);
	snprintf(kernel_swap.area, sizeof kernel_swap.area, "/dev/shm/vmmswap-bench-%d.zram", (int)getpid());
	need(mknod(kernel_swap.area, S_IFBLK | 0600, makedev(major_n, minor_n)) == 0, kernel_swap.area);
}

/* Of cgroup v2, or of v1 where its controller of memory is mounted. */
static void make_group(void)
{
	static const char v1[] = "/sys/fs/cgroup/memory", v2[] = "/sys/fs/cgroup";

	kernel_swap.is_v1 = access("/sys/fs/cgroup/memory/memory.force_empty", F_OK) == 0;
	if (!kernel_swap.is_v1)
		swap_write(v2, "cgroup.subtree_control", "+memory");
	snprintf(kernel_swap.group, sizeof kernel_swap.group, "%s/vmmswap-bench-%d",
		 kernel_swap.is_v1 ? v1 : v2, (int)getpid());
	if (mkdir(kernel_swap.group, 0755)) {
		fprintf(stderr, "%s: %s\n", kernel_swap.group, strerror(errno));
		*kernel_swap.group = '\0';
		exit(1);
	}
}

/* In the parent, before the guest is forked. place: "ram", or a directory on a disk. */
static inline void kernel_swap_open(const char *place, size_t pages)
{
	kernel_swap.owner = getpid();
	signal(SIGINT, end);
	signal(SIGTERM, end);
	/* handlers run in the opposite order: the device of zram is removed after this */
	if (!strcmp(place, "ram"))
		make_area(place, pages);
	atexit(kernel_swap_remove);
	if (strcmp(place, "ram") != 0)
		make_area(place, pages);
	make_group();
	need(swapon(kernel_swap.area, SWAP_FLAG_PREFER | SWAP_PRIORITY) == 0, "swapon");
	kernel_swap.is_on = true;
}

/* In the guest, before it has memory. */
static inline void kernel_swap_enter(void)
{
	swap_write(kernel_swap.group, "cgroup.procs", "0");
}

static size_t pages_resident(int memfd, size_t pages)
{
	unsigned char *present = malloc(pages);
	void *at = mmap(NULL, pages * PAGE, PROT_READ, MAP_SHARED, memfd, 0);
	size_t n = 0;

	need(present && at != MAP_FAILED && mincore(at, pages * PAGE, present) == 0, "mincore");
	for (size_t i = 0; i < pages; i++)
		n += present[i] & 1;
	munmap(at, pages * PAGE);
	free(present);
	return n;
}

/* Until hardly a page is left on RAM, in the swap cache either: else it would answer. */
static inline void kernel_swap_all_out(int memfd, size_t pages)
{
	char text[32];
	size_t left_n = pages, left_max = pages / 1000 + 8;

	snprintf(text, sizeof text, "%zu", pages * PAGE);
	for (int tries = 0; tries < EMPTY_TRIES && left_n > left_max; tries++) {
		swap_write(kernel_swap.group, kernel_swap.is_v1 ? "memory.force_empty" : "memory.reclaim",
			   kernel_swap.is_v1 ? "0" : text);
		left_n = pages_resident(memfd, pages);
		if (left_n > left_max)
			usleep(20000); /* the kernel is writing */
	}
	if (left_n > left_max) {
		fprintf(stderr, "the kernel keeps %zu of %zu pages on RAM\n", left_n, pages);
		exit(1);
	}
}

#endif
