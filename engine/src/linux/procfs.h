/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Readers of /proc that mappers and freeze share. They keep no state. */
#ifndef VMMSWAP_PROCFS_H
#define VMMSWAP_PROCFS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

struct pid_list {
	pid_t *pids;
	size_t pids_n;
	size_t pids_max; /* allocated */
};

int pid_list_add(struct pid_list *list, pid_t pid); /* 0 or -ENOMEM */
void pid_list_free(struct pid_list *list);	    /* leaves an empty list */

/* Append every name in a directory (/proc, /proc/PID/task) that is a number. 0, -ENOMEM, or the -errno of
 * opening or reading it: -ENOENT or -ESRCH when the process is gone. The kernel ends a task directory early,
 * without an error, if the thread that it has just listed ends: a caller that needs every thread must list
 * again until nothing changes. */
int procfs_list(const char *dir_path, struct pid_list *out);

/* Append the children of all threads of a process. Exact only while neither the process nor its children run
 * (proc(5)). 0, also if the process has ended; -ENOMEM; -ENOTSUP: the kernel does not say
 * (CONFIG_PROC_CHILDREN). */
int procfs_children(pid_t pid, struct pid_list *out);

/* Read a small file of /proc, which the kernel returns in one read. path: in dir_fd, if it is relative.
 * Returns how many bytes there were, and a '\0' after them; or -errno, and an empty string. */
ssize_t procfs_read(int dir_fd, const char *path, char *out, size_t out_bytes);

struct procfs_task {
	char state;    /* R, S, D, T, t, Z, X, ... as in /proc/PID/stat */
	char name[32]; /* printable, shortened */
};

/* 0, or -ENOENT or -ESRCH when process `pid` has no thread `tid` (any more), or another -errno of reading. */
int procfs_task(pid_t pid, pid_t tid, struct procfs_task *out);

/* What /proc/PID/fdinfo says of any fd. mnt_id: of the mount by which it was opened. has_ino: the kernel says
 * the inode's number, too (5.14). */
struct procfs_fdinfo {
	uint64_t mnt_id;
	ino_t ino;
	bool has_ino;
};

/* name: the fd's number, in the directory dir_fd. Asks no file system. 0 or -errno: it is closed by now, is
 * not ours to read, or could not be read for a shortage. */
int procfs_fdinfo(int dir_fd, const char *name, struct procfs_fdinfo *out);

/* True if it was for want of fds or memory that something was not seen. It may be there. */
bool procfs_is_shortage(int rc);

/* Says if a mount, by its mnt_id, has files of the device dev: 0: it has not; 1: it has; -ENOENT: process
 * `pid` does not see it; or another -errno of reading. Asks no file system. */
int procfs_mount_has(pid_t pid, uint64_t mnt_id, dev_t dev);

/* The process that traces a thread; 0: none that this PID namespace shows, or the thread is gone. */
pid_t procfs_tracer(pid_t pid, pid_t tid);

/* The kernel function in which a thread sleeps, or "?" if the kernel does not say. */
void procfs_wait_channel(pid_t pid, pid_t tid, char *out, size_t out_bytes);

#endif
