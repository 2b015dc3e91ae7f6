/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "linux/mover.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "base/failpoint.h"
#include "base/held.h"
#include "base/units.h"
#include "linux/pagemap.h"
#include "linux/scratch_fill.h"

#define LOOK_NS 20000000 /* how often a waiting thread looks whether the VMM's thread is still there */
#define UNTAKEN_NS 5000000000ull
#define PREDECESSOR_NS 2000000000ull
#define STUCK_NS 100000000ull /* a hundred times as long as a move takes */

struct mover {
	pid_t pid;
	int proc_fd; /* /proc/PID: of this process, and of no later one with its number */
	int pagemap_fd;
	struct vmmswap_mailbox *mailbox;
	uint64_t scratch_addr;
	pthread_mutex_t call_lock; /* one order at a time */
	pthread_mutex_t places_lock;
	pthread_cond_t place_is_free;
	bool owned[VMMSWAP_PLACES];		  /* under places_lock */
	_Atomic uint64_t windows[VMMSWAP_PLACES]; /* as in the mailbox, where the VMM can write too */
};

static uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

static uint32_t load(const uint32_t *field)
{
	return __atomic_load_n(field, __ATOMIC_ACQUIRE);
}

static bool is_alive(const struct mover *mover)
{
	return mover->proc_fd >= 0 && faccessat(mover->proc_fd, "task", F_OK, 0) == 0;
}

/* A thread ends only with its process, by exec, or by itself. */
static bool has_thread(const struct mover *mover)
{
	uint32_t tid = load(&mover->mailbox->tid);
	char path[32];

	snprintf(path, sizeof path, "task/%u", tid);
	return tid && mover->proc_fd >= 0 && faccessat(mover->proc_fd, path, F_OK, 0) == 0;
}

static void futex_wait(uint32_t *state, uint32_t value)
{
	struct timespec look = { .tv_nsec = LOOK_NS };

	HELD_MAY_WAIT(WAIT_TIME);
	syscall(SYS_futex, state, FUTEX_WAIT, value, &look, NULL, 0);
}

/* From ASKED back to IDLE. False: the thread has taken the order. */
static bool take_back(struct mover *mover)
{
	uint32_t state = VMMSWAP_MAILBOX_ASKED;

	return __atomic_compare_exchange_n(&mover->mailbox->state, &state, VMMSWAP_MAILBOX_IDLE, 0,
					   __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE);
}

/* The thread has a move, or so it says, and has not been done with it for this long: see scratch_fill.h. True
 * if this ended it. */
static bool end_if_stuck(const struct mover *mover, int place, uint64_t *taken_ns)
{
	uint64_t addr = mover->scratch_addr + (uint64_t)place * VMMSWAP_WINDOW_BYTES;

	if (load(&mover->mailbox->state) != VMMSWAP_MAILBOX_TAKEN ||
	    load(&mover->mailbox->call) != VMMSWAP_MAILBOX_MOVE)
		return false;
	*taken_ns = *taken_ns ? *taken_ns : now_ns();
	if (now_ns() - *taken_ns <= STUCK_NS)
		return false;
	*taken_ns = 0;
	return scratch_fill(mover->pid, mover->proc_fd, addr, VMMSWAP_WINDOW_BYTES) > 0;
}

/* The thread does one order. As mover_move() says. The state may be anything: a hostile VMM writes it. */
static int await_done(struct mover *mover, int place, bool *was_stuck, const _Atomic bool *stop)
{
	uint64_t until_ns = now_ns() + UNTAKEN_NS, taken_ns = 0;
	uint32_t state;

	while ((state = load(&mover->mailbox->state)) != VMMSWAP_MAILBOX_DONE) {
		futex_wait(&mover->mailbox->state, state);
		*was_stuck = end_if_stuck(mover, place, &taken_ns) || *was_stuck;
		if (load(&mover->mailbox->state) == VMMSWAP_MAILBOX_DONE)
			break;
		if (!has_thread(mover)) {
			take_back(mover);
			return -ESRCH;
		}
		if ((now_ns() > until_ns || atomic_load(stop)) && take_back(mover))
			return -ETIMEDOUT;
		if (atomic_load(stop) && now_ns() > until_ns)
			return -ECANCELED;
	}
	return 0;
}

