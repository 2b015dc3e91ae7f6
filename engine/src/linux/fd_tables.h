/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The fd tables that a look has read, so that one that several processes share (CLONE_FILES) is read once. */
#ifndef VMMSWAP_FD_TABLES_H
#define VMMSWAP_FD_TABLES_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

struct fd_table {
	pid_t pid; /* of the first process that had it */
	uint64_t sightings_at, sightings_n;
};

/* In the kernel's own order (kcmp(2)). */
struct fd_tables {
	struct fd_table *tables;
	size_t n, max;
};

/* NULL: none is known to be this process's. Some system calls, the logarithm of how many there are. */
const struct fd_table *fd_tables_find(const struct fd_tables *tables, pid_t pid);

int fd_tables_add(struct fd_tables *tables, const struct fd_table *table); /* 0 or -ENOMEM */
void fd_tables_free(struct fd_tables *tables);

#endif
