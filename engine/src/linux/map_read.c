/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "linux/map_read.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "base/failpoint.h"
#include "linux/procfs.h"

#define SECOND_NS 1000000000ull

uint64_t map_read_now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * SECOND_NS + (uint64_t)now.tv_nsec;
}

/* "SIZE RESIDENT SHARED ...", in pages. Everybody may read it. */
int map_read_sizes(struct map_read *now)
{
	char path[32], text[128], *at;
	ssize_t got;

	snprintf(path, sizeof path, "/proc/%d/statm", now->pid);
	got = procfs_read(AT_FDCWD, path, text, sizeof text);
	if (got <= 0)
		return got ? (int)got : -ESRCH;
	now->size_pages = strtoull(text, &at, 10);
	strtoull(at, &at, 10);
	now->shared_pages = strtoull(at, &at, 10);
	return 0;
}

/* If looks are a minute apart, each would otherwise read the maps of all processes. */
static bool is_its_turn(const struct map_read *before, uint64_t looks, uint64_t time_ns)
{
	return looks >= before->turn_look && (time_ns >= before->turn_ns || FAILPOINT("map_read.minute"));
}

bool map_read_is_due(const struct map_read *before, const struct map_read *now, uint64_t looks,
		     uint64_t time_ns)
{
	if (is_its_turn(before, looks, time_ns))
		return true;
	return (before->size_pages != now->size_pages || before->shared_pages != now->shared_pages) &&
	       time_ns >= before->rests_until_ns;
}

/* At least half of it, and less than all. */
static uint64_t part_of(uint64_t whole, pid_t pid)
{
	return whole / 2 + (uint64_t)pid % (whole / 2);
}

void map_read_done(struct map_read *now, uint64_t looks, uint64_t since_ns)
{
	uint64_t end_ns = map_read_now_ns();

	now->rests_until_ns = end_ns + (end_ns - since_ns) * MAP_READ_REST;
	/* Spread the reads over several looks, although all processes were first read in one. */
	now->turn_ns = end_ns + part_of(MAP_READ_TURN_S, now->pid) * SECOND_NS;
	now->turn_look = looks + part_of(MAP_READ_TURN_LOOKS, now->pid);
}

int map_read_compare_pids(const void *one, const void *other)
{
	const pid_t *a = one, *b = other;

	return *a < *b ? -1 : *a > *b;
}

static int compare_record(const void *pid, const void *record)
{
	return map_read_compare_pids(pid, &((const struct map_read *)record)->pid);
}

const void *map_read_find(const void *records, size_t records_n, size_t record_bytes, pid_t pid)
{
	return records_n ? bsearch(&pid, records, records_n, record_bytes, compare_record) : NULL;
}
