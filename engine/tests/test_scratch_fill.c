/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What is empty in scratch is filled, what is there stays, and nothing moves there any more. */
#include "linux/scratch_fill.h"

#include "guest_mover.h"
#include "harness.h"
#include "linux/mover.h"

#define PAGES 512
#define MOVED 100 /* from the first page on */

static const _Atomic bool never;

static void be_guest(int mailbox_fd, _Atomic uint64_t *guest_addr)
{
	static struct vmmswap_mover mover;
	uint64_t addr = mover_map(PAGES * 4096, 0);

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	memset((void *)addr, 1, PAGES * 4096);
	mover.ranges[0] = (struct vmmswap_mover_range){ addr, PAGES * 4096 };
	mover.ranges_n = 1;
	mover_start(&mover, mailbox_fd);
	*guest_addr = addr;
	for (;;)
		pause();
}

static uint64_t move(struct mover *mover, int place, unsigned pages, int *why)
{
	uint64_t wanted[VMMSWAP_WINDOW_WORDS] = { 0 }, moved[VMMSWAP_WINDOW_WORDS],
		 busy[VMMSWAP_WINDOW_WORDS];
	uint64_t n = 0;

	for (unsigned page = 0; page < pages; page++)
		wanted[page / 64] |= (uint64_t)1 << (page % 64);
	CHECK_OK(mover_move(mover, place, wanted, moved, busy, why, &never));
	for (size_t i = 0; i < VMMSWAP_WINDOW_WORDS; i++)
		n += (uint64_t)__builtin_popcountll(moved[i]);
	return n;
}

TEST(nothing_moves_to_where_it_was_filled)
{
	_Atomic uint64_t *guest_addr =
		mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	int mailbox_fd = mover_mailbox(), place, why, proc_fd;
	const struct vmmswap_mailbox *box;
	char bytes[4096], path[32];
	struct mover *mover;
	struct error err;
	pid_t pid;

	if (!mover_can_move())
		test_skip("this kernel has no UFFDIO_MOVE, which is since Linux 6.8");
	box = mmap(NULL, 4096, PROT_READ, MAP_SHARED, mailbox_fd, 0);
	pid = (pid_t)CHECK_SYS(fork());
	if (pid == 0)
		be_guest(mailbox_fd, guest_addr);
	while (!*guest_addr)
		sched_yield();
	snprintf(path, sizeof path, "/proc/%d", (int)pid);
	proc_fd = (int)CHECK_SYS(open(path, O_PATH | O_DIRECTORY | O_CLOEXEC));
	CHECK_OK(mover_open(pid, mailbox_fd, -1, &mover, &err));
	place = mover_take_place(mover, *guest_addr);
	CHECK_EQ(move(mover, place, MOVED, &why), MOVED);

	CHECK_EQ(scratch_fill(pid, proc_fd, box->scratch_addr + place * VMMSWAP_WINDOW_BYTES,
			      VMMSWAP_WINDOW_BYTES),
		 PAGES - MOVED);
	CHECK_OK(mover_read(mover, place, MOVED - 1, 1, bytes));
	CHECK_EQ(bytes[0], 1);
	CHECK_OK(mover_read(mover, place, MOVED, 1, bytes));
	CHECK_EQ(bytes[0], 0);
	CHECK_EQ(move(mover, place, PAGES, &why), 0);
	CHECK_EQ(why, EEXIST);
	CHECK_OK(mover_discard(mover, place, &never));
	CHECK_EQ(move(mover, place, PAGES, &why), PAGES - MOVED);

	CHECK_EQ(scratch_fill(pid, proc_fd, *guest_addr, 4096), -ENOENT); /* no userfaultfd watches that */
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	CHECK(scratch_fill(pid, proc_fd, box->scratch_addr, 4096) < 0);
	mover_close(mover);
	close(proc_fd);
	close(mailbox_fd);
}
