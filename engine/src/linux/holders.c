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
#include <sys/sysmacros.h>
#include <unistd.h>

#include "base/failpoint.h"

#define LINK_BYTES 320 /* "/memfd:NAME (deleted)", of 249 bytes for NAME at most */

struct asked {
	struct mapped_file file;
	uint64_t mnt_id;       /* of the mount by which we have it */
	char link[LINK_BYTES]; /* what /proc/PID/fd has for it, in each process */
};

struct scan {
	struct asked *asked;
	size_t asked_n;
	bool all_memfds;
	struct holder_list *out;
};

void holders_free(struct holder_list *list)
{
	free(list->holders);
	pid_list_free(&list->unreadable);
	*list = (struct holder_list){ 0 };
}

int holders_add(struct holder_list *list, struct holder holder)
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
	for (size_t i = 0; i < scan->asked_n; i++)
		if (scan->asked[i].file.ino == ino)
			return true;
	return false;
}

/* False if it is closed meanwhile, is not ours to read, or has too long a link. */
static bool read_link(int dir_fd, const char *name, char *out)
{
	ssize_t got = readlinkat(dir_fd, name, out, LINK_BYTES);

	if (got <= 0 || got == LINK_BYTES)
		return false;
	out[got] = '\0';
	return true;
}

/* A memfd has no other name, and no mount: whoever has it open, by whatever way, and whoever asks, the link
 * is the same. So one system call tells it from most others. A file on a file system may have many names. */
static bool is_another(const struct scan *scan, int link_dir_fd, const char *name)
{
	char link[LINK_BYTES];

	if (link_dir_fd < 0 || !read_link(link_dir_fd, name, link))
		return false;
	for (size_t i = 0; i < scan->asked_n; i++)
		if (!strcmp(link, scan->asked[i].link))
			return false;
	return true;
}

static bool is_by_our_mount(const struct scan *scan, uint64_t mnt_id)
{
	for (size_t i = 0; i < scan->asked_n; i++)
		if (scan->asked[i].mnt_id == mnt_id)
			return true;
	return false;
}

/* Compare numbers of inodes and mounts only, so that few fds need a closer look. Kernels before 5.14 do not
 * report those of inodes. A memfd has one mount; another file may have been opened by any. 1, 0 or -errno. */
static int may_be_asked_for(const struct scan *scan, int dir_fd, const char *name, uint64_t *mnt_id_out)
{
	struct procfs_fdinfo info;
	int rc = procfs_fdinfo(dir_fd, name, &info);

	FAILPOINT_HERE("holders.fdinfo");
	if (rc) /* closed meanwhile, or unknown */
		return procfs_is_shortage(rc) ? rc : 0;
	if (info.has_ino && !is_asked_for(scan, info.ino))
		return 0;
	*mnt_id_out = info.mnt_id;
	return !scan->all_memfds || is_by_our_mount(scan, info.mnt_id);
}

/* By what the kernel knows: a stranger's file system need not answer. */
static int ask_for_file(int dir_fd, const char *path, int flags, struct mapped_file *out)
{
	struct statx status;

	if (statx(dir_fd, path, flags | AT_STATX_DONT_SYNC, STATX_INO, &status))
		return -errno;
	*out = (struct mapped_file){ .dev = makedev(status.stx_dev_major, status.stx_dev_minor),
				     .ino = status.stx_ino };
	return 0;
}

/* Without the process's uid even CAP_SYS_PTRACE does not open /proc/PID/fd, but pidfd_getfd works. Returns 0
 * or -errno. */
static int ask_by_getfd(pid_t pid, int number, struct mapped_file *out)
{
	int pidfd = (int)syscall(SYS_pidfd_open, pid, 0), fd, rc;

	if (pidfd < 0)
		return -errno;
	fd = (int)syscall(SYS_pidfd_getfd, pidfd, number, 0);
	rc = fd < 0 ? -errno : ask_for_file(fd, "", AT_EMPTY_PATH, out);
	if (fd >= 0)
		close(fd);
	close(pidfd);
	return rc;
}

/* To close a file may mean to wait for its file system (FUSE). -EACCES: it is not known which that is. */
static int ask_if_safe(const struct scan *scan, pid_t pid, int number, uint64_t mnt_id,
		       struct mapped_file *out)
{
	int is_ours = is_by_our_mount(scan, mnt_id);

	for (size_t i = 0; i < scan->asked_n && is_ours <= 0; i++)
		is_ours = procfs_mount_has(pid, mnt_id, scan->asked[i].file.dev);
	if (is_ours > 0)
		return ask_by_getfd(pid, number, out);
	return is_ours == 0 ? -ENOENT : -EACCES;
}

static int is_unreadable(struct scan *scan, pid_t pid)
{
	struct pid_list *list = &scan->out->unreadable;

	return list->pids_n && list->pids[list->pids_n - 1] == pid ? 0 : pid_list_add(list, pid);
}

