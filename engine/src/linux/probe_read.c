// SPDX-License-Identifier: GPL-2.0-or-later
#include "linux/probe_read.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

/* This thread is alone in a copy of a process with threads. Holders of locks do not exist here, so use
 * nothing but system calls. */
static _Noreturn void read_one_byte(pid_t pid, uint64_t addr, int go_fd)
{
	char byte;
	struct iovec here = { .iov_base = &byte, .iov_len = 1 };
	struct iovec there = { .iov_base = (void *)(uintptr_t)addr, .iov_len = 1 };

	/* If we are killed, nobody else would end it, and it keeps our fds open. */
	syscall(SYS_prctl, PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
	while (syscall(SYS_read, go_fd, &byte, 1) == 1) {
		long done = syscall(SYS_process_vm_readv, pid, &here, 1, &there, 1, 0);

		syscall(SYS_exit_group, done == 1 ? 0 : errno);
	}
	for (;;)
		syscall(SYS_exit_group, EPIPE);
}

pid_t probe_read_start(pid_t pid, uint64_t addr, int go_fd)
{
	sigset_t all, before;
	long child;
	int rc = 0;

	/* The child must not run our signal handlers: they would write into pipes that we share. */
	sigfillset(&all);
	pthread_sigmask(SIG_BLOCK, &all, &before);
	child = syscall(SYS_clone, CLONE_FILES | SIGCHLD, 0, 0, 0, 0);
	if (!child)
		read_one_byte(pid, addr, go_fd);
	if (child < 0)
		rc = -errno;
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	return rc ? rc : (pid_t)child;
}
