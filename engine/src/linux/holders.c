/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "linux/holders.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/kcmp.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define FDINFO_BYTES 512 /* pos, flags, mnt_id and ino come first */

struct scan {
	const struct mapped_file *files;
	size_t files_n;
	struct holder_list *out;
};

void holders_free(struct holder_list *list)
{
	free(list->holders);
	pid_list_free(&list->unreadable);
	*list = (struct holder_list){ 0 };
}

static int add_holder(struct holder_list *list, struct holder holder)
{
	if (list->holders_n == list->holders_max) {
		size_t max = list->holders_max ? 2 * list->holders_max : 16;
		struct holder *holders = realloc(list->holders, max * sizeof *holders);

		if (!holders)
			return -ENOMEM;
		list->holders = holders;
		list->holders_max = max;
	}
	list->holders[list->holders_n++] = holder;
	return 0;
}

static bool is_asked_for(const struct scan *scan, ino_t ino)
{
	for (size_t i = 0; i < scan->files_n; i++)
		if (scan->files[i].ino == ino)
			return true;
	return false;
}

/* Compare inode numbers only, so that few fds need a closer look. Kernels before 5.14 do not report them. */
static bool may_be_asked_for(const struct scan *scan, int dir_fd, const char *name)
{
	char text[FDINFO_BYTES], *at;
	int fd = openat(dir_fd, name, O_RDONLY | O_CLOEXEC);
	ssize_t got;

	if (fd < 0)
		return false; /* closed meanwhile */
	got = read(fd, text, sizeof text - 1);
	close(fd);
	if (got <= 0)
		return false;
	text[got] = '\0';
	at = strstr(text, "\nino:");
	return !at || is_asked_for(scan, (ino_t)strtoull(at + strlen("\nino:"), NULL, 10));
}

/* Without the process's uid even CAP_SYS_PTRACE does not open /proc/PID/fd, but pidfd_getfd works. Returns 0
 * or -errno. */
static int stat_by_getfd(pid_t pid, int number, struct stat *out)
{
	int pidfd = (int)syscall(SYS_pidfd_open, pid, 0), fd, rc;

	if (pidfd < 0)
		return -errno;
	fd = (int)syscall(SYS_pidfd_getfd, pidfd, number, 0);
	rc = fd < 0 || fstat(fd, out) ? -errno : 0;
	if (fd >= 0)
		close(fd);
	close(pidfd);
	return rc;
}

static int look_at_fd(struct scan *scan, pid_t pid, int number)
{
	char path[64];
	struct stat status;
	int rc;

	snprintf(path, sizeof path, "/proc/%d/fd/%d", pid, number);
	rc = stat(path, &status) ? -errno : 0;
	if (rc == -EACCES || rc == -EPERM)
		rc = stat_by_getfd(pid, number, &status);
	if (rc) /* closed meanwhile, or unknown */
		return rc == -EMFILE || rc == -ENFILE || rc == -ENOMEM ? rc : 0;
	for (size_t i = 0; i < scan->files_n; i++)
		if (scan->files[i].dev == status.st_dev && scan->files[i].ino == status.st_ino)
			return add_holder(scan->out,
					  (struct holder){ .pid = pid, .fd = number, .file_idx = i });
	return 0;
}

static bool shares_our_fds(pid_t pid)
{
	return syscall(SYS_kcmp, getpid(), pid, KCMP_FILES, 0, 0) == 0;
}

static int look_at_fds(struct scan *scan, pid_t pid, DIR *dir)
{
	struct dirent *entry;
	int rc = 0;

	while (!rc && (entry = readdir(dir))) {
		char *end;
		long number = strtol(entry->d_name, &end, 10);

		if (end == entry->d_name || *end || !may_be_asked_for(scan, dirfd(dir), entry->d_name))
			continue;
		if (shares_our_fds(pid))
			return 0;
		rc = look_at_fd(scan, pid, (int)number);
	}
	return rc;
}

static int scan_process(struct scan *scan, pid_t pid)
{
	char path[64];
	DIR *dir;
	int rc;

	snprintf(path, sizeof path, "/proc/%d/fdinfo", pid);
	dir = opendir(path);
	if (!dir && (errno == EACCES || errno == EPERM))
		return pid_list_add(&scan->out->unreadable, pid);
	if (!dir)
		return errno == ENOENT || errno == ESRCH ? 0 : -errno;
	rc = look_at_fds(scan, pid, dir);
	closedir(dir);
	return rc;
}

int holders_find(const struct mapped_file *files, size_t files_n, struct holder_list *out)
{
	struct scan scan = { .files = files, .files_n = files_n, .out = out };
	struct pid_list pids = { 0 };
	int rc = procfs_list("/proc", &pids);

	*out = (struct holder_list){ 0 };
	for (size_t i = 0; i < pids.pids_n && !rc; i++)
		if (pids.pids[i] != getpid())
			rc = scan_process(&scan, pids.pids[i]);
	pid_list_free(&pids);
	if (rc)
		holders_free(out);
	return rc;
}
