// SPDX-License-Identifier: GPL-2.0-or-later
/* /proc/PID/fdinfo/FD of an io_uring, among other lines:
 *
 *	UserBufs:	3
 *	    0: 0x7f972ea4b000/4096
 *	    1: 0x7f972ea4d200/10000
 *	    2: <none>
 *
 * The kernel only tries for the ring's lock. If it is taken, older kernels print the number without the list,
 * and newer ones (6.18) nothing of the ring at all, so that its fdinfo looks like any other file's. So
 * whether a descriptor is a ring is asked of its name, "anon_inode:[io_uring]", and a ring that did not tell
 * is asked again. */
#include "linux/uring_buffers.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define ASK_MAX 1000
#define INFO_BYTES_MAX ((size_t)16 << 20) /* 16384 buffers and as many files fit many times */
#define RING_NAME "anon_inode:[io_uring]"

static int name_of_own_fd(int fd, char *name, size_t name_bytes)
{
	char path[64];
	ssize_t n;

	snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
	n = readlink(path, name, name_bytes - 1);
	if (n < 0)
		return -errno;
	name[n] = 0;
	return 0;
}

/* If the process is another user's, /proc/PID/fd is closed to us even with CAP_SYS_PTRACE; a copy of the fd
 * is not. */
static int name_by_copy(pid_t pid, int fd, char *name, size_t name_bytes)
{
	int pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
	int copy, rc;

	if (pidfd < 0)
		return -errno;
	copy = (int)syscall(SYS_pidfd_getfd, pidfd, fd, 0);
	rc = copy < 0 ? -errno : name_of_own_fd(copy, name, name_bytes);
	if (copy >= 0)
		close(copy);
	close(pidfd);
	return rc;
}

static bool is_gone(int rc)
{
	return rc == -ENOENT || rc == -ESRCH || rc == -EBADF;
}

/* 1, 0 or -errno */
static int is_ring(pid_t pid, int fd)
{
	char path[64], name[64];
	ssize_t n;
	int rc = 0;

	snprintf(path, sizeof path, "/proc/%d/fd/%d", pid, fd);
	n = readlink(path, name, sizeof name - 1);
	if (n >= 0)
		name[n] = 0;
	else if (errno == EACCES || errno == EPERM)
		rc = name_by_copy(pid, fd, name, sizeof name);
	else
		rc = -errno;
	if (rc)
		return is_gone(rc) ? 0 : rc;
	return !strcmp(name, RING_NAME);
}

/* Read all of fdinfo. It is one state of the ring, however many reads it takes. The caller frees *text. */
static int read_info(pid_t pid, int fd, char **text)
{
	char path[64];
	size_t size = 4096, got = 0;
	ssize_t n = 1;
	int info, rc = 0;

	snprintf(path, sizeof path, "/proc/%d/fdinfo/%d", pid, fd);
	info = open(path, O_RDONLY | O_CLOEXEC);
	if (info < 0)
		return -errno;
	*text = malloc(size);
	while (*text && n > 0 && !rc) {
		n = read(info, *text + got, size - 1 - got);
		if (n < 0)
			rc = -errno;
		else
			got += (size_t)n;
		if (got == size - 1) {
			char *more = size < INFO_BYTES_MAX ? realloc(*text, 2 * size) : NULL;

			if (!more)
				rc = -ENOMEM;
			else
				*text = more;
			size *= 2;
		}
	}
	close(info);
	if (*text && !rc) {
		(*text)[got] = 0;
		return 0;
	}
	rc = *text ? rc : -ENOMEM;
	free(*text);
	return rc;
}

static bool overlaps(const struct uring_range *ranges, size_t ranges_n, const struct uring_found *buffer)
{
	for (size_t i = 0; i < ranges_n; i++)
		if (ranges[i].pid == buffer->pid && buffer->addr < ranges[i].addr + ranges[i].size_bytes &&
		    ranges[i].addr < buffer->addr + buffer->size_bytes)
			return true;
	return false;
}

/* Find the list in an fdinfo. 1: found; 0: there is none; -EAGAIN: the ring was locked. */
static int search_info(const char *text, const struct uring_range *ranges, size_t ranges_n,
		       struct uring_found *buffer)
{
	static const char title[] = "\nUserBufs:\t";
	const char *at = NULL, *next = text;
	unsigned long buffers_n;
	char *end;

