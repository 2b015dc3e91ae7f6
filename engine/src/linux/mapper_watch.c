/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "linux/mapper_watch.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "linux/map_read.h"
#include "linux/procfs.h"

/* A process as it was when its maps were last read. */
struct seen {
	struct map_read read; /* first */
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

static int read_maps(const struct mapper_watch *watch, struct seen *seen, const struct mapped_file *files,
		     size_t files_n, struct mapper_list *out)
{
	const struct pid_list one = { .pids = &seen->read.pid, .pids_n = 1 };
	size_t mappings_n = out->mappings_n, unreadable_n = out->unreadable.pids_n;
	uint64_t since_ns = map_read_now_ns();
	int rc = mappers_among(&one, files, files_n, out);

	seen->maps = out->mappings_n > mappings_n;
	seen->unreadable = out->unreadable.pids_n > unreadable_n;
	map_read_done(&seen->read, watch->looks, since_ns);
	return rc;
}

/* Add what is known of a process from now on to *seen. */
static int look_at(const struct mapper_watch *watch, struct seen *seen, const struct mapped_file *files,
		   size_t files_n, struct mapper_list *out)
{
	const struct seen *before =
		map_read_find(watch->seen, watch->seen_n, sizeof *watch->seen, seen->read.pid);

	if (!before || before->maps ||
	    map_read_is_due(&before->read, &seen->read, watch->looks, map_read_now_ns()))
		return read_maps(watch, seen, files, files_n, out);
	*seen = *before; /* its sizes too: a change that was not followed is still a change */
	return seen->unreadable ? pid_list_add(&out->unreadable, seen->read.pid) : 0;
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
		qsort(pids.pids, pids.pids_n, sizeof *pids.pids, map_read_compare_pids);
	for (size_t i = 0; i < pids.pids_n && !rc; i++) {
		seen[seen_n] = (struct seen){ .read.pid = pids.pids[i] };
		if (pids.pids[i] == getpid())
			continue;
		rc = map_read_sizes(&seen[seen_n].read);
		if (!rc)
			rc = look_at(watch, &seen[seen_n++], files, files_n, out);
		else if (!procfs_is_shortage(rc)) /* it has ended */
			rc = 0;
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