static int ask(struct mover *mover, uint32_t call, int place, bool *was_stuck, const _Atomic bool *stop)
{
	struct vmmswap_mailbox *box = mover->mailbox;
	int rc = FAILPOINT("mover.ask");

	if (rc)
		return rc;
	__atomic_store_n(&box->call, call, __ATOMIC_RELAXED);
	__atomic_store_n(&box->place, (uint32_t)place, __ATOMIC_RELAXED);
	__atomic_store_n(&box->window_addr, atomic_load(&mover->windows[place]), __ATOMIC_RELAXED);
	if (!has_thread(mover))
		return -ESRCH;
	__atomic_store_n(&box->state, VMMSWAP_MAILBOX_ASKED, __ATOMIC_RELEASE);
	syscall(SYS_futex, &box->state, FUTEX_WAKE, 1, NULL, NULL, 0);
	FAILPOINT_HERE("mover.asked");
	rc = await_done(mover, place, was_stuck, stop);
	if (!rc)
		__atomic_store_n(&box->state, VMMSWAP_MAILBOX_IDLE, __ATOMIC_RELEASE);
	return rc;
}

int mover_move(struct mover *mover, int place, const uint64_t wanted[VMMSWAP_WINDOW_WORDS],
	       uint64_t moved[VMMSWAP_WINDOW_WORDS], uint64_t busy[VMMSWAP_WINDOW_WORDS], int *why,
	       const _Atomic bool *stop)
{
	struct vmmswap_mailbox *box = mover->mailbox;
	bool was_stuck = false;
	int rc;

	pthread_mutex_lock(&mover->call_lock);
	for (size_t i = 0; i < VMMSWAP_WINDOW_WORDS; i++)
		__atomic_store_n(&box->wanted[i], wanted[i], __ATOMIC_RELAXED);
	rc = ask(mover, VMMSWAP_MAILBOX_MOVE, place, &was_stuck, stop);
	for (size_t i = 0; i < VMMSWAP_WINDOW_WORDS && !rc; i++) {
		moved[i] = __atomic_load_n(&box->moved[i], __ATOMIC_RELAXED) & wanted[i];
		busy[i] = __atomic_load_n(&box->busy[i], __ATOMIC_RELAXED) & wanted[i];
		if (was_stuck)
			busy[i] = wanted[i] & ~moved[i];
	}
	*why = rc || was_stuck ? 0 : __atomic_load_n(&box->error, __ATOMIC_RELAXED);
	pthread_mutex_unlock(&mover->call_lock);
	return rc;
}

int mover_discard(struct mover *mover, int place, const _Atomic bool *stop)
{
	bool was_stuck = false;
	int rc;

	pthread_mutex_lock(&mover->call_lock);
	rc = ask(mover, VMMSWAP_MAILBOX_DISCARD, place, &was_stuck, stop);
	if (!rc)
		rc = -__atomic_load_n(&mover->mailbox->error, __ATOMIC_RELAXED);
	pthread_mutex_unlock(&mover->call_lock);
	return rc <= 0 && rc > -4096 ? rc : -EPROTO;
}

static void record(struct mover *mover, int place, uint64_t window_addr)
{
	__atomic_store_n(&mover->mailbox->windows[place], window_addr, __ATOMIC_RELEASE);
	atomic_store(&mover->windows[place], window_addr);
}

/* A window can be of two regions, and two threads' at once: who looks for a page looks in one place. -1: none
 * is free; *will_be: one will be. */
static int free_place(const struct mover *mover, uint64_t window_addr, bool *will_be)
{
	int found = -1;
	bool in_use = false;

	*will_be = false;
	for (int place = 0; place < VMMSWAP_PLACES; place++) {
		uint64_t window = atomic_load(&mover->windows[place]);

		if (window == window_addr) {
			*will_be = mover->owned[place];
			return -1;
		}
		in_use = in_use || mover->owned[place];
		if (!window && !mover->owned[place])
			found = place;
	}
	*will_be = in_use;
	return found;
}

int mover_take_place(struct mover *mover, uint64_t window_addr)
{
	bool will_be;
	int place;

	HELD_MAY_WAIT(WAIT_TIME);
	pthread_mutex_lock(&mover->places_lock);
	while ((place = free_place(mover, window_addr, &will_be)) < 0 && will_be)
		pthread_cond_wait(&mover->place_is_free, &mover->places_lock);
	if (place >= 0) {
		mover->owned[place] = true;
		record(mover, place, window_addr);
	}
	pthread_mutex_unlock(&mover->places_lock);
	return place;
}

