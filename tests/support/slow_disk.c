/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A disk on which each transfer takes its time, so that there is always one under way.
 *
 *     slow_disk FILE DELAY_MS
 *
 * It is FILE, reached through the FUSE file system that this program serves. The mount is a plain file and
 * lies over FILE in a mount namespace of the program's own, so that it goes when the program does: others
 * open it as /proc/PID/root/FILE, once "ready" was printed. With O_DIRECT a transfer holds the pages of
 * whoever asked for it until it is answered. End those who have it open first. Needs root and /dev/fuse. */
#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define TRANSFER_MAX_BYTES ((size_t)1 << 20)
#define WAITING_MAX 1024

/* A transfer that was asked for. All wait equally long, so they are answered in order. */
struct waiting {
	uint64_t unique;
	uint64_t due_ns;
	uint64_t offset_bytes;
	uint32_t size_bytes;
	bool is_read; /* what was to be written has been */
	int error;
};

static int fuse_fd, file_fd;
static uint64_t delay_ns;
static struct waiting waiting[WAITING_MAX]; /* a ring */
static size_t first, waiting_n;
static uint8_t request[FUSE_MIN_READ_BUFFER + TRANSFER_MAX_BYTES], data[TRANSFER_MAX_BYTES];

static void die(const char *what)
{
	fprintf(stderr, "slow_disk: %s: %s\n", what, strerror(errno));
	exit(1);
}

static uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

static void reply(uint64_t unique, int error, const void *what, size_t size_bytes)
{
	struct fuse_out_header header = { .len = (uint32_t)(sizeof header + size_bytes),
					  .error = error,
					  .unique = unique };
	struct iovec iov[2] = { { &header, sizeof header }, { (void *)(uintptr_t)what, size_bytes } };

	if (writev(fuse_fd, iov, size_bytes ? 2 : 1) < 0 && errno != ENOENT) /* ENOENT: interrupted */
		die("cannot answer");
}

static struct waiting *wait_for(const struct fuse_in_header *in, uint64_t offset_bytes, uint32_t size_bytes)
{
	struct waiting *transfer = &waiting[(first + waiting_n) % WAITING_MAX];

	if (waiting_n++ == WAITING_MAX) {
		errno = ENOBUFS;
		die("too many transfers at once");
	}
	*transfer = (struct waiting){ .unique = in->unique,
				      .due_ns = now_ns() + delay_ns,
				      .offset_bytes = offset_bytes,
				      .size_bytes = size_bytes };
	return transfer;
}

static void take_read(const struct fuse_in_header *in, const struct fuse_read_in *read)
{
	wait_for(in, read->offset, read->size)->is_read = true;
}

static void take_write(const struct fuse_in_header *in, const struct fuse_write_in *write)
{
	struct waiting *transfer = wait_for(in, write->offset, write->size);
	ssize_t done = pwrite(file_fd, write + 1, write->size, (off_t)write->offset);

	transfer->error = done == (ssize_t)write->size ? 0 : -EIO;
}

static void finish(const struct waiting *transfer)
{
	struct fuse_write_out written = { .size = transfer->size_bytes };
	ssize_t got;

	if (transfer->error) {
		reply(transfer->unique, transfer->error, NULL, 0);
	} else if (transfer->is_read) {
		got = pread(file_fd, data, transfer->size_bytes, (off_t)transfer->offset_bytes);
		reply(transfer->unique, got < 0 ? -errno : 0, data, got < 0 ? 0 : (size_t)got);
	} else {
		reply(transfer->unique, 0, &written, sizeof written);
	}
}

static struct fuse_attr attributes(void)
{
	struct stat stat;

	if (fstat(file_fd, &stat))
		die("fstat");
	return (struct fuse_attr){
		.ino = 1, .mode = stat.st_mode, .nlink = 1, .size = (uint64_t)stat.st_size, .blksize = 4096
	};
}

static void answer(const struct fuse_in_header *in)
{
	struct fuse_init_out init = { .major = FUSE_KERNEL_VERSION,
				      .minor = 31,
				      .max_write = TRANSFER_MAX_BYTES,
				      .flags = FUSE_MAX_PAGES | FUSE_ASYNC_READ | FUSE_ASYNC_DIO |
					       FUSE_BIG_WRITES,
				      .max_pages = TRANSFER_MAX_BYTES / 4096,
				      .max_background = 128 };
	struct fuse_open_out opened = { .fh = 1 };
	struct fuse_attr_out attr;

	switch (in->opcode) {
	case FUSE_INIT:
		reply(in->unique, 0, &init, sizeof init);
		break;
	case FUSE_GETATTR:
		attr = (struct fuse_attr_out){ .attr = attributes() };
		reply(in->unique, 0, &attr, sizeof attr);
		break;
	case FUSE_OPEN:
		reply(in->unique, 0, &opened, sizeof opened);
		break;
	case FUSE_READ:
		take_read(in, (const void *)(in + 1));
		break;
	case FUSE_WRITE:
		take_write(in, (const void *)(in + 1));
		break;
	case FUSE_RELEASE:
	case FUSE_FLUSH:
	case FUSE_FSYNC:
		reply(in->unique, 0, NULL, 0);
		break;
	case FUSE_FORGET:
	case FUSE_BATCH_FORGET:
	case FUSE_INTERRUPT:
		break;
	default:
		reply(in->unique, -ENOSYS, NULL, 0);
	}
}

static int until_due_ms(void)
{
	uint64_t now = now_ns();

	if (!waiting_n)
		return -1;
	return waiting[first].due_ns <= now ? 0 : (int)((waiting[first].due_ns - now) / 1000000 + 1);
}

static void serve(void)
{
	struct pollfd ready = { .fd = fuse_fd, .events = POLLIN };

	for (;;) {
		if (poll(&ready, 1, until_due_ms()) > 0) {
			if (read(fuse_fd, request, sizeof request) > 0)
				answer((const void *)request);
			else if (errno == ENODEV)
				return; /* unmounted */
			else if (errno != ENOENT && errno != EINTR && errno != EAGAIN)
				die("cannot read requests");
		}
		while (waiting_n && waiting[first].due_ns <= now_ns()) {
			finish(&waiting[first]);
			first = (first + 1) % WAITING_MAX;
			waiting_n--;
		}
	}
}

static void mount_over(const char *path)
{
	char options[128];

	if (unshare(CLONE_NEWNS) || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL))
		die("cannot have mounts of my own");
	fuse_fd = open("/dev/fuse", O_RDWR | O_CLOEXEC);
	if (fuse_fd < 0)
		die("/dev/fuse");
	snprintf(options, sizeof options, "fd=%d,rootmode=100600,user_id=0,group_id=0,allow_other", fuse_fd);
	if (mount("slow_disk", path, "fuse", 0, options))
		die(path);
}

int main(int argc, char **argv)
{
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (argc != 3) {
		fprintf(stderr, "usage: slow_disk FILE DELAY_MS\n");
		return 2;
	}
	file_fd = open(argv[1], O_RDWR | O_CLOEXEC);
	if (file_fd < 0)
		die(argv[1]);
	delay_ns = strtoull(argv[2], NULL, 10) * 1000000;
	mount_over(argv[1]);
	puts("ready");
	fflush(stdout);
	serve();
	return 0;
}
