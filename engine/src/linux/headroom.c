/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "linux/headroom.h"

#include <fcntl.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define GROUPS_MAX 32
#define UNLIMITED ((uint64_t)1 << 62) /* version 1 has a number near 2^63 where there is no limit */

struct headroom {
	char *proc;
	size_t groups_n;
	char *groups[GROUPS_MAX]; /* directories of our cgroup and of those around it */
};

static bool read_file_text(const char *path, char *text, size_t room)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	size_t done = 0;
	ssize_t got = 0;

	if (fd < 0)
		return false;
	while (done < room - 1 && (got = read(fd, text + done, room - 1 - done)) > 0)
		done += (size_t)got;
	close(fd);
	text[done] = 0;
	return got >= 0;
}

/* The number after `key` at the beginning of a line. */
static bool number_of(const char *text, const char *key, uint64_t *number)
{
	size_t key_bytes = strlen(key);

	for (const char *line = text; line; line = strchr(line, '\n')) {
		line += *line == '\n';
		if (strncmp(line, key, key_bytes) == 0)
			return sscanf(line + key_bytes, " %lu", number) == 1;
	}
	return false;
}

static bool number_in(const char *dir, const char *name, uint64_t *number)
{
	char path[PATH_MAX + 64], text[64];

	snprintf(path, sizeof path, "%s/%s", dir, name);
	return read_file_text(path, text, sizeof text) && sscanf(text, "%lu", number) == 1 &&
	       *number < UNLIMITED;
}

/* Page cache that the kernel drops before it kills: what is inactive. */
static uint64_t reclaimable(const char *dir)
{
	char path[PATH_MAX + 64], text[8192];
	uint64_t bytes = 0;

	snprintf(path, sizeof path, "%s/memory.stat", dir);
	if (!read_file_text(path, text, sizeof text))
		return 0;
	return number_of(text, "total_inactive_file", &bytes) || number_of(text, "inactive_file", &bytes) ?
		       bytes :
		       0;
}

static uint64_t group_bytes(const char *dir)
{
	static const char *const limits[] = { "memory.max", "memory.high", "memory.limit_in_bytes" };
	uint64_t limit = UINT64_MAX, used, one;

	for (size_t i = 0; i < sizeof limits / sizeof *limits; i++)
		if (number_in(dir, limits[i], &one) && one < limit)
			limit = one;
	if (limit == UINT64_MAX ||
	    (!number_in(dir, "memory.current", &used) && !number_in(dir, "memory.usage_in_bytes", &used)))
		return UINT64_MAX;
	if (used >= limit || limit - used < limit / 8)
		used -= reclaimable(dir) < used ? reclaimable(dir) : used;
	return used < limit ? limit - used : 0;
}

static uint64_t host_bytes(const char *proc)
{
	char path[PATH_MAX + 64], text[8192];
	uint64_t kib;

	snprintf(path, sizeof path, "%s/meminfo", proc);
	return read_file_text(path, text, sizeof text) && number_of(text, "MemAvailable:", &kib) ? kib << 10 :
												   UINT64_MAX;
}

/* The cgroup, and all those around it up to the mount point. */
static void add_groups(struct headroom *headroom, const char *point, const char *path)
{
	char dir[PATH_MAX];
	size_t point_bytes = strlen(point);

	if (snprintf(dir, sizeof dir, "%s%s", point, strcmp(path, "/") ? path : "") >= (int)sizeof dir)
		return;
	while (strlen(dir) >= point_bytes && headroom->groups_n < GROUPS_MAX) {
		char *end;

		headroom->groups[headroom->groups_n] = strdup(dir);
		headroom->groups_n += headroom->groups[headroom->groups_n] != NULL;
		end = strrchr(dir, '/');
		if (!end || (size_t)(end - dir) < point_bytes)
			return;
		*end = 0;
	}
}

/* Of one hierarchy: its mount point and our path in it. */
static void find_groups(struct headroom *headroom, const char *point, bool is_unified, const char *cgroups)
{
	for (const char *line = cgroups; line && *line;) {
		const char *end = strchr(line, '\n'), *names = strchr(line, ':');
		const char *path = names ? strchr(names + 1, ':') : NULL;
		size_t line_bytes = end ? (size_t)(end - line) : strlen(line);

		if (path && path < line + line_bytes) {
			char controllers[256], own[PATH_MAX];

			snprintf(controllers, sizeof controllers, ",%.*s,", (int)(path - names - 1),
				 names + 1);
			snprintf(own, sizeof own, "%.*s", (int)(line + line_bytes - path - 1), path + 1);
			if (is_unified ? strcmp(controllers, ",,") == 0 :
					 strstr(controllers, ",memory,") != NULL)
				add_groups(headroom, point, own);
		}
		line = end ? end + 1 : NULL;
	}
}

static void find_hierarchies(struct headroom *headroom, const char *proc)
{
	char path[PATH_MAX], cgroups[8192], *line = NULL;
	size_t room = 0;
	FILE *mounts;

	snprintf(path, sizeof path, "%s/self/cgroup", proc);
	if (!read_file_text(path, cgroups, sizeof cgroups))
		return;
	snprintf(path, sizeof path, "%s/self/mounts", proc);
	mounts = fopen(path, "re");
	while (mounts && getline(&line, &room, mounts) > 0) {
		char point[PATH_MAX], kind[32], options[1024];

		if (sscanf(line, "%*s %4095s %31s %1023s", point, kind, options) != 3)
			continue;
		if (strcmp(kind, "cgroup2") == 0)
			find_groups(headroom, point, true, cgroups);
		else if (strcmp(kind, "cgroup") == 0 && strstr(options, "memory"))
			find_groups(headroom, point, false, cgroups);
	}
	free(line);
	if (mounts)
		fclose(mounts);
}

struct headroom *headroom_create(const char *proc)
{
	struct headroom *headroom = calloc(1, sizeof *headroom);

	if (!headroom)
		return NULL;
	headroom->proc = strdup(proc);
	if (!headroom->proc) {
		free(headroom);
		return NULL;
	}
	find_hierarchies(headroom, proc);
	return headroom;
}

void headroom_destroy(struct headroom *headroom)
{
	if (!headroom)
		return;
	for (size_t i = 0; i < headroom->groups_n; i++)
		free(headroom->groups[i]);
	free(headroom->proc);
	free(headroom);
}

uint64_t headroom_bytes(const struct headroom *headroom)
{
	uint64_t least = host_bytes(headroom->proc);

	for (size_t i = 0; i < headroom->groups_n; i++) {
		uint64_t bytes = group_bytes(headroom->groups[i]);

		if (bytes < least)
			least = bytes;
	}
	return least;
}
