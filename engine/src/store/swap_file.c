/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "store/swap_file.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "base/failpoint.h"
#include "base/held.h"
#include "base/units.h"
#include "store/read_file.h"

static int refuse_dir(const char *dir, int code, struct error *err)
{
	switch (code) {
	case ENOENT:
		return error_set(err, code, "swap directory %s does not exist: create it or set another one",
				 dir);
	case ENOTDIR:
		return error_set(err, code, "swap directory %s is not a directory: set another one", dir);
	case EOPNOTSUPP:
	case EISDIR:
		return error_set(
			err, code,
			"the file system of swap directory %s cannot make unnamed files (O_TMPFILE): use a directory on "
			"ext4, xfs, btrfs or tmpfs",
			dir);
	case EACCES:
	case EPERM:
	case EROFS:
		return error_set(
			err, code,
			"no permission to make files in swap directory %s (%s): make it writable or set another one",
			dir, strerror(code));
	case ENOSPC:
	case EDQUOT:
		return error_set(err, code,
				 "no space in swap directory %s (%s): free some or set another one", dir,
				 strerror(code));
	default:
		return error_set(err, code, "cannot make a file in swap directory %s: %s", dir,
				 strerror(code));
	}
}

static int open_unnamed(const char *dir, int flags)
{
	int fd = open(dir, O_TMPFILE | O_EXCL | O_RDWR | O_CLOEXEC | flags, 0);

	return fd < 0 ? -errno : fd;
}

/* Some devices need O_DIRECT in units larger than our pages, and some file systems report this only at the
 * first write. */
static bool takes_direct_pages(int fd)
{
	struct statx st;

	if (statx(fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &st) || !(st.stx_mask & STATX_DIOALIGN))
		return true; /* kernels before 6.1 do not report it */
	return st.stx_dio_offset_align && st.stx_dio_offset_align <= PAGE_BYTES &&
	       st.stx_dio_mem_align <= PAGE_BYTES;
}

static enum swap_file_mode find_mode(int fd)
{
	struct statfs fs;

	if (fstatfs(fd, &fs) == 0 && fs.f_type == TMPFS_MAGIC)
		return FILE_MEMORY;
	return fcntl(fd, F_GETFL) & O_DIRECT ? FILE_DIRECT : FILE_CACHED;
}

/* These keep an inode's size in memory while it is open (generic_fillattr() of what they have). */
static bool stats_may_wait(int fd)
{
	struct statfs fs;

	if (fstatfs(fd, &fs) != 0)
		return true;
	switch ((unsigned long)fs.f_type & 0xFFFFFFFF) {
	case EXT4_SUPER_MAGIC:
	case XFS_SUPER_MAGIC:
	case BTRFS_SUPER_MAGIC:
	case F2FS_SUPER_MAGIC:
	case TMPFS_MAGIC:
		return false;
	default:
		return true;
	}
}

static uint64_t measured_bytes(const struct swap_file *file)
{
	struct stat st;

	return fstat(file->fd, &st) ? 0 : (uint64_t)st.st_blocks * 512;
}

/* Takes ownership of dir. */
static int finish(int fd, char *dir, struct swap_file *out, struct error *err)
{
	*out = (struct swap_file){
		.fd = fd,
		.dir = dir,
		.mode = find_mode(fd),
		.write_back = malloc(sizeof *out->write_back),
		.stats_may_wait = stats_may_wait(fd),
	};
	if (!dir || !out->write_back) {
		free(out->write_back);
		free(dir);
		close(fd);
		return error_set(err, ENOMEM, "no memory for the swap file");
	}
	pthread_mutex_init(out->write_back, NULL);
	swap_file_measure(out);
	if (out->mode == FILE_CACHED)
		posix_fadvise(fd, 0, 0, POSIX_FADV_RANDOM); /* no read-ahead into the cache */
	return 0;
}

int swap_file_create(const char *dir, struct swap_file *out, struct error *err)
{
	int fd = FAILPOINT("store.direct");

	if (!fd)
		fd = open_unnamed(dir, O_DIRECT);
	if (fd >= 0 && !takes_direct_pages(fd)) {
		close(fd);
		fd = -EINVAL;
	}
	if (fd == -EINVAL)
		fd = open_unnamed(dir, 0);
	return fd < 0 ? refuse_dir(dir, -fd, err) : finish(fd, strdup(dir), out, err);
}

/* The directory in which an unnamed file was made, as the kernel still reports it: "/dir/#123 (deleted)". */
static char *dir_of(int fd)
{
	char link[64], path[4096];
	ssize_t length;
	char *slash;

	snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
	length = readlink(link, path, sizeof path - 1);
	path[length < 0 ? 0 : length] = '\0';
	slash = strrchr(path, '/');
	if (!slash)
		return strdup("(unknown)");
	slash[slash == path] = '\0';
	return strdup(path);
}

