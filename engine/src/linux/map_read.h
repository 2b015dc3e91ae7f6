/* SPDX-License-Identifier: GPL-2.0-or-later */
/* When a process's maps must be read again, for whoever looks again and again. Reading maps costs some 90 us
 * for each process, and more for one that maps much, which other users decide. A process that maps something
 * new has another size, and one that touches it has more shared pages; /proc/PID/statm shows both at once. So
 * only the maps of such processes are read.
 *
 * Some changes are found only when the process's turn comes, within MAP_READ_TURN_S, or within
 * MAP_READ_TURN_LOOKS looks where looks are rare: those that change neither its size nor its shared pages
 * (memory that is mapped over other memory and not touched), and those of a process whose maps take so long
 * to read that a look at each change would cost more than 1/MAP_READ_REST of a CPU. */
#ifndef VMMSWAP_MAP_READ_H
#define VMMSWAP_MAP_READ_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#define MAP_READ_TURN_S 60
#define MAP_READ_TURN_LOOKS 16
#define MAP_READ_REST 500

/* A process as it was when its maps were last read. */
struct map_read {
	pid_t pid;
	uint64_t size_pages, shared_pages;
	uint64_t rests_until_ns; /* do not follow a change before this time: reading its maps takes long */
	uint64_t turn_ns, turn_look; /* when to read them without a change: when both have come */
};

uint64_t map_read_now_ns(void); /* CLOCK_MONOTONIC */

/* Fill in the sizes of process now->pid. 0 or -errno: it has ended, or fds are short. */
int map_read_sizes(struct map_read *now);

/* True if its maps may have changed since `before`, or its turn has come. looks: how many there were. */
bool map_read_is_due(const struct map_read *before, const struct map_read *now, uint64_t looks,
		     uint64_t time_ns);

/* Its maps were read, from since_ns until now. */
void map_read_done(struct map_read *now, uint64_t looks, uint64_t since_ns);

/* The record of a process in an array with pids ascending, records of record_bytes that begin with struct
 * map_read; NULL: there is none. */
const void *map_read_find(const void *records, size_t records_n, size_t record_bytes, pid_t pid);

int map_read_compare_pids(const void *one, const void *other); /* for qsort() */

#endif
