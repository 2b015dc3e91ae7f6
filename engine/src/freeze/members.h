/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Who must stand still in a freeze. The processes that map the guest's memory are looked for before it
 * begins, because that reads the maps of every process of the host, and other users decide how long that
 * takes. Inside the freeze only these and what they have forked since are looked at. */
#ifndef VMMSWAP_MEMBERS_H
#define VMMSWAP_MEMBERS_H

#include "linux/mappers.h"
#include "linux/procfs.h"

struct members {
	const struct mapped_file *files; /* the caller's, valid until members_free() */
	size_t files_n;
	uint64_t
		deadline_ns; /* CLOCK_MONOTONIC: members_list() looks no longer than that; UINT64_MAX: no limit */
	struct pid_list mappers; /* processes that map one of the files shared */
};

/* Look through all processes. 0, -ENOMEM or the -errno of reading /proc. */
int members_find(struct members *members, const struct mapped_file *files, size_t files_n);

/* A freeze_list_fn, ctx a struct members: its processes and their descendants that map one of the files. A
 * process whose parent ended meanwhile is not found so: whoever is told of forks (UFFD_EVENT_FORK) looks
 * whether there was one. On a kernel without CONFIG_PROC_CHILDREN all processes are looked at. -ETIMEDOUT:
 * the deadline has passed. */
int members_list(void *ctx, struct pid_list *out);

void members_free(struct members *members);

#endif
