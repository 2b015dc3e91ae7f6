/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "linux/mappers.h"

#include "base/failpoint.h"

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

struct scan {
	const struct mapped_file *files;
	size_t files_n;
	struct mapper_list *out;
	char *line; /* getline()'s buffer, grown as needed: a path of 4 KiB can take 16 KiB */
	size_t line_max;
};

int mappers_file_of(int fd, struct mapped_file *out)
{
	struct stat st;

	if (fstat(fd, &st))
		return -errno;
	*out = (struct mapped_file){ .dev = st.st_dev, .ino = st.st_ino };
	return 0;
}

void mappers_free(struct mapper_list *list)
{
	free(list->mappings);
	pid_list_free(&list->pids);
	pid_list_free(&list->unreadable);
	*list = (struct mapper_list){ 0 };
}

/* "ADDR-END PERM OFFSET MAJOR:MINOR INODE PATH". Look only at what precedes the path: any process chooses the
 * rest (the kernel escapes a newline in it as \012, so it cannot forge a line). False if this is not a
 * mapping of a file. Parsed by hand instead of sscanf, because a freeze scans every process while the guest
 * is stopped. */
static bool parse_line(const char *line, struct mapping *mapping, struct mapped_file *file)
{
	unsigned long major_number, minor_number;
	uint64_t end;
	char *at;

	mapping->addr = strtoull(line, &at, 16);
	if (*at++ != '-')
		return false;
	end = strtoull(at, &at, 16);
	if (strnlen(at, 6) < 6)
		return false;
	mapping->is_private = at[4] != 's';
	mapping->size_bytes = end - mapping->addr;
	mapping->offset_bytes = strtoull(at + 5, &at, 16);
	major_number = strtoul(at, &at, 16);
	if (*at++ != ':')
		return false;
	minor_number = strtoul(at, &at, 16);
	file->dev = makedev(major_number, minor_number);
	file->ino = strtoull(at, NULL, 10);
	return file->ino != 0;
}

static int add_mapping(struct mapper_list *list, const struct mapping *mapping)
{
	if (list->mappings_n == list->mappings_max) {
		size_t max = list->mappings_max ? 2 * list->mappings_max : 16;
		struct mapping *mappings = realloc(list->mappings, max * sizeof *mappings);

		if (!mappings)
			return -ENOMEM;
		list->mappings = mappings;
		list->mappings_max = max;
	}
	list->mappings[list->mappings_n++] = *mapping;
	return 0;
}

static int scan_line(struct scan *scan, pid_t pid)
{
	struct mapped_file file;
	struct mapping mapping = { .pid = pid };
	const struct pid_list *pids = &scan->out->pids;

	if (!parse_line(scan->line, &mapping, &file))
		return 0;
	for (size_t i = 0; i < scan->files_n; i++) {
		if (scan->files[i].dev != file.dev ||
		    (scan->files[i].ino != file.ino && scan->files[i].ino != MAPPED_ANY_INO))
			continue;
		mapping.file_idx = i;
		mapping.ino = file.ino;
		if (!mapping.is_private && (!pids->pids_n || pids->pids[pids->pids_n - 1] != pid) &&
		    pid_list_add(&scan->out->pids, pid))
			return -ENOMEM;
		return add_mapping(scan->out, &mapping);
	}
	return 0;
}

/* *empty_out: there was no mapping at all. Returns 0, -ENOMEM, or -EACCES or the like if the file may not be
 * read. */
static int scan_maps(struct scan *scan, pid_t pid, const char *path, bool *empty_out)
{
	int rc = 0;
	FILE *maps = fopen(path, "re");

	FAILPOINT_HERE("mappers.read");
	*empty_out = true;
	if (!maps)
		return -errno;
	errno = 0;
	while (!rc && getline(&scan->line, &scan->line_max, maps) > 0) {
		*empty_out = false;
		rc = scan_line(scan, pid);
		errno = 0;
	}
	if (!rc)
		rc = -errno;
	fclose(maps);
	return rc;
}

/* A thread-group leader that has ended while other threads live is a zombie without maps, though the memory
 * is still there: ask the other threads. This also happens for kernel threads, which have none. */
static int scan_threads(struct scan *scan, pid_t pid)
{
	struct pid_list tids = { 0 };
	bool empty = true;
	char path[64];
	int rc;

	snprintf(path, sizeof path, "/proc/%d/task", pid);
	rc = procfs_list(path, &tids);
	for (size_t i = 0; i < tids.pids_n && empty && rc != -ENOMEM; i++) {
		if (tids.pids[i] == pid)
			continue;
		snprintf(path, sizeof path, "/proc/%d/task/%d/maps", pid, tids.pids[i]);
		rc = scan_maps(scan, pid, path, &empty);
	}
	pid_list_free(&tids);
	return rc;
}

static int scan_process(struct scan *scan, pid_t pid)
{
	char path[64];
	bool empty;
	int rc;

	snprintf(path, sizeof path, "/proc/%d/maps", pid);
	rc = scan_maps(scan, pid, path, &empty);
	if (empty && (rc == 0 || rc == -ESRCH))
		rc = scan_threads(scan, pid);
	if (rc == -ENOENT || rc == -ESRCH)
		return 0; /* it has ended */
	if (rc == -EACCES || rc == -EPERM)
		return pid_list_add(&scan->out->unreadable, pid);
	return rc;
}

int mappers_among(const struct pid_list *pids, const struct mapped_file *files, size_t files_n,
		  struct mapper_list *out)
{
	struct scan scan = { .files = files, .files_n = files_n, .out = out };
	int rc = 0;

	for (size_t i = 0; i < pids->pids_n && !rc; i++)
		if (pids->pids[i] != getpid())
			rc = scan_process(&scan, pids->pids[i]);
	free(scan.line);
	return rc;
}

int mappers_find(const struct mapped_file *files, size_t files_n, struct mapper_list *out)
{
	struct pid_list pids = { 0 };
	int rc = procfs_list("/proc", &pids);

	*out = (struct mapper_list){ 0 };
	if (!rc)
		rc = mappers_among(&pids, files, files_n, out);
	pid_list_free(&pids);
	if (rc)
		mappers_free(out);
	return rc;
}