	/* Take the last one: names of registered files precede it, and may hold anything. */
	while ((next = strstr(next, title)))
		at = next++;
	if (!at)
		return -EAGAIN;
	buffers_n = strtoul(at + strlen(title), &end, 10);
	for (unsigned long i = 0; i < buffers_n; i++) {
		if (*end++ != '\n' || strtoul(end, &end, 10) != i || strncmp(end, ": ", 2))
			return -EAGAIN;
		end += 2;
		if (!strncmp(end, "<none>", 6)) {
			end += 6;
			continue;
		}
		buffer->addr = strtoull(end, &end, 16);
		if (*end != '/')
			return -EAGAIN;
		buffer->size_bytes = strtoull(end + 1, &end, 10);
		if (overlaps(ranges, ranges_n, buffer))
			return 1;
	}
	return 0;
}

static int search_ring(const struct uring_range *ranges, size_t ranges_n, struct uring_found *buffer,
		       struct error *err)
{
	int rc = -EAGAIN;

	for (int i = 0; i < ASK_MAX && rc == -EAGAIN; i++) {
		char *text = NULL;

		if (i > 0)
			sched_yield();
		rc = read_info(buffer->pid, buffer->fd, &text);
		if (rc)
			break;
		rc = search_info(text, ranges, ranges_n, buffer);
		free(text);
	}
	if (is_gone(rc))
		return 0;
	if (rc == -EAGAIN)
		return error_set(
			err, EBUSY,
			"io_uring fd %d of process %d was busy each time it was asked for its buffers; "
			"try again",
			buffer->fd, buffer->pid);
	if (rc < 0)
		return error_set(err, -rc, "/proc/%d/fdinfo/%d: %s", buffer->pid, buffer->fd, strerror(-rc));
	if (rc)
		error_set(err, EBUSY,
			  "io_uring fd %d of process %d has guest memory registered as a fixed buffer "
			  "(0x%llx, %llu bytes), which stays pinned: turn fixed buffers off in the VMM",
			  buffer->fd, buffer->pid, (unsigned long long)buffer->addr,
			  (unsigned long long)buffer->size_bytes);
	return rc;
}

static int search_fd(const struct uring_range *ranges, size_t ranges_n, struct uring_found *buffer,
		     struct error *err)
{
	int rc = is_ring(buffer->pid, buffer->fd);

	if (rc < 0)
		return error_set(err, -rc,
				 "cannot tell what fd %d of process %d is: %s; CAP_SYS_PTRACE is needed",
				 buffer->fd, buffer->pid, strerror(-rc));
	return rc ? search_ring(ranges, ranges_n, buffer, err) : 0;
}

static int search_process(pid_t pid, const struct uring_range *ranges, size_t ranges_n,
			  struct uring_found *out, struct error *err)
{
	char path[64];
	struct dirent *entry;
	DIR *dir;
	int rc = 0;

	snprintf(path, sizeof path, "/proc/%d/fdinfo", pid);
	dir = opendir(path);
	if (!dir)
		return is_gone(-errno) ? 0 :
					 error_set(err, errno, "%s: %s; CAP_SYS_PTRACE is needed", path,
						   strerror(errno));
	while (!rc) {
		struct uring_found buffer = { .pid = pid };
		char *end;

		errno = 0;
		entry = readdir(dir);
		if (!entry) {
			if (errno && !is_gone(-errno))
				rc = error_set(err, errno, "%s: %s", path, strerror(errno));
			break;
		}
		buffer.fd = (int)strtol(entry->d_name, &end, 10);
		if (end == entry->d_name || *end)
			continue;
		rc = search_fd(ranges, ranges_n, &buffer, err);
		if (rc == 1)
			*out = buffer;
	}
	closedir(dir);
	return rc;
}

static bool seen_before(const struct uring_range *ranges, size_t idx)
{
	for (size_t i = 0; i < idx; i++)
		if (ranges[i].pid == ranges[idx].pid)
			return true;
	return false;
}

int uring_buffers_find(const struct uring_range *ranges, size_t ranges_n, struct uring_found *out,
		       struct error *err)
{
	int rc = 0;

	for (size_t i = 0; i < ranges_n && !rc; i++)
		if (!seen_before(ranges, i))
			rc = search_process(ranges[i].pid, ranges, ranges_n, out, err);
	return rc;
}
