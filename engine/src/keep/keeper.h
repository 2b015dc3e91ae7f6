/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A second process that outlives a killed monitor for a moment, so that no userfaultfd is lost with it.
 *
 * A forked child's userfaultfd exists only in the fd table of the process that read the FORK event. If that
 * process is killed before it has stored the fd, the last reference goes, and the child reads zeros where
 * memory is swapped out. The VMM then reads zeros too, for they are in the shared memfd. No order of steps in
 * one process closes this gap, as SIGKILL can come right after read(). So the keeper *shares* the monitor's
 * fd table (CLONE_FILES): an fd that either opens is open in both, and closes when both are gone. The keeper
 * sleeps until the monitor is dead. Then
 *
 * - with an fd store, it sends there each userfaultfd that is not yet in it, and ends;
 * - without one, it becomes the monitor: it runs the same command again, with all that the dead one had of
 *   its VM. It does so even when the VM's processes have all ended: by then the VM's memory may belong to
 *   somebody else, and only a monitor can find out.
 *
 * It cannot be a program of its own: execve() gives a process its own fd table (fs/exec.c, begin_new_exec()).
 * So it begins as a copy of the monitor, and releases all of that copy except the code that it runs. Nothing
 * here allocates, and nothing of Python is left.
 *
 * The service manager sends the signals of stop, restart and watchdog to the whole control group; the keeper
 * ignores every signal that can be ignored. It does not survive two things: SIGKILL for the whole group at
 * that instant, and the out-of-memory killer with memory.oom.group. */
#ifndef VMMSWAP_KEEPER_H
#define VMMSWAP_KEEPER_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define KEEPER_NAME_BYTES 48

enum keeper_kind {
	KEEPER_NOTHING, /* the entry is free */
	KEEPER_FD,
	KEEPER_VM,	/* there is a VM to serve; without this or the next nothing is stored of it */
	KEEPER_MESSAGE, /* a VM was registering, and will not send its message again */
};

/* Something that a successor needs. The kind is written last and cleared first. */
struct keeper_entry {
	uint8_t kind;
	char name[KEEPER_NAME_BYTES - 1]; /* ends with a zero byte */
	int32_t fd;			  /* -1: it is in the fd store, or was sent there */
	uint32_t unused;
	uint64_t inode;
};

struct keeper_plan {
	struct keeper_entry *entries; /* in MAP_SHARED memory: the monitor continues to write to it */
	size_t entries_n;
	const char *notify_address; /* of the service manager that has the fd store; NULL: there is none */
	const char *orphan_prefix;  /* the name of a userfaultfd that nobody has named, before its number */

	/* Only without an fd store. */
	const char *program;	    /* a path */
	const char *const *command; /* argv, ends with NULL */
	const char *fds_variable;   /* of the environment: NAME=FD,NAME=FD,... */
	const char *lives_variable; /* of the environment: how many monitors in a row died early */

	int spare_fds[4]; /* closed when the monitor is dead: it may have died because fds ran out */
};

/* Start the keeper. Call it before the caller has other threads, on its first thread. All that the plan
 * points to is copied, except the entries. Returns the pid, or -errno. No signal is sent when the keeper ends
 * (wait with __WCLONE, or not at all). */
pid_t keeper_start(const struct keeper_plan *plan);

#endif
