/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "linux/uring_buffers.h"

#include <linux/capability.h>

#include "harness.h"
#include "uring.h"

#define PAGE 4096ul
#define PAGES 64ul

static struct uring_range whole(pid_t pid, void *memory)
{
	return (struct uring_range){ .pid = pid, .addr = (uintptr_t)memory, .size_bytes = PAGES * PAGE };
}

static void *shared_pages(void)
{
	void *memory = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	CHECK(memory != MAP_FAILED);
	return memory;
}

TEST(finds_a_registered_buffer)
{
	uint8_t *memory = shared_pages();
	struct uring_range range = whole(getpid(), memory);
	int ring = uring_open();
	struct uring_found found;
	struct error err = { 0 };
	char text[64];

	CHECK_EQ(uring_buffers_find(&range, 1, &found, &err), 0);
	uring_register(ring, memory + 3 * PAGE + 8, 10000);
	CHECK_EQ(uring_buffers_find(&range, 1, &found, &err), 1);
	CHECK_EQ(found.pid, getpid());
	CHECK_EQ(found.fd, ring);
	CHECK_EQ(found.addr, (uintptr_t)(memory + 3 * PAGE + 8));
	CHECK_EQ(found.size_bytes, 10000);
	snprintf(text, sizeof text, "fd %d of process %d", ring, getpid());
	CHECK_CONTAINS(err.message, text);
	CHECK_CONTAINS(err.message, "fixed buffer");
	uring_unregister(ring);
	CHECK_EQ(uring_buffers_find(&range, 1, &found, &err), 0);
}

TEST(only_what_overlaps_counts)
{
	uint8_t *memory = shared_pages();
	struct uring_range ranges[2] = { whole(getpid(), memory), whole(getpid(), memory) };
	int ring = uring_open();
	struct uring_found found;
	struct error err = { 0 };

	uring_register(ring, memory + 8 * PAGE, PAGE);
	ranges[0].size_bytes = 8 * PAGE; /* ends where the buffer starts */
	ranges[1].addr += 9 * PAGE;	 /* starts where it ends */
	ranges[1].size_bytes = PAGE;
	CHECK_EQ(uring_buffers_find(ranges, 2, &found, &err), 0);
	ranges[0].size_bytes++;
	CHECK_EQ(uring_buffers_find(ranges, 2, &found, &err), 1);
	ranges[0].size_bytes--;
	ranges[1].addr--;
	CHECK_EQ(uring_buffers_find(ranges, 2, &found, &err), 1);
	ranges[1].pid = getppid(); /* another process's address means nothing here */
	CHECK_EQ(uring_buffers_find(&ranges[1], 1, &found, &err), 0);
}

TEST(searches_every_ring)
{
	uint8_t *memory = shared_pages();
	struct uring_range range = whole(getpid(), memory);
	struct uring_found found;
	struct error err = { 0 };
	int rings[4];

	for (int i = 0; i < 4; i++)
		rings[i] = uring_open();
	uring_register(rings[0], test_pages(1), PAGE);
	uring_register(rings[3], memory, PAGE);
	CHECK_EQ(uring_buffers_find(&range, 1, &found, &err), 1);
	CHECK_EQ(found.fd, rings[3]);
	/* as descriptor 0, and many buffers */
	CHECK_SYS(close(0));
	CHECK_EQ(dup(rings[3]), 0);
	CHECK_SYS(close(rings[3]));
	CHECK_EQ(uring_buffers_find(&range, 1, &found, &err), 1);
	CHECK_EQ(found.fd, 0);
}

TEST(a_long_list_is_read_whole)
{
	enum { BUFFERS = 1024 };
	uint8_t *memory = shared_pages(), *other = test_pages(BUFFERS);
	struct uring_range range = whole(getpid(), memory);
	static struct iovec iov[BUFFERS];
	int ring = uring_open();
	struct uring_found found;
	struct error err = { 0 };

	for (int i = 0; i < BUFFERS; i++)
		iov[i] = (struct iovec){ other + (size_t)i * PAGE, PAGE };
	CHECK_SYS(syscall(SYS_io_uring_register, ring, IORING_REGISTER_BUFFERS, iov, BUFFERS));
	CHECK_EQ(uring_buffers_find(&range, 1, &found, &err), 0);
	uring_unregister(ring);
	iov[BUFFERS - 1].iov_base = memory + 5 * PAGE;
	CHECK_SYS(syscall(SYS_io_uring_register, ring, IORING_REGISTER_BUFFERS, iov, BUFFERS));
	CHECK_EQ(uring_buffers_find(&range, 1, &found, &err), 1);
	CHECK_EQ(found.addr, (uintptr_t)(memory + 5 * PAGE));
}

