/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The mailbox from both ends: what the VMM's thread does, what it refuses, and what the monitor makes of a
 * VMM that lies. */
#include "linux/mover.h"

#include <string.h>

#include "guest_mover.h"
#include "harness.h"
#include "linux/pagemap.h"

#define GUEST_PAGES 700 /* from page 300 of a window on */
#define GUEST_OFFSET (300 * 4096)

struct shared {
	uint64_t guest_addr;
	_Atomic bool ready;
};

struct rig {
	struct shared *shared;
	pid_t pid;
	int mailbox_fd;
	struct vmmswap_mailbox *box; /* as the test sees it */
	struct mover *mover;
	uint64_t window_addr; /* the guest's first */
};

static const _Atomic bool never;
static bool locks_scratch; /* the next guest does */

static void be_guest(struct rig *rig)
{
	static struct vmmswap_mover mover;
	uint64_t addr = mover_map(GUEST_PAGES * 4096, GUEST_OFFSET);

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	for (uint64_t page = 0; page < GUEST_PAGES; page++)
		if (page % 8 != 7)
			memset((void *)(addr + page * 4096), (int)(page % 251) + 1, 4096);
	mover.ranges[0] = (struct vmmswap_mover_range){ addr, GUEST_PAGES * 4096 };
	mover.ranges_n = 1;
	mover_start(&mover, rig->mailbox_fd);
	if (locks_scratch)
		CHECK_SYS(mlock2((void *)mover.scratch_addr, VMMSWAP_SCRATCH_BYTES, MLOCK_ONFAULT));
	rig->shared->guest_addr = addr;
	rig->shared->ready = true;
	for (;;)
		pause();
}

static void rig_start(struct rig *rig)
{
	struct error err = { 0 };

	if (!mover_can_move())
		test_skip("this kernel has no UFFDIO_MOVE, which is since Linux 6.8");
	*rig = (struct rig){ .mailbox_fd = mover_mailbox() };
	rig->shared = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	rig->box = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, rig->mailbox_fd, 0);
	rig->pid = (pid_t)CHECK_SYS(fork());
	if (rig->pid == 0)
		be_guest(rig);
	while (!rig->shared->ready)
		sched_yield();
	rig->window_addr = rig->shared->guest_addr & ~(VMMSWAP_WINDOW_BYTES - 1);
	if (mover_open(rig->pid, rig->mailbox_fd, -1, &rig->mover, &err))
		test_fail(__FILE__, __LINE__, "mover_open: %s", err.message);
}

static void rig_stop(struct rig *rig)
{
	mover_close(rig->mover);
	kill(rig->pid, SIGKILL);
	waitpid(rig->pid, NULL, 0);
	close(rig->mailbox_fd);
	munmap(rig->box, 4096);
	munmap(rig->shared, 4096);
}

static unsigned count_bits(const uint64_t words[VMMSWAP_WINDOW_WORDS])
{
	unsigned n = 0;

	for (size_t i = 0; i < VMMSWAP_WINDOW_WORDS; i++)
		n += (unsigned)__builtin_popcountll(words[i]);
	return n;
}

static void want(uint64_t wanted[VMMSWAP_WINDOW_WORDS], unsigned from, unsigned end)
{
	memset(wanted, 0, VMMSWAP_WINDOW_WORDS * sizeof wanted[0]);
	for (unsigned page = from; page < end; page++)
		wanted[page / 64] |= (uint64_t)1 << (page % 64);
}