static void disown(struct mover *mover, int place, bool forget)
{
	pthread_mutex_lock(&mover->places_lock);
	mover->owned[place] = false;
	if (forget)
		record(mover, place, 0);
	pthread_cond_broadcast(&mover->place_is_free);
	pthread_mutex_unlock(&mover->places_lock);
}

void mover_give_place(struct mover *mover, int place)
{
	disown(mover, place, true);
}

void mover_leave_place(struct mover *mover, int place)
{
	disown(mover, place, false);
}

int mover_take_left(struct mover *mover, uint64_t *window_addr)
{
	int found = -1;

	pthread_mutex_lock(&mover->places_lock);
	for (int place = 0; place < VMMSWAP_PLACES && found < 0; place++) {
		*window_addr = atomic_load(&mover->windows[place]);
		if (*window_addr && !mover->owned[place])
			found = place;
	}
	if (found >= 0)
		mover->owned[found] = true;
	pthread_mutex_unlock(&mover->places_lock);
	return found;
}

int mover_find(const struct mover *mover, uint64_t window_addr)
{
	for (int place = 0; place < VMMSWAP_PLACES; place++)
		if (atomic_load(&mover->windows[place]) == window_addr)
			return place;
	return -1;
}

/* process_vm_readv() says EFAULT whatever the reason is (mm/process_vm_access.c). */
static int why_unreadable(const struct mover *mover, uint64_t addr, uint64_t pages)
{
	for (uint64_t i = 0; i < pages; i++)
		if (pagemap_look(mover->pagemap_fd, addr + bytes_of_pages(i)) == PAGEMAP_NOTHING)
			return -ENOENT;
	return -EAGAIN;
}

/* Scratch is registered with a userfaultfd for user mode only, and so the kernel refuses us what is not there
 * (fs/userfaultfd.c, handle_userfault()). The number of a process that has ended can be another's by now. */
int mover_read(const struct mover *mover, int place, uint64_t page, uint64_t pages, void *buf)
{
	uint64_t addr = mover->scratch_addr + (uint64_t)place * VMMSWAP_WINDOW_BYTES + bytes_of_pages(page);
	char *to = buf;
	uint64_t left_bytes = bytes_of_pages(pages);
	int rc = FAILPOINT("mover.read");

	while (left_bytes && !rc) {
		struct iovec own = { to, left_bytes }, theirs = { (void *)(uintptr_t)addr, left_bytes };
		ssize_t got = process_vm_readv(mover->pid, &own, 1, &theirs, 1, 0);

		if (got < 0 && errno == EINTR)
			continue;
		if (got < 0 && errno != EFAULT)
			rc = -errno;
		else if (got <= 0)
			rc = why_unreadable(mover, addr, pages_of_bytes(left_bytes));
		if (rc)
			break;
		to += got;
		addr += (uint64_t)got;
		left_bytes -= (uint64_t)got;
	}
	return is_alive(mover) ? rc : -ESRCH;
}

int mover_pagemap(const struct mover *mover)
{
	return mover->pagemap_fd;
}

const char *mover_error_text(int rc)
{
	switch (rc) {
	case -ETIMEDOUT:
		return "the thread of the VMM that moves its pages does not run; is the VMM stopped (SIGSTOP, a "
		       "debugger, a frozen cgroup)?";
	case -ESRCH:
		return "the VMM has no thread any more that moves its pages";
	default:
		return strerror(-rc);
	}
}

