/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Which processes map the guest's memory, and where. */
#ifndef VMMSWAP_MAPPERS_H
#define VMMSWAP_MAPPERS_H

#include "linux/procfs.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/* A file as /proc/PID/maps names it. */
struct mapped_file {
	dev_t dev;
	ino_t ino; /* MAPPED_ANY_INO: all files of the device */
};

#define MAPPED_ANY_INO 0 /* no file has this number: maps shows it where nothing is mapped */

/* One mapping of one of the files. A private one never writes to the file, but reading a hole through it
 * fills the hole with zeros, for everybody. */
struct mapping {
	pid_t pid;
	uint64_t addr;
	uint64_t size_bytes;
	uint64_t offset_bytes; /* where in the file it begins */
	size_t file_idx;       /* which of the files asked for */
	ino_t ino;	       /* the file's */
	bool is_private;       /* MAP_PRIVATE */
};

struct mapper_list {
	struct mapping *mappings; /* grouped by process, addresses ascending in each */
	size_t mappings_n;
	size_t mappings_max;	    /* allocated */
	struct pid_list pids;	    /* processes with at least one shared mapping, each once */
	struct pid_list unreadable; /* processes whose maps we may not read: any of them may be a mapper */
};

/* The name that /proc/PID/maps shows for an open file. Right for shmem and hugetlbfs, so for every memfd.
 * (Not for every file system: btrfs and overlayfs give fstat() a device number that maps does not show.) 0 or
 * -errno. */
int mappers_file_of(int fd, struct mapped_file *out);

/* Look through the maps of all processes except our own. Kernel threads, zombies and processes that end
 * meanwhile are left out. Each line is true for the moment when it was read: a process that runs may add or
 * drop mappings meanwhile. If /proc is mounted with hidepid=, other users' processes are missing. 0, -ENOMEM
 * or the -errno of reading /proc. On success the caller frees the list. */
int mappers_find(const struct mapped_file *files, size_t files_n, struct mapper_list *out);

/* As mappers_find(), for these processes only. Appends to *out, which may be empty. The caller frees it, also
 * on failure. */
int mappers_among(const struct pid_list *pids, const struct mapped_file *files, size_t files_n,
		  struct mapper_list *out);
void mappers_free(struct mapper_list *list); /* leaves an empty list */

#endif
