/* SPDX-License-Identifier: GPL-2.0-or-later */
/* How a store begins: a new unnamed file, that of a predecessor, or the memory file of a snapshot. */
#include "base/failpoint.h"
#include "base/units.h"
#include "store/store_file.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

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
		return error_set(err, code,
				 "the file system of swap directory %s cannot make unnamed files "
				 "(O_TMPFILE): use a directory on ext4, xfs, btrfs or tmpfs",
				 dir);
	case EACCES:
	case EPERM:
	case EROFS:
		return error_set(err, code,
				 "no permission to make files in swap directory %s (%s): "
				 "make it writable or set another one",
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

/* Some devices want O_DIRECT in larger units than our pages, and some file systems find out only at the
 * first write. */
static bool takes_direct_pages(int fd)
{
	struct statx st;

	if (statx(fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &st) || !(st.stx_mask & STATX_DIOALIGN))
		return true; /* a kernel before 6.1 does not say */
	return st.stx_dio_offset_align && st.stx_dio_offset_align <= PAGE_BYTES &&
	       st.stx_dio_mem_align <= PAGE_BYTES;
}

static enum store_mode find_mode(int fd)
{
	struct statfs fs;

	if (fstatfs(fd, &fs) == 0 && fs.f_type == TMPFS_MAGIC)
		return MEMORY;
	return fcntl(fd, F_GETFL) & O_DIRECT ? DIRECT : CACHED;
}

static int make_store(int fd, enum store_mode mode, char *place, struct store **out, struct error *err)
{
	struct store *store = calloc(1, sizeof *store);

	if (!store) {
		free(place);
		close(fd);
		return error_set(err, ENOMEM, "no memory for the store");
	}
	store->fd = fd;
	store->place = place;
	store->mode = mode;
	pthread_mutex_init(&store->lock, NULL);
	pthread_mutex_init(&store->write_back, NULL);
	if (store->mode == CACHED)
		posix_fadvise(fd, 0, 0, POSIX_FADV_RANDOM); /* no read-ahead into the cache */
	*out = store;
	return 0;
}

int store_create(const char *dir, struct store **out, struct error *err)
{
	int fd = FAILPOINT("store.direct");
	char *dir_copy;

	if (!fd)
		fd = open_unnamed(dir, O_DIRECT);
	if (fd >= 0 && !takes_direct_pages(fd)) {
		close(fd);
		fd = -EINVAL;
	}
	if (fd == -EINVAL)
		fd = open_unnamed(dir, 0);
	if (fd < 0)
		return refuse_dir(dir, -fd, err);
	dir_copy = strdup(dir);
	if (!dir_copy) {
		close(fd);
		return error_set(err, ENOMEM, "no memory for the store");
	}
	if (make_store(fd, find_mode(fd), dir_copy, out, err))
		return -ENOMEM;
	(*out)->ready = true;
	return 0;
}

/* The directory in which an unnamed file was made, as the kernel still tells: "/dir/#123 (deleted)". */
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

int store_adopt(int fd, struct store **out, struct error *err)
{
	int flags = fcntl(fd, F_GETFL);
	struct store *store;
	struct stat st;
	int own_fd, rc;
	char *dir;

	if (flags < 0 || (flags & O_ACCMODE) != O_RDWR || fstat(fd, &st) || !S_ISREG(st.st_mode))
		return error_set(err, EINVAL,
				 "fd %d is not a store: not a regular file open for reading and writing", fd);
	own_fd = fcntl(fd, F_DUPFD_CLOEXEC, 3);
	if (own_fd < 0)
		return error_set(err, errno, "cannot dup the store's fd %d: %s", fd, strerror(errno));
	dir = dir_of(fd);
	if (!dir) {
		close(own_fd);
		return error_set(err, ENOMEM, "no memory for the store");
	}
	rc = make_store(own_fd, find_mode(own_fd), dir, &store, err);
	if (rc)
		return rc;
	store->marks_n = pages_of_bytes((uint64_t)st.st_size);
	rc = slots_adopt(&store->slots, store->marks_n);
	if (rc) {
		store_destroy(store);
		return error_set(err, -rc, "cannot take over a store of %lld bytes: %s",
				 (long long)st.st_size, strerror(-rc));
	}
	*out = store;
	return 0;
}

struct snapshot_version snapshot_version_of(const struct stat *st)
{
	return (struct snapshot_version){
		.size_bytes = (uint64_t)st->st_size,
		.mtime_ns = (int64_t)st->st_mtim.tv_sec * 1000000000 + st->st_mtim.tv_nsec,
	};
}

int store_open_snapshot(int fd, struct snapshot_version *version, struct store **out, struct error *err)
{
	int flags = fcntl(fd, F_GETFL), own_fd;
	struct stat st;
	char link[64], path[4096];
	ssize_t length;

	if (flags < 0 || (flags & O_ACCMODE) == O_WRONLY || fstat(fd, &st) || !S_ISREG(st.st_mode))
		return error_set(err, EINVAL, "fd %d is no regular file open for reading", fd);
	own_fd = fcntl(fd, F_DUPFD_CLOEXEC, 3);
	if (own_fd < 0)
		return error_set(err, errno, "cannot dup the snapshot's memory file, fd %d: %s", fd,
				 strerror(errno));
	snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
	length = readlink(link, path, sizeof path - 1);
	path[length < 0 ? 0 : length] = '\0';
	if (make_store(own_fd, SNAPSHOT, strdup(path), out, err))
		return -ENOMEM;
	if (!version->size_bytes)
		*version = snapshot_version_of(&st);
	(*out)->version = *version;
	return 0;
}
