/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What a VMM with private memory does for its monitor: scratch, its userfaultfd, and a thread at the
 * mailbox. */
#ifndef VMMSWAP_TESTS_GUEST_MOVER_H
#define VMMSWAP_TESTS_GUEST_MOVER_H

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "../planted/mover_thread.h"

static inline void mover_need(int good, const char *what)
{
	if (good)
		return;
	perror(what);
	_exit(1);
}

/* For the VMM and its monitor. */
static inline int mover_mailbox(void)
{
	int fd = memfd_create("vmmswap mailbox", MFD_CLOEXEC | MFD_ALLOW_SEALING);

	mover_need(fd >= 0 && ftruncate(fd, VMMSWAP_MAILBOX_BYTES) == 0 &&
			   fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) == 0,
		   "mailbox");
	return fd;
}

/* Private memory as far from a window's bounds as offset_bytes is, so that huge pages can be mapped. */
static inline uint64_t mover_map(uint64_t size_bytes, uint64_t offset_bytes)
{
	uint64_t window = VMMSWAP_WINDOW_BYTES;
	uintptr_t reserve = (uintptr_t)mmap(NULL, size_bytes + 2 * window, PROT_NONE,
					    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	uintptr_t at = (reserve + window - 1) / window * window + offset_bytes % window;

	mover_need((void *)reserve != MAP_FAILED &&
			   mmap((void *)at, size_bytes, PROT_READ | PROT_WRITE,
				MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0) == (void *)at,
		   "mmap");
	return at;
}

static inline void *mover_thread(void *argument)
{
	sigset_t all;

	sigfillset(&all);
	pthread_sigmask(SIG_BLOCK, &all, NULL);
	prctl(PR_SET_NAME, "vmmswap");
	vmmswap_mover_run(argument);
	return NULL;
}

static inline void mover_register_scratch(struct vmmswap_mover *mover)
{
	struct uffdio_api api = { .api = UFFD_API };
	struct uffdio_register scratch = { .range = { mover->scratch_addr, VMMSWAP_SCRATCH_BYTES },
					   .mode = UFFDIO_REGISTER_MODE_MISSING };

	mover->uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY);
	mover_need(mover->uffd >= 0 && ioctl(mover->uffd, UFFDIO_API, &api) == 0 &&
			   ioctl(mover->uffd, UFFDIO_REGISTER, &scratch) == 0,
		   "userfaultfd for scratch");
}

/* The thread runs when this returns. `mover` has its ranges, and lives on. */
static inline void mover_start(struct vmmswap_mover *mover, int mailbox_fd)
{
	pthread_t thread;

	mover->mailbox = mmap(NULL, VMMSWAP_MAILBOX_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, mailbox_fd, 0);
	mover_need(mover->mailbox != MAP_FAILED, "mmap of the mailbox");
	mover->scratch_addr = mover_map(VMMSWAP_SCRATCH_BYTES, 0);
	mover_need(madvise((void *)mover->scratch_addr, VMMSWAP_SCRATCH_BYTES, MADV_DONTFORK) == 0,
		   "MADV_DONTFORK");
	mover_register_scratch(mover);
	mover->mailbox->magic = VMMSWAP_MAILBOX_MAGIC;
	mover->mailbox->scratch_addr = mover->scratch_addr;
	mover_need(pthread_create(&thread, NULL, mover_thread, mover) == 0, "pthread_create");
	while (!__atomic_load_n(&mover->mailbox->tid, __ATOMIC_ACQUIRE))
		sched_yield();
}

/* UFFDIO_MOVE is since Linux 6.8. */
static inline int mover_can_move(void)
{
	struct uffdio_api api = { .api = UFFD_API };
	int uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | UFFD_USER_MODE_ONLY), can;

	can = uffd >= 0 && ioctl(uffd, UFFDIO_API, &api) == 0 && (api.features & ((uint64_t)1 << 16));
	if (uffd >= 0)
		close(uffd);
	return can;
}

#endif
