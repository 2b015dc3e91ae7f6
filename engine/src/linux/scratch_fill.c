/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "linux/scratch_fill.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/units.h"
#include "linux/uffd.h"

/* Its line "API:" is in no other file's fdinfo that a VMM has. */
static bool may_be_uffd(int fdinfo_fd, const char *number)
{
	int fd = openat(fdinfo_fd, number, O_RDONLY | O_CLOEXEC);
	char text[512];
	ssize_t got = fd < 0 ? -1 : read(fd, text, sizeof text - 1);

	if (fd >= 0)
		close(fd);
	text[got > 0 ? got : 0] = '\0';
	return strstr(text, "\nAPI:\t");
}

static bool watches(int fd, uint64_t addr)
{
	static const char name[] = "anon_inode:[userfaultfd]";
	char path[64], link[64];
	ssize_t got;

	snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
	got = readlink(path, link, sizeof link);
	return got == (ssize_t)strlen(name) && !memcmp(link, name, strlen(name)) &&
	       uffd_is_registered(fd, addr) == UFFD_YES;
}

/* A copy of the process's userfaultfd with which addr is registered, or -errno. */
static int find_uffd(int pidfd, int proc_fd, uint64_t addr)
{
	int fdinfo_fd = openat(proc_fd, "fdinfo", O_RDONLY | O_DIRECTORY | O_CLOEXEC), found = -ENOENT;
	DIR *dir = fdinfo_fd < 0 ? NULL : fdopendir(fdinfo_fd);
	struct dirent *entry;

	if (!dir) {
		found = -errno;
		if (fdinfo_fd >= 0)
			close(fdinfo_fd);
		return found;
	}
	while (found < 0 && (entry = readdir(dir))) {
		if (!may_be_uffd(fdinfo_fd, entry->d_name))
			continue;
		found = (int)syscall(SYS_pidfd_getfd, pidfd, atoi(entry->d_name), 0);
		if (found >= 0 && watches(found, addr))
			break;
		if (found >= 0)
			close(found);
		found = -ENOENT;
	}
	closedir(dir);
	return found;
}

int scratch_fill(pid_t pid, int proc_fd, uint64_t addr, uint64_t size_bytes)
{
	int pidfd = (int)syscall(SYS_pidfd_open, pid, 0), uffd, filled = 0;

	if (pidfd < 0)
		return -errno;
	/* The number may be another process's by now; the directory is not. */
	uffd = faccessat(proc_fd, "task", F_OK, 0) == 0 ? find_uffd(pidfd, proc_fd, addr) : -ESRCH;
	close(pidfd);
	if (uffd < 0)
		return uffd;
	for (uint64_t at = addr; at < addr + size_bytes; at += PAGE_BYTES)
		filled += uffd_zeropage(uffd, at) == UFFD_DONE;
	close(uffd);
	return filled;
}
