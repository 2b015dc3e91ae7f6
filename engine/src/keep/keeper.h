/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A second process that outlives a killed monitor for a moment, so that no userfaultfd is lost with it.
 *
 * A forked child's userfaultfd exists nowhere but in the fd table of the process that read the FORK event. If that process is
 * killed before it has stored the fd, the last reference goes, and the child reads zeros where memory is out; so does the VMM
 * after it, for the zeros are in the shared memfd then. No order of steps in one process closes this gap, as SIGKILL can come
 * right after read(). So the keeper *shares* the monitor's fd table (CLONE_FILES): what either opens is open in both, and
 * closed when both are gone. It sleeps until the monitor is dead, and then
 *
 * - with an fd store sends there each userfaultfd that is not in it yet, and ends;
 * - without one becomes the monitor: it runs the same command again, with all that the dead one had of its VM. Also when the
 *   VM's processes have all ended: its memory may be somebody else's by then, and only a monitor can find out.
 *
 * It cannot be a program of its own: execve() gives a process its own fd table (fs/exec.c, begin_new_exec()). So it begins as a
 * copy of the monitor, and gives back all of that copy but the code that it runs. Nothing here allocates, and nothing of Python
 * is there any more.
 *
 * The service manager sends the signals of stop, restart and watchdog to the whole control group; the keeper ignores all that
 * can be ignored. Two things it does not survive: SIGKILL for the whole group in that instant, and that of the out-of-memory
 * killer with memory.oom.group. */
#ifndef VMMSWAP_KEEPER_H
#define VMMSWAP_KEEPER_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define KEEPER_NAME_BYTES 48

enum keeper_kind {
	KEEPER_NOTHING, /* the entry is free */
	KEEPER_FD,
	KEEPER_VM,	/* there is a VM to serve; without this or the next nothing is kept of it */
	KEEPER_MESSAGE, /* a VM was registering that will not say so again */
};

/* Something that a successor needs. The kind is written last, and cleared first. */
struct keeper_entry {
	uint8_t kind;
	char name[KEEPER_NAME_BYTES - 1]; /* ends with a zero byte */
	int32_t fd;			  /* -1: the fd store has it, or has been sent it */
	uint32_t unused;
	uint64_t inode;
};

struct keeper_plan {
	struct keeper_entry *entries; /* in memory that is MAP_SHARED: the monitor goes on writing to it */
	size_t entries_n;
	const char *notify_address; /* of the service manager that has the fd store; NULL: there is none */
	const char *orphan_prefix; /* what a userfaultfd that nobody has named is called, before its number */

	/* Without an fd store. */
	const char *program;	    /* a path */
	const char *const *command; /* argv, ends with NULL */
	const char *fds_variable;   /* of the environment: NAME=FD,NAME=FD,... */
	const char *lives_variable; /* of the environment: how many monitors in a row have lived shortly */

	int spare_fds[4]; /* closed when the monitor is dead: it may have died for want of an fd */
};

/* Start it; before the caller has other threads, and on its first. What the plan points to is copied, but for the entries. The
 * pid, or -errno. No signal comes when it ends (wait with __WCLONE, or not at all). */
pid_t keeper_start(const struct keeper_plan *plan);

#endif
