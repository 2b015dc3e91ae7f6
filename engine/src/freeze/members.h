/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Finds the processes that a freeze must stop. Those that map the guest's memory are found before the freeze,
 * because this reads the maps of every process of the host, and other users decide how long that takes.
 * During the freeze, only these processes and their new children are looked at. */
#ifndef VMMSWAP_MEMBERS_H
#define VMMSWAP_MEMBERS_H

#include "linux/mappers.h"
#include "linux/procfs.h"

struct members {
	const struct mapped_file *files; /* the caller's, valid until members_free() */
	size_t files_n;
	uint64_t deadline_ns; /* CLOCK_MONOTONIC: members_list() stops looking then; UINT64_MAX: no limit */
	struct pid_list mappers; /* processes that map one of the files shared */
};

/* Look through all processes. 0, -ENOMEM or the -errno of reading /proc. */
int members_find(struct members *members, const struct mapped_file *files, size_t files_n);

/* A freeze_list_fn; ctx is a struct members. Lists its processes, and their descendants that map one of the
 * files. It does not find a process whose parent ended meanwhile: the reader of UFFD_EVENT_FORK must check
 * whether there was one. On a kernel without CONFIG_PROC_CHILDREN it looks at all processes. -ETIMEDOUT: the
 * deadline has passed. */
int members_list(void *ctx, struct pid_list *out);

void members_free(struct members *members);

#endif