static int look_at_fd(struct scan *scan, pid_t pid, int number, uint64_t mnt_id)
{
	struct mapped_file file;
	char path[64];
	int rc;

	snprintf(path, sizeof path, "/proc/%d/fd/%d", pid, number);
	rc = ask_for_file(AT_FDCWD, path, 0, &file);
	if (rc == -EACCES || rc == -EPERM)
		rc = ask_if_safe(scan, pid, number, mnt_id, &file);
	if (rc == -EACCES || rc == -EPERM)
		return is_unreadable(scan, pid);
	if (rc) /* closed meanwhile, or unknown */
		return procfs_is_shortage(rc) ? rc : 0;
	for (size_t i = 0; i < scan->asked_n; i++)
		if (scan->asked[i].file.dev == file.dev && scan->asked[i].file.ino == file.ino)
			return holders_add(scan->out,
					   (struct holder){ .pid = pid, .fd = number, .file_idx = i });
	return 0;
}

static bool shares_our_fds(pid_t pid)
{
	return syscall(SYS_kcmp, getpid(), pid, KCMP_FILES, 0, 0) == 0;
}

/* link_dir_fd: /proc/PID/fd, -1 if that is not to be asked. */
static int look_at_fds(struct scan *scan, pid_t pid, DIR *dir, int link_dir_fd)
{
	struct dirent *entry;
	int rc = 0;

	while (!rc && (entry = readdir(dir))) {
		char *end;
		long number = strtol(entry->d_name, &end, 10);
		uint64_t mnt_id;

		if (end == entry->d_name || *end || is_another(scan, link_dir_fd, entry->d_name))
			continue;
		rc = may_be_asked_for(scan, dirfd(dir), entry->d_name, &mnt_id);
		if (rc != 1)
			continue;
		if (shares_our_fds(pid))
			return 0;
		rc = look_at_fd(scan, pid, (int)number, mnt_id);
	}
	return rc;
}

/* -1 if we may not read its links: that takes the process's uid, fdinfo only CAP_SYS_PTRACE. */
static int open_links(const struct scan *scan, pid_t pid)
{
	char path[64];

	if (!scan->all_memfds)
		return -1;
	snprintf(path, sizeof path, "/proc/%d/fd", pid);
	return open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
}

static int scan_process(struct scan *scan, pid_t pid)
{
	char path[64];
	int link_dir_fd, rc;
	DIR *dir;

	snprintf(path, sizeof path, "/proc/%d/fdinfo", pid);
	dir = opendir(path);
	if (!dir && (errno == EACCES || errno == EPERM))
		return is_unreadable(scan, pid);
	if (!dir)
		return errno == ENOENT || errno == ESRCH ? 0 : -errno;
	link_dir_fd = open_links(scan, pid);
	rc = look_at_fds(scan, pid, dir, link_dir_fd);
	if (link_dir_fd >= 0)
		close(link_dir_fd);
	closedir(dir);
	return rc;
}

static int ask_for(struct scan *scan, const int *fds, size_t fds_n)
{
	scan->asked = calloc(fds_n ? fds_n : 1, sizeof *scan->asked);
	if (!scan->asked)
		return -ENOMEM;
	scan->all_memfds = true;
	for (; scan->asked_n < fds_n; scan->asked_n++) {
		struct asked *asked = &scan->asked[scan->asked_n];
		struct procfs_fdinfo info;
		char path[40];
		int rc = mappers_file_of(fds[scan->asked_n], &asked->file);

		if (rc)
			return rc;
		snprintf(path, sizeof path, "/proc/self/fdinfo/%d", fds[scan->asked_n]);
		rc = procfs_fdinfo(AT_FDCWD, path, &info);
		if (rc)
			return rc;
		asked->mnt_id = info.mnt_id;
		snprintf(path, sizeof path, "/proc/self/fd/%d", fds[scan->asked_n]);
		if (!read_link(AT_FDCWD, path, asked->link) || strncmp(asked->link, "/memfd:", 7))
			scan->all_memfds = false;
	}
	return 0;
}

int holders_find(const int *fds, size_t fds_n, struct holder_list *out)
{
	struct scan scan = { .out = out };
	struct pid_list pids = { 0 };
	int rc = ask_for(&scan, fds, fds_n);

	*out = (struct holder_list){ 0 };
	if (!rc)
		rc = procfs_list("/proc", &pids);
	for (size_t i = 0; i < pids.pids_n && !rc; i++)
		if (pids.pids[i] != getpid())
			rc = scan_process(&scan, pids.pids[i]);
	pid_list_free(&pids);
	free(scan.asked);
	if (rc)
		holders_free(out);
	return rc;
}

int holders_confirm(const int *fds, size_t fds_n, struct holder_list *list)
{
	struct holder_list found = { 0 };
	struct scan scan = { .out = &found };
	int rc = ask_for(&scan, fds, fds_n);

	for (size_t i = 0; i < list->holders_n && !rc; i++) {
		const struct holder *holder = &list->holders[i];
		uint64_t mnt_id;
		char path[64];

		snprintf(path, sizeof path, "/proc/%d/fdinfo/%d", holder->pid, holder->fd);
		rc = may_be_asked_for(&scan, AT_FDCWD, path, &mnt_id);
		if (rc == 1)
			rc = shares_our_fds(holder->pid) ? 0 :
							   look_at_fd(&scan, holder->pid, holder->fd, mnt_id);
	}
	free(scan.asked);
	holders_free(list);
	if (rc)
		holders_free(&found);
	*list = found;
	return rc;
}