/* A process that registers a buffer and then waits to be killed with the case. */
static pid_t start_holder(uint8_t *memory, uid_t uid)
{
	int ready[2];
	char byte;
	pid_t pid;

	CHECK_SYS(pipe(ready));
	pid = (pid_t)CHECK_SYS(fork());
	if (!pid) {
		if (uid)
			CHECK_SYS(syscall(SYS_setresuid, uid, uid, uid));
		uring_register(uring_open(), memory, PAGE);
		CHECK_EQ(write(ready[1], "r", 1), 1);
		for (;;)
			pause();
	}
	close(ready[1]);
	CHECK_EQ(read(ready[0], &byte, 1), 1);
	return pid;
}

TEST(another_process)
{
	uint8_t *memory = shared_pages();
	struct uring_range ranges[2] = { whole(getpid(), memory), whole(0, memory) };
	struct uring_found found;
	struct error err = { 0 };

	ranges[1].pid = start_holder(memory, 0);
	CHECK_EQ(uring_buffers_find(ranges, 2, &found, &err), 1);
	CHECK_EQ(found.pid, ranges[1].pid);
	CHECK_SYS(kill(ranges[1].pid, SIGKILL));
	CHECK_SYS(waitpid(ranges[1].pid, NULL, 0));
	CHECK_EQ(uring_buffers_find(ranges, 2, &found, &err), 0); /* gone */
}

/* The monitor has CAP_SYS_PTRACE and little else; the VMM is another user's. */
TEST(another_user_with_ptrace_alone)
{
	struct __user_cap_header_struct header = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct caps[2] = { { 0 } };
	uint8_t *memory = shared_pages();
	struct uring_range range = whole(0, memory);
	struct uring_found found;
	struct error err = { 0 };

	if (geteuid())
		test_skip("needs root");
	range.pid = start_holder(memory, 65534);
	CHECK_SYS(prctl(PR_SET_KEEPCAPS, 1));
	CHECK_SYS(syscall(SYS_setresuid, 65533, 65533, 65533));
	caps[0].effective = caps[0].permitted = 1u << CAP_SYS_PTRACE;
	CHECK_SYS(syscall(SYS_capset, &header, caps));
	CHECK_SYS(prctl(PR_SET_DUMPABLE, 1)); /* our own /proc/self/fd */
	CHECK_EQ(uring_buffers_find(&range, 1, &found, &err), 1);
	CHECK_EQ(found.pid, range.pid);
	caps[0].effective = 0;
	CHECK_SYS(syscall(SYS_capset, &header, caps));
	CHECK_EQ(uring_buffers_find(&range, 1, &found, &err), -EACCES);
	CHECK_CONTAINS(err.message, "CAP_SYS_PTRACE");
}

/* Requests that fail, but under the ring's lock: while it is taken, fdinfo says nothing of the ring. */
static void hammer(int ring)
{
	for (;;)
		syscall(SYS_io_uring_register, ring, IORING_REGISTER_EVENTFD, NULL, 1);
}

TEST(a_busy_ring_is_asked_again)
{
	uint8_t *memory = shared_pages();
	struct uring_range range = whole(getpid(), memory);
	int ring = uring_open();
	struct uring_found found;
	struct error err = { 0 };

	uring_register(ring, memory, PAGE);
	if (!CHECK_SYS(fork())) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		hammer(ring);
	}
	for (int i = 0; i < 300; i++) {
		int rc = uring_buffers_find(&range, 1, &found, &err);

		/* Under emulation the lock is hardly ever free. */
		if (rc == -EBUSY && test_patience() > 1)
			continue;
		CHECK_EQ(rc, 1);
		CHECK_EQ(found.fd, ring);
	}
}
