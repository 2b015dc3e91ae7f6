/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What mappers and freeze both read in /proc. Nothing here keeps state. */
#ifndef VMMSWAP_PROCFS_H
#define VMMSWAP_PROCFS_H

#include <stddef.h>
#include <sys/types.h>

struct pid_list {
	pid_t *pids;
	size_t pids_n;
	size_t pids_max; /* allocated */
};

int pid_list_add(struct pid_list *list, pid_t pid); /* 0 or -ENOMEM */
void pid_list_free(struct pid_list *list);	    /* leaves an empty list */

/* Append every all-digit name in a directory (/proc, /proc/PID/task). 0, -ENOMEM, or the -errno of opening
 * or reading it: -ENOENT or -ESRCH when the process is gone. The kernel cuts a task directory short,
 * without an error, when the thread that it has just listed ends: a caller that needs every thread must
 * list again until nothing changes. */
int procfs_list(const char *dir_path, struct pid_list *out);

/* Append a process's children: of all its threads. Exact only while neither the process nor its children run (proc(5)).
 * 0, also if the process has ended; -ENOMEM; -ENOTSUP: this kernel does not tell (CONFIG_PROC_CHILDREN). */
int procfs_children(pid_t pid, struct pid_list *out);

struct procfs_task {
	char state;    /* R, S, D, T, t, Z, X, ... as in /proc/PID/stat */
	char name[32]; /* printable, shortened */
};

/* 0, or -ENOENT or -ESRCH when process `pid` has no thread `tid` (any more), or another -errno of reading. */
int procfs_task(pid_t pid, pid_t tid, struct procfs_task *out);

/* Who traces a thread; 0: nobody that this PID namespace shows, or the thread is gone. */
pid_t procfs_tracer(pid_t pid, pid_t tid);

/* The kernel function in which a thread sleeps, or "?" where the kernel does not tell. */
void procfs_wait_channel(pid_t pid, pid_t tid, char *out, size_t out_bytes);

#endif