int swap_file_adopt(int fd, struct swap_file *out, struct error *err)
{
	int flags = fcntl(fd, F_GETFL), own_fd;
	struct stat st;

	if (flags < 0 || (flags & O_ACCMODE) != O_RDWR || fstat(fd, &st) || !S_ISREG(st.st_mode))
		return error_set(err, EINVAL,
				 "fd %d is not a store: not a regular file open for reading and writing", fd);
	own_fd = fcntl(fd, F_DUPFD_CLOEXEC, 3);
	if (own_fd < 0)
		return error_set(err, errno, "cannot dup the store's fd %d: %s", fd, strerror(errno));
	return finish(own_fd, dir_of(fd), out, err);
}

void swap_file_close(struct swap_file *file)
{
	pthread_mutex_destroy(file->write_back);
	free(file->write_back);
	free(file->dir);
	close(file->fd);
}

/* Write all of it, or return an error. O_DIRECT resumes only at the start of a page, so a page that was cut
 * short is written again. */
static int write_all(struct swap_file *file, struct pieces *pieces, uint64_t offset_bytes,
		     uint64_t *written_bytes)
{
	struct iovec *at = pieces->at;
	size_t n = pieces->n;

	HELD_MAY_WAIT(WAIT_WRITE);
	while (n) {
		ssize_t wrote = FAILPOINT("store.write");
		uint64_t whole_bytes;

		if (!wrote)
			wrote = pwritev(file->fd, at, (int)n, (off_t)offset_bytes);
		else
			errno = (int)-wrote;
		if (wrote < 0 && errno == EINTR)
			continue;
		if (wrote < 0)
			return -errno;
		if ((uint64_t)wrote < PAGE_BYTES)
			return -EIO;
		whole_bytes = (uint64_t)wrote & PAGE_MASK;
		at = pieces_skip(at, &n, whole_bytes);
		offset_bytes += whole_bytes;
		*written_bytes += whole_bytes;
	}
	return 0;
}

static void drop_from_cache(const struct swap_file *file, uint64_t size_bytes, uint64_t offset_bytes)
{
	posix_fadvise(file->fd, (off_t)offset_bytes, (off_t)size_bytes, POSIX_FADV_DONTNEED);
}

static int write_cached(struct swap_file *file, struct pieces *pieces, uint64_t offset_bytes,
			uint64_t *written_bytes)
{
	const unsigned flags =
		SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER;
	int rc;

	pthread_mutex_lock(file->write_back);
	rc = write_all(file, pieces, offset_bytes, written_bytes);
	if (!rc && sync_file_range(file->fd, (off_t)offset_bytes, (off_t)pieces->bytes, flags))
		rc = -errno;
	drop_from_cache(file, pieces->bytes, offset_bytes);
	pthread_mutex_unlock(file->write_back);
	return rc;
}

int swap_file_write(struct swap_file *file, struct pieces *pieces, uint64_t offset_bytes,
		    uint64_t *written_bytes)
{
	int rc = file->mode == FILE_CACHED ? write_cached(file, pieces, offset_bytes, written_bytes) :
					     write_all(file, pieces, offset_bytes, written_bytes);

	swap_file_measure(file);
	return rc;
}

uint64_t swap_file_disk_bytes(const struct swap_file *file)
{
	return file->stats_may_wait ? atomic_load(&file->disk_bytes) : measured_bytes(file);
}

void swap_file_measure(struct swap_file *file)
{
	if (file->stats_may_wait)
		atomic_store(&file->disk_bytes, measured_bytes(file));
}

int swap_file_read(struct swap_file *file, struct pieces *pieces, uint64_t offset_bytes)
{
	int rc = read_file(file->fd, pieces, offset_bytes);

	swap_file_was_read(file, pieces->bytes, offset_bytes);
	return rc;
}

void swap_file_was_read(const struct swap_file *file, uint64_t size_bytes, uint64_t offset_bytes)
{
	if (file->mode == FILE_CACHED)
		drop_from_cache(file, size_bytes, offset_bytes);
}

int swap_file_refuse(const struct swap_file *file, uint64_t size_bytes, int rc, struct error *err)
{
	unsigned long kib = (unsigned long)(size_bytes >> 10);

	switch (rc) {
	case -ENOSPC:
		return error_set(
			err, ENOSPC,
			"no space for %lu KiB in swap directory %s: free some there or set another one", kib,
			file->dir);
	case -EDQUOT:
		return error_set(
			err, EDQUOT,
			"disk quota exceeded, no %lu KiB more in swap directory %s: free some there or raise the quota",
			kib, file->dir);
	case -EFBIG:
		return error_set(
			err, EFBIG,
			"the file in swap directory %s cannot grow by %lu KiB: raise the limit of file size (LimitFSIZE=), "
			"or use another file system",
			file->dir, kib);
	case -EIO:
		return error_set(
			err, EIO,
			"write error in swap directory %s: look at the kernel's log, the disk may be failing",
			file->dir);
	default:
		return error_set(err, -rc, "cannot write %lu KiB in swap directory %s: %s", kib, file->dir,
				 strerror(-rc));
	}
}
