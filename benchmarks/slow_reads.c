/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What a page that needs no storage waits for while many others wait for slow storage.
 *
 *	slow_reads THREADS DELAY_MS SAMPLES
 *
 * THREADS threads of a guest touch pages of a snapshot's file one after the other; each read of that file
 * takes DELAY_MS. Beside them, one thread gives a page up (MADV_DONTNEED) and touches it, SAMPLES times: it
 * gets zeros, from nowhere. One line of JSON: how long both take, as that thread sees them. Needs root and
 * /dev/fuse, for a file whose reads take so long. */
#include <errno.h>
#include <linux/fuse.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/uio.h>

#include "rig.h"

#define PAGES ((size_t)65536)
#define GIVEN_PAGES ((size_t)256) /* at the end; no other thread touches them */
#define THREADS_MAX 256
#define WAITING_MAX 1024
#define READ_MAX ((size_t)128 << 10)

/* --- the file: the root of a FUSE file system */

static struct {
	uint64_t unique;
	uint32_t size;
	double due_us;
} waiting[WAITING_MAX];
static size_t waiting_n;

static void reply(int fuse, uint64_t unique, int error, const void *data, size_t data_bytes)
{
	struct fuse_out_header header = { .len = (uint32_t)(sizeof header + data_bytes),
					  .error = error,
					  .unique = unique };
	struct iovec iov[2] = { { &header, sizeof header }, { (void *)(uintptr_t)data, data_bytes } };

	need(writev(fuse, iov, data_bytes ? 2 : 1) > 0 || errno == ENOENT, "writev");
}

static void answer(int fuse, const struct fuse_in_header *in, double delay_us)
{
	struct fuse_init_out init = { .major = FUSE_KERNEL_VERSION,
				      .minor = 31,
				      .max_write = READ_MAX,
				      .flags = FUSE_MAX_PAGES | FUSE_ASYNC_READ,
				      .max_pages = READ_MAX / PAGE,
				      .max_background = WAITING_MAX };
	struct fuse_attr_out attr = {
		.attr_valid = 1000,
		.attr = { .ino = 1, .mode = S_IFREG | 0600, .nlink = 1, .size = PAGES * PAGE }
	};
	struct fuse_open_out opened = { .fh = 1 };

	switch (in->opcode) {
	case FUSE_INIT:
		reply(fuse, in->unique, 0, &init, sizeof init);
		break;
	case FUSE_GETATTR:
		reply(fuse, in->unique, 0, &attr, sizeof attr);
		break;
	case FUSE_OPEN:
		reply(fuse, in->unique, 0, &opened, sizeof opened);
		break;
	case FUSE_READ:
		need(waiting_n < WAITING_MAX, "too many reads");
		waiting[waiting_n].unique = in->unique;
		waiting[waiting_n].size = ((const struct fuse_read_in *)(const void *)(in + 1))->size;
		waiting[waiting_n++].due_us = now_us() + delay_us;
		break;
	case FUSE_RELEASE:
	case FUSE_FLUSH:
		reply(fuse, in->unique, 0, NULL, 0);
		break;
	case FUSE_FORGET:
	case FUSE_BATCH_FORGET:
	case FUSE_INTERRUPT:
		break;
	default:
		reply(fuse, in->unique, -ENOSYS, NULL, 0);
	}
}

/* The oldest is first. */
static void answer_due(int fuse)
{
	static char bytes[READ_MAX];
	size_t done = 0;

	memset(bytes, 0x5a, sizeof bytes);
	for (; done < waiting_n && waiting[done].due_us <= now_us(); done++)
		reply(fuse, waiting[done].unique, 0, bytes, waiting[done].size);
	waiting_n -= done;
	memmove(waiting, waiting + done, waiting_n * sizeof *waiting);
}

static void be_disk(int fuse, double delay_us)
{
	static char buffer[FUSE_MIN_READ_BUFFER + READ_MAX];
	struct pollfd ready = { .fd = fuse, .events = POLLIN };

	for (;;) {
		double wait_us = waiting_n ? waiting[0].due_us - now_us() : 1e9;
		struct timespec wait = { .tv_sec = (time_t)(wait_us / 1e6),
					 .tv_nsec = (long)(wait_us * 1e3) % 1000000000 };

		if (wait_us > 0 && ppoll(&ready, 1, &wait, NULL) > 0) {
			if (read(fuse, buffer, sizeof buffer) > 0)
				answer(fuse, (const struct fuse_in_header *)(const void *)buffer, delay_us);
			else if (errno == ENODEV)
				_exit(0); /* unmounted */
		}
		answer_due(fuse);
	}
}

static pid_t open_disk(const char *path, double delay_us)
{
	int fuse = open("/dev/fuse", O_RDWR | O_CLOEXEC);
	char options[128];
	pid_t pid;

	need(fuse >= 0, "/dev/fuse");
	need(unshare(CLONE_NEWNS) == 0 && mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) == 0,
	     "a mount namespace");
	snprintf(options, sizeof options, "fd=%d,rootmode=100600,user_id=0,group_id=0", fuse);
	need(mount("vmmswap-benchmark", path, "fuse", 0, options) == 0, "mount");
	pid = fork();
	need(pid >= 0, "fork");
	if (pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		be_disk(fuse, delay_us);
	}
	close(fuse);
	return pid;
}

