/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "store/snapshot_file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/units.h"
#include "store/page_read.h"
#include "store/read_file.h"

struct snapshot_file {
	struct tier tier;
	int fd;
	char *path; /* for messages only */
	struct snapshot_version version;
};

static struct snapshot_file *of(struct tier *tier)
{
	return (struct snapshot_file *)tier;
}

static struct snapshot_version version_of(const struct stat *st)
{
	return (struct snapshot_version){
		.size_bytes = (uint64_t)st->st_size,
		.mtime_ns = (int64_t)st->st_mtim.tv_sec * 1000000000 + st->st_mtim.tv_nsec,
	};
}

/* All its pages are there for everybody. */
static int mark_used(struct tier *tier, uint64_t slot_idx)
{
	(void)tier, (void)slot_idx;
	return 0;
}

static void ready(struct tier *tier)
{
	(void)tier;
}

static int put(struct tier *tier, const void *const *page, const uint64_t *owner_idx, size_t n,
	       uint64_t *slot_idx, struct error *err)
{
	(void)page, (void)owner_idx, (void)n, (void)slot_idx;
	return error_set(err, EROFS, "%s is a snapshot's memory file: nothing is written there",
			 of(tier)->path);
}

/* Checked after a read: write() sets the time before it changes a byte, and truncation changes the length. A
 * writer with a shared mapping is not noticed: at best the kernel sets the time when a page becomes writable
 * there, not when it is written to. */
static bool is_changed(const struct snapshot_file *file)
{
	struct snapshot_version now;
	struct stat st;

	if (fstat(file->fd, &st))
		return true;
	now = version_of(&st);
	return now.size_bytes != file->version.size_bytes || now.mtime_ns != file->version.mtime_ns;
}

static int get(struct tier *tier, const uint64_t *slot_idx, size_t n, void *buf)
{
	struct snapshot_file *file = of(tier);
	char *pages = buf;
	int rc = 0;

	for (size_t i = 0, run; i < n && !rc; i += run) {
		struct pieces pieces;

		run = slot_run_length(slot_idx + i, n - i);
		pieces_of_one(&pieces, pages + bytes_of_pages(i), bytes_of_pages(run));
		rc = read_file(file->fd, &pieces, bytes_of_pages(slot_idx[i]));
	}
	return !rc && is_changed(file) ? -EBADMSG : rc;
}

static int begin_read(struct tier *tier, uint64_t slot_idx, void *page, struct page_read *read)
{
	struct snapshot_file *file = of(tier);
	int rc = read_file_cached(file->fd, page, bytes_of_pages(slot_idx));

	if (rc != -EAGAIN)
		return !rc && is_changed(file) ? -EBADMSG : rc;
	*read = (struct page_read){ .slot_idx = slot_idx,
				    .fd = file->fd,
				    .offset_bytes = bytes_of_pages(slot_idx),
				    .size_bytes = PAGE_BYTES };
	return 1;
}

/* The page cache may keep it: other VMs may run from the same file. */
static void was_read(struct tier *tier, const struct page_read *read)
{
	(void)tier, (void)read;
}

static int end_read(struct tier *tier, const struct page_read *read, int result, char *bytes, char *room,
		    char **page)
{
	(void)read, (void)room;
	*page = bytes;
	return !result && is_changed(of(tier)) ? -EBADMSG : result;
}

static void drop(struct tier *tier, const uint64_t *slot_idx, size_t n)
{
	(void)tier, (void)slot_idx, (void)n;
}

static bool trim_step(struct tier *tier)
{
	(void)tier;
	return false;
}

static void account(struct tier *tier, struct store_account *out)
{
	(void)tier, (void)out;
}

static int fd_of(const struct tier *tier)
{
	return ((const struct snapshot_file *)tier)->fd;
}

static void destroy(struct tier *tier)
{
	close(of(tier)->fd);
	free(of(tier)->path);
	free(tier);
}

static const struct tier_ops ops = {
	.file_kind = "snapshot's",
	.checks_bytes = true,
	.mark_used = mark_used,
	.ready = ready,
	.put = put,
	.get = get,
	.begin_read = begin_read,
	.was_read = was_read,
	.end_read = end_read,
	.drop = drop,
	.trim_step = trim_step,
	.account = account,
	.fd = fd_of,
	.destroy = destroy,
};

static char *path_of(int fd)
{
	char link[64], path[4096];
	ssize_t length;

	snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
	length = readlink(link, path, sizeof path - 1);
	path[length < 0 ? 0 : length] = '\0';
	return strdup(path);
}

int snapshot_file_open(int fd, struct snapshot_version *version, struct tier **out, struct error *err)
{
	int flags = fcntl(fd, F_GETFL), own_fd;
	struct snapshot_file *file;
	struct stat st;

	if (flags < 0 || (flags & O_ACCMODE) == O_WRONLY || fstat(fd, &st) || !S_ISREG(st.st_mode))
		return error_set(err, EINVAL, "fd %d is not a regular file open for reading", fd);
	own_fd = fcntl(fd, F_DUPFD_CLOEXEC, 3);
	if (own_fd < 0)
		return error_set(err, errno, "cannot dup the snapshot's memory file, fd %d: %s", fd,
				 strerror(errno));
	file = calloc(1, sizeof *file);
	if (file)
		file->path = path_of(fd);
	if (!file || !file->path) {
		free(file);
		close(own_fd);
		return error_set(err, ENOMEM, "no memory for the store");
	}
	if (!version->size_bytes)
		*version = version_of(&st);
	file->tier.ops = &ops;
	file->fd = own_fd;
	file->version = *version;
	*out = &file->tier;
	return 0;
}
