/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What zram of the running kernel takes for the pages of a memfd: a device of our own, made and removed here.
 *
 * Only mem_used_total counts: the pages that its allocator took. Its table, 16 bytes or more for each page of
 * the device's size, and what kernel swap needs are not in it, in zram's favour. */
#ifndef VMMSWAP_BENCHMARK_ZRAM_H
#define VMMSWAP_BENCHMARK_ZRAM_H

#include "rig.h"

#include <string.h>
#include <sys/sysmacros.h>

/* No zram in this kernel. */
#define ZRAM_MISSING 77

static int zram_number;
static pid_t zram_owner;

static void zram_write(const char *name, const char *text)
{
	char path[128];
	int fd;

	snprintf(path, sizeof path, "/sys/block/zram%d/%s", zram_number, name);
	fd = open(path, O_WRONLY | O_CLOEXEC);
	need(fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text), path);
	close(fd);
}

static size_t zram_read(const char *path, char *out, size_t room)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t got = fd < 0 ? -1 : read(fd, out, room - 1);

	if (fd >= 0)
		close(fd);
	out[got < 0 ? 0 : got] = '\0';
	return got < 0 ? 0 : (size_t)got;
}

static void zram_remove(void)
{
	char number[16];
	int fd;

	if (getpid() != zram_owner) /* a fork of ours ends */
		return;
	fd = open("/sys/class/zram-control/hot_remove", O_WRONLY | O_CLOEXEC);
	zram_write("reset", "1");
	snprintf(number, sizeof number, "%d", zram_number);
	need(fd >= 0 && write(fd, number, strlen(number)) > 0, "hot_remove");
	close(fd);
}

static int zram_open(size_t pages)
{
	char text[64], path[64];
	unsigned major_n, minor_n;
	int fd;

	if (!zram_read("/sys/class/zram-control/hot_add", text, sizeof text)) {
		fprintf(stderr, "no zram in this kernel, or no permission to make a device\n");
		exit(ZRAM_MISSING);
	}
	zram_number = atoi(text);
	zram_owner = getpid();
	atexit(zram_remove);
	zram_write("comp_algorithm", "lz4");
	snprintf(text, sizeof text, "%zu", pages * PAGE);
	zram_write("disksize", text);
	snprintf(path, sizeof path, "/sys/block/zram%d/dev", zram_number);
	zram_read(path, text, sizeof text);
	need(sscanf(text, "%u:%u", &major_n, &minor_n) == 2, path);
	/* a node of our own: udev may be slow, or absent */
	snprintf(path, sizeof path, "/dev/shm/vmmswap-zram-%d", (int)getpid());
	need(mknod(path, S_IFBLK | 0600, makedev(major_n, minor_n)) == 0, path);
	fd = open(path, O_RDWR | O_DIRECT | O_CLOEXEC);
	unlink(path);
	need(fd >= 0, "zram");
	return fd;
}

/* Pages that are holes in the memfd are not written. */
static inline uint64_t zram_bytes_of(int memfd, size_t pages)
{
	char *page = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	unsigned long long used_bytes;
	off_t end = (off_t)(pages * PAGE), at = 0;
	char path[64], text[256];
	int fd = zram_open(pages);

	while ((at = lseek(memfd, at, SEEK_DATA)) >= 0 && at < end) {
		need(pread(memfd, page, PAGE, at) == (ssize_t)PAGE &&
			     pwrite(fd, page, PAGE, at) == (ssize_t)PAGE,
		     "zram");
		at += (off_t)PAGE;
	}
	snprintf(path, sizeof path, "/sys/block/zram%d/mm_stat", zram_number);
	zram_read(path, text, sizeof text);
	need(sscanf(text, "%*u %*u %llu", &used_bytes) == 1, path);
	close(fd);
	return used_bytes;
}

#endif