TEST(moves_what_is_there)
{
	uint64_t wanted[VMMSWAP_WINDOW_WORDS], moved[VMMSWAP_WINDOW_WORDS], busy[VMMSWAP_WINDOW_WORDS];
	char bytes[4096], expected[4096];
	struct rig rig;
	int place, why;

	rig_start(&rig);
	place = mover_take_place(rig.mover, rig.window_addr);
	CHECK(place >= 0);
	CHECK_EQ(mover_find(rig.mover, rig.window_addr), place);
	CHECK_EQ(rig.box->windows[place], rig.window_addr);
	want(wanted, 300, 512);
	CHECK_OK(mover_move(rig.mover, place, wanted, moved, busy, &why, &never));
	CHECK_EQ(why, 0);
	CHECK_EQ(count_bits(moved), 212 - 212 / 8);
	CHECK_EQ(count_bits(busy), 0);
	CHECK_EQ(pagemap_count(mover_pagemap(rig.mover), rig.shared->guest_addr,
			       rig.shared->guest_addr + 212 * 4096),
		 0);
	CHECK_OK(mover_read(rig.mover, place, 303, 1, bytes));
	memset(expected, 4, sizeof expected);
	CHECK_OK(memcmp(bytes, expected, sizeof bytes));
	CHECK_EQ(mover_read(rig.mover, place, 307, 1, bytes), -ENOENT); /* a hole: reading it does not wait */
	CHECK_OK(mover_discard(rig.mover, place, &never));
	CHECK_EQ(mover_read(rig.mover, place, 303, 1, bytes), -ENOENT);
	mover_give_place(rig.mover, place);
	CHECK_EQ(rig.box->windows[place], 0);
	rig_stop(&rig);
}

/* The mailbox is no way to have the VMM do anything else. */
TEST(refuses_what_is_not_guest_memory)
{
	uint64_t wanted[VMMSWAP_WINDOW_WORDS], moved[VMMSWAP_WINDOW_WORDS], busy[VMMSWAP_WINDOW_WORDS];
	uint64_t windows[3];
	struct rig rig;
	int place, why;

	rig_start(&rig);
	windows[0] = rig.window_addr;	     /* its pages from 0 on are before guest memory */
	windows[1] = rig.box->scratch_addr;  /* the thread's own */
	windows[2] = rig.window_addr + 4096; /* no window */
	for (size_t i = 0; i < 3; i++) {
		place = mover_take_place(rig.mover, windows[i]);
		want(wanted, 0, i == 2 ? 512 : 299);
		CHECK_OK(mover_move(rig.mover, place, wanted, moved, busy, &why, &never));
		CHECK_EQ(why, EPERM);
		CHECK_EQ(count_bits(moved), 0);
		mover_give_place(rig.mover, place);
	}
	rig_stop(&rig);
}

static int32_t ask(struct rig *rig, uint32_t call, uint32_t place)
{
	rig->box->call = call;
	rig->box->place = place;
	__atomic_store_n(&rig->box->state, VMMSWAP_MAILBOX_ASKED, __ATOMIC_RELEASE);
	syscall(SYS_futex, &rig->box->state, 1 /* FUTEX_WAKE */, 1, NULL, NULL, 0);
	while (__atomic_load_n(&rig->box->state, __ATOMIC_ACQUIRE) != VMMSWAP_MAILBOX_DONE)
		sched_yield();
	__atomic_store_n(&rig->box->state, VMMSWAP_MAILBOX_IDLE, __ATOMIC_RELEASE);
	return rig->box->error;
}

TEST(refuses_other_calls)
{
	struct rig rig;

	rig_start(&rig);
	CHECK_EQ(ask(&rig, 0, 0), EPERM);
	CHECK_EQ(ask(&rig, VMMSWAP_MAILBOX_LEAVE + 1, 0), EPERM);
	CHECK_EQ(ask(&rig, VMMSWAP_MAILBOX_MOVE, VMMSWAP_PLACES), EPERM);
	CHECK_EQ(ask(&rig, VMMSWAP_MAILBOX_DISCARD, UINT32_MAX), EPERM);
	CHECK_EQ(ask(&rig, VMMSWAP_MAILBOX_DISCARD, 0), 0);
	rig_stop(&rig);
}