static int map_mailbox(struct mover *mover, int fd, struct error *err)
{
	struct stat status;
	int seals = fcntl(fd, F_GET_SEALS);

	if (fstat(fd, &status) != 0 || status.st_size != VMMSWAP_MAILBOX_BYTES || seals < 0 ||
	    !(seals & F_SEAL_SHRINK))
		return error_set(err, EINVAL,
				 "the mailbox is not a memfd of %d bytes that is sealed against shrinking",
				 VMMSWAP_MAILBOX_BYTES);
	mover->mailbox = mmap(NULL, VMMSWAP_MAILBOX_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (mover->mailbox == MAP_FAILED) {
		mover->mailbox = NULL;
		return error_set(err, errno, "cannot map the mailbox: %s", strerror(errno));
	}
	mover->scratch_addr = __atomic_load_n(&mover->mailbox->scratch_addr, __ATOMIC_RELAXED);
	if (__atomic_load_n(&mover->mailbox->magic, __ATOMIC_RELAXED) != VMMSWAP_MAILBOX_MAGIC ||
	    mover->scratch_addr % VMMSWAP_WINDOW_BYTES || !mover->scratch_addr)
		return error_set(
			err, EINVAL,
			"the mailbox says of itself that it is another version's, or that scratch is "
			"at %#llx",
			(unsigned long long)mover->scratch_addr);
	return 0;
}

static void close_proc(struct mover *mover)
{
	if (mover->proc_fd >= 0)
		close(mover->proc_fd);
	if (mover->pagemap_fd >= 0)
		close(mover->pagemap_fd);
	mover->proc_fd = mover->pagemap_fd = -1;
}

static int open_proc(struct mover *mover, int pagemap_fd, struct error *err)
{
	char path[32];

	snprintf(path, sizeof path, "/proc/%d", (int)mover->pid);
	mover->proc_fd = mover->pid > 0 ? open(path, O_PATH | O_DIRECTORY | O_CLOEXEC) : -1;
	if (mover->proc_fd < 0)
		mover->pagemap_fd = -ESRCH;
	else
		mover->pagemap_fd = pagemap_fd < 0 ? pagemap_open(mover->pid) : pagemap_of(pagemap_fd);
	switch (mover->pagemap_fd) {
	case -ENOENT:
	case -ESRCH:
	case -EINVAL: /* it has no memory any more */
		close_proc(mover);
		return 0;
	case -ENOTTY:
		return error_set(err, ENOTSUP, "private guest memory needs Linux 6.8");
	}
	return mover->pagemap_fd >= 0 ?
		       0 :
		       error_set(err, -mover->pagemap_fd, "cannot see the memory of process %d: %s",
				 (int)mover->pid, strerror(-mover->pagemap_fd));
}

/* A predecessor died with an order under way. One that was not taken is taken back; what one that was did, is
 * seen by what is in guest memory and in scratch. */
static int await_predecessors(struct mover *mover, struct error *err)
{
	uint64_t until_ns = now_ns() + PREDECESSOR_NS, taken_ns = 0;
	uint32_t state;

	while (!take_back(mover) && (state = load(&mover->mailbox->state)) == VMMSWAP_MAILBOX_TAKEN &&
	       has_thread(mover)) {
		if (now_ns() > until_ns)
			return error_set(
				err, EBUSY,
				"the thread of process %d that moves its pages is not done with what was asked "
				"before; is the VMM stopped? Trying again",
				(int)mover->pid);
		futex_wait(&mover->mailbox->state, state);
		end_if_stuck(mover, (int)(load(&mover->mailbox->place) % VMMSWAP_PLACES), &taken_ns);
	}
	__atomic_store_n(&mover->mailbox->state, VMMSWAP_MAILBOX_IDLE, __ATOMIC_RELEASE);
	for (int place = 0; place < VMMSWAP_PLACES; place++)
		atomic_store(&mover->windows[place],
			     __atomic_load_n(&mover->mailbox->windows[place], __ATOMIC_RELAXED) &
				     ~(VMMSWAP_WINDOW_BYTES - 1));
	return 0;
}

int mover_open(pid_t pid, int mailbox_fd, int pagemap_fd, struct mover **out, struct error *err)
{
	struct mover *mover = calloc(1, sizeof *mover);
	int rc;

	if (!mover)
		return error_set(err, ENOMEM, "no memory for the mailbox");
	mover->pid = pid;
	mover->proc_fd = mover->pagemap_fd = -1;
	pthread_mutex_init(&mover->call_lock, NULL);
	pthread_mutex_init(&mover->places_lock, NULL);
	pthread_cond_init(&mover->place_is_free, NULL);
	rc = map_mailbox(mover, mailbox_fd, err);
	if (!rc)
		rc = open_proc(mover, pagemap_fd, err);
	if (!rc)
		rc = await_predecessors(mover, err);
	if (rc) {
		mover_close(mover);
		return rc;
	}
	*out = mover;
	return 0;
}

void mover_close(struct mover *mover)
{
	if (!mover)
		return;
	if (mover->mailbox)
		munmap(mover->mailbox, VMMSWAP_MAILBOX_BYTES);
	close_proc(mover);
	pthread_cond_destroy(&mover->place_is_free);
	pthread_mutex_destroy(&mover->places_lock);
	pthread_mutex_destroy(&mover->call_lock);
	free(mover);
}
