/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A file whose reads end when the test says so, for I/O in flight at will.
 *
 * It is the root of a FUSE file system: the root of a FUSE mount may be a plain file, so a handful of
 * requests is all there is. A process of its own serves it, never a thread of the test: a process that dies
 * with such a file open waits in the kernel for an answer to FLUSH, for ever if it was to answer itself.
 * Needs root and /dev/fuse. */
#ifndef VMMSWAP_TESTS_SLOW_DISK_H
#define VMMSWAP_TESTS_SLOW_DISK_H

#include <fcntl.h>
#include <linux/fuse.h>
#include <poll.h>
#include <stdint.h>
#include <sys/eventfd.h>
#include <sys/uio.h>
#include <unistd.h>

#include "harness.h"

#define SLOW_DISK_BYTES ((uint64_t)64 << 20)
#define SLOW_DISK_WAITING_MAX 256
#define SLOW_DISK_READ_MAX ((size_t)1 << 20)

struct slow_disk {
	char path[300];
	uint8_t byte; /* what every read gives */
	pid_t server;
	int arrived; /* eventfd, a semaphore: reads that came in */
	int release; /* eventfd: answer what has come in */
	/* the server's own */
	int fuse_fd;
	uint64_t waiting_unique[SLOW_DISK_WAITING_MAX];
	uint32_t waiting_bytes[SLOW_DISK_WAITING_MAX];
	size_t waiting_n;
	uint8_t buffer[FUSE_MIN_READ_BUFFER + SLOW_DISK_READ_MAX];
};

static inline void slow_disk_reply(struct slow_disk *disk, uint64_t unique, int error, const void *data,
				   size_t data_bytes)
{
	struct fuse_out_header header = { .len = (uint32_t)(sizeof header + data_bytes),
					  .error = error,
					  .unique = unique };
	struct iovec iov[2] = { { &header, sizeof header }, { (void *)(uintptr_t)data, data_bytes } };

	CHECK(writev(disk->fuse_fd, iov, data_bytes ? 2 : 1) > 0 ||
	      errno == ENOENT); /* ENOENT: interrupted */
}

static inline void slow_disk_keep(struct slow_disk *disk, uint64_t unique, uint32_t size_bytes)
{
	CHECK(disk->waiting_n < SLOW_DISK_WAITING_MAX);
	disk->waiting_unique[disk->waiting_n] = unique;
	disk->waiting_bytes[disk->waiting_n++] = size_bytes;
	CHECK_OK(eventfd_write(disk->arrived, 1));
}

static inline void slow_disk_answer(struct slow_disk *disk, const struct fuse_in_header *in)
{
	struct fuse_init_out init = { .major = FUSE_KERNEL_VERSION,
				      .minor = 31,
				      .max_write = SLOW_DISK_READ_MAX,
				      .flags = FUSE_MAX_PAGES | FUSE_ASYNC_READ | FUSE_ASYNC_DIO,
				      .max_pages = SLOW_DISK_READ_MAX / 4096,
				      .max_background = 128 };
	struct fuse_attr_out attr = {
		.attr = { .ino = 1, .mode = S_IFREG | 0600, .nlink = 1, .size = SLOW_DISK_BYTES }
	};
	struct fuse_open_out opened = { .fh = 1 };

	switch (in->opcode) {
	case FUSE_INIT:
		slow_disk_reply(disk, in->unique, 0, &init, sizeof init);
		break;
	case FUSE_GETATTR:
		slow_disk_reply(disk, in->unique, 0, &attr, sizeof attr);
		break;
	case FUSE_OPEN:
		slow_disk_reply(disk, in->unique, 0, &opened, sizeof opened);
		break;
	case FUSE_READ:
		slow_disk_keep(disk, in->unique, ((const struct fuse_read_in *)(const void *)(in + 1))->size);
		break;
	case FUSE_RELEASE:
	case FUSE_FLUSH:
		slow_disk_reply(disk, in->unique, 0, NULL, 0);
		break;
	case FUSE_FORGET:
	case FUSE_BATCH_FORGET:
	case FUSE_INTERRUPT:
		break;
	default:
		slow_disk_reply(disk, in->unique, -ENOSYS, NULL, 0);
	}
}

static inline void slow_disk_answer_waiting(struct slow_disk *disk)
{
	memset(disk->buffer, disk->byte, SLOW_DISK_READ_MAX);
	while (disk->waiting_n) {
		disk->waiting_n--;
		slow_disk_reply(disk, disk->waiting_unique[disk->waiting_n], 0, disk->buffer,
				disk->waiting_bytes[disk->waiting_n]);
	}
}

static inline void slow_disk_serve(struct slow_disk *disk)
{
	for (;;) {
		struct pollfd fds[2] = { { .fd = disk->fuse_fd, .events = POLLIN },
					 { .fd = disk->release, .events = POLLIN } };
		eventfd_t value;

		if (poll(fds, 2, -1) < 0)
			continue;
		if (fds[1].revents) {
			CHECK_OK(eventfd_read(disk->release, &value));
			slow_disk_answer_waiting(disk);
		}
		if (fds[0].revents) {
			if (read(disk->fuse_fd, disk->buffer, sizeof disk->buffer) > 0)
				slow_disk_answer(disk,
						 (const struct fuse_in_header *)(const void *)disk->buffer);
			else if (errno == ENODEV)
				_exit(0); /* unmounted */
		}
	}
}

/* The mount is the case's own, in a mount namespace. Call it before the case has threads. Every read of
 * disk->path gives `byte`; with O_DIRECT it holds the reader's pages until slow_disk_release(). */
static inline void slow_disk_open(struct slow_disk *disk, uint8_t byte)
{
	char options[128];
	int fd;

	test_private_mounts();
	memset(disk, 0, sizeof *disk);
	disk->byte = byte;
	disk->arrived = (int)CHECK_SYS(eventfd(0, EFD_CLOEXEC | EFD_SEMAPHORE));
	disk->release = (int)CHECK_SYS(eventfd(0, EFD_CLOEXEC));
	snprintf(disk->path, sizeof disk->path, "%s/disk", test_dir());
	fd = (int)CHECK_SYS(open(disk->path, O_CREAT | O_RDWR | O_CLOEXEC, 0600));
	close(fd);
	disk->fuse_fd = open("/dev/fuse", O_RDWR | O_CLOEXEC);
	if (disk->fuse_fd < 0)
		test_skip("needs /dev/fuse (%s)", strerror(errno));
	snprintf(options, sizeof options, "fd=%d,rootmode=100600,user_id=0,group_id=0", disk->fuse_fd);
	CHECK_SYS(mount("vmmswap-test", disk->path, "fuse", 0, options));
	disk->server = (pid_t)CHECK_SYS(fork());
	if (!disk->server) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		slow_disk_serve(disk);
	}
	close(disk->fuse_fd);
}

/* Block until n more reads are in flight. */
static inline void slow_disk_await(struct slow_disk *disk, size_t n)
{
	eventfd_t value;

	while (n--)
		CHECK_OK(eventfd_read(disk->arrived, &value));
}

/* Answer all reads that are in flight. */
static inline void slow_disk_release(struct slow_disk *disk)
{
	CHECK_OK(eventfd_write(disk->release, 1));
}

/* All files on it closed. */
static inline void slow_disk_close(struct slow_disk *disk)
{
	CHECK_SYS(umount2(disk->path, MNT_DETACH));
	CHECK_SYS(waitpid(disk->server, NULL, 0));
	close(disk->arrived);
	close(disk->release);
}

#endif