/* It ended: whoever asks is told, and what is there can be read all the same. */
TEST(a_thread_that_is_gone)
{
	uint64_t wanted[VMMSWAP_WINDOW_WORDS], moved[VMMSWAP_WINDOW_WORDS], busy[VMMSWAP_WINDOW_WORDS];
	char bytes[4096];
	struct rig rig;
	int place, why;

	rig_start(&rig);
	place = mover_take_place(rig.mover, rig.window_addr);
	want(wanted, 300, 512);
	CHECK_OK(mover_move(rig.mover, place, wanted, moved, busy, &why, &never));
	CHECK_EQ(ask(&rig, VMMSWAP_MAILBOX_LEAVE, 0), 0);
	CHECK_EQ(rig.box->tid, 0);
	CHECK_EQ(mover_discard(rig.mover, place, &never), -ESRCH);
	CHECK_OK(mover_read(rig.mover, place, 303, 1, bytes));
	rig.box->tid = 0x7fffffff; /* a lie: there is no such thread */
	CHECK_EQ(mover_discard(rig.mover, place, &never), -ESRCH);
	kill(rig.pid, SIGKILL);
	waitpid(rig.pid, NULL, 0);
	CHECK_EQ(mover_read(rig.mover, place, 303, 1, bytes), -ESRCH);
	rig_stop(&rig);
}

/* Then what is in it stays there: the place is not empty. */
TEST(scratch_that_is_locked)
{
	struct rig rig;
	int place;

	locks_scratch = true;
	rig_start(&rig);
	place = mover_take_place(rig.mover, rig.window_addr);
	CHECK_EQ(mover_discard(rig.mover, place, &never), -EINVAL);
	rig_stop(&rig);
}

/* What a predecessor asked is taken back, or awaited; its windows are taken over. */
TEST(a_successor)
{
	struct error err = { 0 };
	uint64_t window_addr;
	struct mover *next;
	struct rig rig;
	int place;

	rig_start(&rig);
	place = mover_take_place(rig.mover, rig.window_addr);
	CHECK_EQ(mover_take_left(rig.mover, &window_addr), -1);
	CHECK_OK(mover_open(rig.pid, rig.mailbox_fd, -1, &next, &err));
	CHECK_EQ(mover_take_place(next, rig.window_addr), -1); /* first what was left there */
	CHECK_EQ(mover_take_left(next, &window_addr), place);
	CHECK_EQ(window_addr, rig.window_addr);
	mover_give_place(next, place);
	CHECK_EQ(mover_take_left(next, &window_addr), -1);
	mover_close(next);

	/* An order that the thread has taken and that it is not done with. */
	rig.box->state = VMMSWAP_MAILBOX_TAKEN;
	CHECK_EQ(mover_open(rig.pid, rig.mailbox_fd, -1, &next, &err), -EBUSY);
	rig_stop(&rig);
}

TEST(bad_mailboxes)
{
	int unsealed = memfd_create("test", MFD_CLOEXEC | MFD_ALLOW_SEALING), large = mover_mailbox();
	struct error err = { 0 };
	struct mover *none;
	struct rig rig;

	rig_start(&rig);
	CHECK_SYS(ftruncate(unsealed, VMMSWAP_MAILBOX_BYTES));
	CHECK_EQ(mover_open(rig.pid, unsealed, -1, &none, &err), -EINVAL);
	CHECK_EQ(mover_open(rig.pid, large, -1, &none, &err), -EINVAL); /* nobody has written to it */
	CHECK_EQ(mover_open(rig.pid, 0, -1, &none, &err), -EINVAL);
	rig.box->scratch_addr += 4096;
	CHECK_EQ(mover_open(rig.pid, rig.mailbox_fd, -1, &none, &err), -EINVAL);
	rig.box->scratch_addr -= 4096;
	rig.box->magic++;
	CHECK_EQ(mover_open(rig.pid, rig.mailbox_fd, -1, &none, &err), -EINVAL);
	close(unsealed);
	close(large);
	rig_stop(&rig);
}