/* --- the guest */

struct shared {
	_Atomic uint64_t guest_addr;
	_Atomic int uffd;
	_Atomic bool go;
	_Atomic size_t next, touched; /* page */
	double remove_us[4096], zero_us[4096];
};

static struct shared *shared;
static size_t threads, samples;
static char *guest;

static void *touch(void *unused)
{
	size_t i;

	/* far from the last one, so that no read brings two */
	while ((i = shared->next++) < PAGES - GIVEN_PAGES) {
		(void)*(volatile char *)(guest + (i * 40503 % (PAGES - GIVEN_PAGES)) * PAGE);
		shared->touched++;
	}
	return unused;
}

static void give_up_and_touch(size_t i)
{
	char *page = guest + (PAGES - 1 - i % GIVEN_PAGES) * PAGE;
	double since_us = now_us();

	need(madvise(page, PAGE, MADV_DONTNEED) == 0, "MADV_DONTNEED");
	shared->remove_us[i] = now_us() - since_us;
	since_us = now_us();
	need(*(volatile char *)page == 0, "a page of zeros");
	shared->zero_us[i] = now_us() - since_us;
}

static void be_guest(void)
{
	struct uffdio_api api = { .api = UFFD_API, .features = UFFD_FEATURE_EVENT_REMOVE };
	struct uffdio_register range = { .range.len = PAGES * PAGE, .mode = UFFDIO_REGISTER_MODE_MISSING };
	int uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	pthread_t thread;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	guest = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
		     -1, 0);
	range.range.start = (uintptr_t)guest;
	need(guest != MAP_FAILED && uffd >= 0 && ioctl(uffd, UFFDIO_API, &api) == 0 &&
		     ioctl(uffd, UFFDIO_REGISTER, &range) == 0,
	     "userfaultfd");
	shared->uffd = uffd;
	shared->guest_addr = (uintptr_t)guest;
	while (!shared->go)
		usleep(1000);
	for (size_t i = 0; i < threads; i++)
		need(pthread_create(&thread, NULL, touch, NULL) == 0, "pthread_create");
	while (shared->touched < 4 * threads) /* all are under way */
		usleep(1000);
	for (size_t i = 0; i < samples; i++) {
		give_up_and_touch(i);
		usleep(5000);
	}
	need(shared->next < PAGES - GIVEN_PAGES, "pages for all samples: ask for fewer");
	_exit(0);
}

static void serve(const char *path, pid_t pid)
{
	struct engine_config config = { .workers = 1, .page_map_fd = -1, .snapshot = true };
	struct range range = { .pages = PAGES };
	struct engine *engine;
	struct error err;
	uint32_t id;
	int status;

	while (!shared->guest_addr)
		usleep(1000);
	range.addr = shared->guest_addr;
	config.store_fd = open(path, O_RDONLY | O_CLOEXEC);
	need(config.store_fd >= 0, path);
	if (engine_create(&config, &engine, &err) ||
	    engine_add_snapshot_region(engine, 0, PAGES * PAGE, &range.page_idx, &err) ||
	    engine_add_process(engine, fetch_fd(pid, shared->uffd), &range, 1, &id, &err) ||
	    engine_start(engine, &err)) {
		fprintf(stderr, "engine: %s\n", err.message);
		exit(1);
	}
	shared->go = true;
	need(waitpid(pid, &status, 0) == pid && WIFEXITED(status) && WEXITSTATUS(status) == 0,
	     "the guest's end");
	engine_destroy(engine);
	close(config.store_fd);
}

static int by_value(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

int main(int argc, char **argv)
{
	char path[] = "/tmp/vmmswap-slow-XXXXXX";
	double delay_ms = argc == 4 ? strtod(argv[2], NULL) : 0;
	pid_t disk, pid;

	threads = argc == 4 ? strtoul(argv[1], NULL, 10) : 0;
	samples = argc == 4 ? strtoul(argv[3], NULL, 10) : 0;
	if (!threads || threads > THREADS_MAX || !samples || samples > 4096) {
		fprintf(stderr, "usage: slow_reads THREADS DELAY_MS SAMPLES\n");
		return 2;
	}
	shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	need(shared != MAP_FAILED && close(mkstemp(path)) == 0, "start");
	disk = open_disk(path, delay_ms * 1000);
	pid = fork();
	need(pid >= 0, "fork");
	if (pid == 0)
		be_guest();
	serve(path, pid);
	umount2(path, MNT_DETACH); /* also gone with our mount namespace */
	kill(disk, SIGKILL);
	waitpid(disk, NULL, 0);
	unlink(path);
	qsort(shared->remove_us, samples, sizeof(double), by_value);
	qsort(shared->zero_us, samples, sizeof(double), by_value);
	printf("{\"remove_p50_us\": %.0f, \"remove_max_us\": %.0f, \"zero_p50_us\": %.0f, \"zero_max_us\": %.0f}\n",
	       shared->remove_us[samples / 2], shared->remove_us[samples - 1], shared->zero_us[samples / 2],
	       shared->zero_us[samples - 1]);
	return 0;
}
