/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "linux/mapper_watch.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/failpoint.h"

#define SECOND_NS 1000000000ull

/* A process as it was when its maps were last read. */
struct seen {
	pid_t pid;
	uint64_t size_pages, shared_pages;
	uint64_t rests_until_ns; /* do not follow a change before this time: reading its maps takes long */
	uint64_t turn_ns, turn_look; /* when to read them without a change: when both have come */
	bool maps, unreadable;
};

struct mapper_watch {
	struct seen *seen; /* pids ascending */
	size_t seen_n;
	struct mapped_file *files; /* the files that were looked for */
	size_t files_n;
	uint64_t looks;
};

int mapper_watch_create(struct mapper_watch **out)
{
	*out = calloc(1, sizeof **out);
	return *out ? 0 : -ENOMEM;
}

void mapper_watch_destroy(struct mapper_watch *watch)
{
	if (watch) {
		free(watch->seen);
		free(watch->files);
	}
	free(watch);
}

/* What is known of processes concerns these files: with other files, look at everything again. */
static int ask_for(struct mapper_watch *watch, const struct mapped_file *files, size_t files_n)
{
	size_t bytes = files_n * sizeof *files;
	struct mapped_file *copy;

	if (watch->files && watch->files_n == files_n && !memcmp(watch->files, files, bytes))
		return 0;
	copy = malloc(bytes ? bytes : 1);
	if (!copy)
		return -ENOMEM;
	memcpy(copy, files, bytes);
	free(watch->files);
	watch->files = copy;
	watch->files_n = files_n;
	watch->seen_n = 0;
	return 0;
}

static uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * SECOND_NS + (uint64_t)now.tv_nsec;
}

static int compare_pids(const void *one, const void *other)
{
	const pid_t *a = one, *b = other;

	return *a < *b ? -1 : *a > *b;
}

static int compare_seen(const void *pid, const void *seen)
{
	return compare_pids(pid, &((const struct seen *)seen)->pid);
}

static const struct seen *find(const struct mapper_watch *watch, pid_t pid)
{
	return watch->seen_n ? bsearch(&pid, watch->seen, watch->seen_n, sizeof *watch->seen, compare_seen) :
			       NULL;
}

/* "SIZE RESIDENT SHARED ...", in pages. False if the process has ended. Everybody may read it. */
static bool read_sizes(struct seen *seen)
{
	char path[32], text[128], *at;
	ssize_t got;
	int fd;

	snprintf(path, sizeof path, "/proc/%d/statm", seen->pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return false;
	got = read(fd, text, sizeof text - 1);
	close(fd);
	if (got <= 0)
		return false;
	text[got] = '\0';
	seen->size_pages = strtoull(text, &at, 10);
	strtoull(at, &at, 10);
	seen->shared_pages = strtoull(at, &at, 10);
	return true;
}

/* If looks are a minute apart, each would otherwise read the maps of all processes. */
static bool is_its_turn(const struct mapper_watch *watch, const struct seen *before, uint64_t time_ns)
{
	return watch->looks >= before->turn_look &&
	       (time_ns >= before->turn_ns || FAILPOINT("mapper_watch.minute"));
}

static bool must_be_read(const struct mapper_watch *watch, const struct seen *before, const struct seen *now,
			 uint64_t time_ns)
{
	if (!before || before->maps || is_its_turn(watch, before, time_ns))
		return true;
	return (before->size_pages != now->size_pages || before->shared_pages != now->shared_pages) &&
	       time_ns >= before->rests_until_ns;
}

/* At least half of it, and less than all. */
static uint64_t part_of(uint64_t whole, pid_t pid)
{
	return whole / 2 + (uint64_t)pid % (whole / 2);
}

static int read_maps(const struct mapper_watch *watch, struct seen *seen, const struct mapped_file *files,
		     size_t files_n, struct mapper_list *out)
{
	const struct pid_list one = { .pids = &seen->pid, .pids_n = 1 };
	size_t mappings_n = out->mappings_n, unreadable_n = out->unreadable.pids_n;
	uint64_t since_ns = now_ns(), end_ns;
	int rc = mappers_among(&one, files, files_n, out);

	end_ns = now_ns();
	seen->maps = out->mappings_n > mappings_n;
	seen->unreadable = out->unreadable.pids_n > unreadable_n;
	seen->rests_until_ns = end_ns + (end_ns - since_ns) * MAPPER_WATCH_REST;
	/* Spread the reads over several looks, although all processes were first read in one. */
	seen->turn_ns = end_ns + part_of(MAPPER_WATCH_TURN_S, seen->pid) * SECOND_NS;
	seen->turn_look = watch->looks + part_of(MAPPER_WATCH_TURN_LOOKS, seen->pid);
	return rc;
}

/* Add what is known of a process from now on to *seen. */
static int look_at(const struct mapper_watch *watch, struct seen *seen, const struct mapped_file *files,
		   size_t files_n, struct mapper_list *out)
{
	const struct seen *before = find(watch, seen->pid);

	if (must_be_read(watch, before, seen, now_ns()))
		return read_maps(watch, seen, files, files_n, out);
	*seen = *before; /* its sizes too: a change that was not followed is still a change */
	return seen->unreadable ? pid_list_add(&out->unreadable, seen->pid) : 0;
}

int mapper_watch_look(struct mapper_watch *watch, const struct mapped_file *files, size_t files_n,
		      struct mapper_list *out)
{
	struct pid_list pids = { 0 };
	struct seen *seen = NULL;
	size_t seen_n = 0;
	int rc = ask_for(watch, files, files_n);

	watch->looks++;
	*out = (struct mapper_list){ 0 };
	if (!rc)
		rc = procfs_list("/proc", &pids);
	if (!rc && !(seen = calloc(pids.pids_n, sizeof *seen)))
		rc = -ENOMEM;
	if (!rc)
		qsort(pids.pids, pids.pids_n, sizeof *pids.pids, compare_pids);
	for (size_t i = 0; i < pids.pids_n && !rc; i++) {
		seen[seen_n] = (struct seen){ .pid = pids.pids[i] };
		if (pids.pids[i] == getpid() || !read_sizes(&seen[seen_n]))
			continue;
		rc = look_at(watch, &seen[seen_n++], files, files_n, out);
	}
	pid_list_free(&pids);
	if (rc) {
		free(seen);
		mappers_free(out);
		return rc;
	}
	free(watch->seen);
	watch->seen = seen;
	watch->seen_n = seen_n;
	return 0;
}
