/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "store.h"
#include "failpoint.h"
#include "slots.h"
#include "units.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

/* How pages are kept out of the page cache. */
enum mode {
	DIRECT, /* O_DIRECT */
	CACHED, /* the file system refuses O_DIRECT: written back and dropped after each use */
	MEMORY, /* tmpfs: its page cache is the file, there is nothing to drop */
};

struct store {
	int fd;
	enum mode mode;
	char *dir;	  /* for messages only */
	uint64_t marks_n; /* slots in the adopted file; marks must be below */
	bool ready;	  /* false between store_adopt() and store_ready() */

	pthread_mutex_t lock; /* of slots; held for microseconds, but see trim_whole_file() */
	struct slots slots;
	/* CACHED only: one write-back at a time. The kernel tells of a failed write-back to whoever asks
	 * first, so of two concurrent puts the wrong one could be told, and the other's pages be lost. */
	pthread_mutex_t write_back;

	atomic_uint_least64_t used_slots;
	atomic_uint_least64_t written_bytes;
	atomic_bool cannot_punch;
};

static int refuse_dir(const char *dir, int code, struct error *err)
{
	switch (code) {
	case ENOENT:
		return error_set(err, code,
				 "swap directory %s does not exist: create it or set another one", dir);
	case ENOTDIR:
		return error_set(err, code, "swap directory %s is not a directory: set another one", dir);
	case EOPNOTSUPP:
	case EISDIR:
		return error_set(err, code,
				 "the file system of swap directory %s cannot make unnamed files "
				 "(O_TMPFILE): use a directory on ext4, xfs, btrfs or tmpfs", dir);
	case EACCES:
	case EPERM:
	case EROFS:
		return error_set(err, code, "no permission to make files in swap directory %s (%s): "
				 "make it writable or set another one", dir, strerror(code));
	case ENOSPC:
	case EDQUOT:
		return error_set(err, code,
				 "no space in swap directory %s (%s): free some or set another one", dir,
				 strerror(code));
	default:
		return error_set(err, code,
				 "cannot make a file in swap directory %s: %s", dir, strerror(code));
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

static enum mode find_mode(int fd)
{
	struct statfs fs;

	if (fstatfs(fd, &fs) == 0 && fs.f_type == TMPFS_MAGIC)
		return MEMORY;
	return fcntl(fd, F_GETFL) & O_DIRECT ? DIRECT : CACHED;
}

static int make_store(int fd, char *dir, struct store **out, struct error *err)
{
	struct store *store = calloc(1, sizeof *store);

	if (!store) {
		free(dir);
		close(fd);
		return error_set(err, ENOMEM, "no memory for the store");
	}
	store->fd = fd;
	store->dir = dir;
	store->mode = find_mode(fd);
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
	if (make_store(fd, dir_copy, out, err))
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
	rc = make_store(own_fd, dir, &store, err);
	if (rc)
		return rc;
	store->marks_n = pages_of_bytes((uint64_t)st.st_size);
	rc = slots_adopt(&store->slots, store->marks_n);
	if (rc) {
		store_destroy(store);
		return error_set(err, -rc,
				 "cannot take over a store of %lld bytes: %s",
				 (long long)st.st_size, strerror(-rc));
	}
	*out = store;
	return 0;
}

int store_mark_used(struct store *store, uint64_t slot_idx)
{
	if (slot_idx >= store->marks_n)
		return -ERANGE;
	if (!slots_take_one(&store->slots, slot_idx))
		return -EEXIST;
	atomic_fetch_add_explicit(&store->used_slots, 1, memory_order_relaxed);
	return 0;
}

void store_ready(struct store *store)
{
	store->ready = true;
}

void store_destroy(struct store *store)
{
	if (!store)
		return;
	close(store->fd);
	slots_clear(&store->slots);
	pthread_mutex_destroy(&store->lock);
	pthread_mutex_destroy(&store->write_back);
	free(store->dir);
	free(store);
}

int store_fd(const struct store *store)
{
	return store->fd;
}

/* How many of the n slots, from the first on, are consecutive. */
static size_t run_length(const uint64_t *slot_idx, size_t n)
{
	size_t run = 1;

	while (run < n && slot_idx[run] == slot_idx[0] + run)
		run++;
	return run;
}

/* Write all of it, or say why not. O_DIRECT goes on from a page's begin only, so a page cut short is
 * written again. */
static int write_run(struct store *store, const char *bytes, uint64_t size_bytes, uint64_t offset_bytes)
{
	uint64_t done = 0;

	while (done < size_bytes) {
		ssize_t wrote = FAILPOINT("store.write");

		if (!wrote)
			wrote = pwrite(store->fd, bytes + done, size_bytes - done,
				       (off_t)(offset_bytes + done));
		else
			errno = (int)-wrote;
		if (wrote < 0 && errno == EINTR)
			continue;
		if (wrote < 0)
			return -errno;
		if ((uint64_t)wrote < PAGE_BYTES)
			return -EIO;
		wrote &= (ssize_t)PAGE_MASK;
		atomic_fetch_add_explicit(&store->written_bytes, (uint64_t)wrote, memory_order_relaxed);
		done += (uint64_t)wrote;
	}
	return 0;
}

static void drop_from_cache(struct store *store, uint64_t size_bytes, uint64_t offset_bytes)
{
	posix_fadvise(store->fd, (off_t)offset_bytes, (off_t)size_bytes, POSIX_FADV_DONTNEED);
}

static int write_run_cached(struct store *store, const char *bytes, uint64_t size_bytes,
			    uint64_t offset_bytes)
{
	const unsigned flags =
		SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER;
	int rc;

	pthread_mutex_lock(&store->write_back);
	rc = write_run(store, bytes, size_bytes, offset_bytes);
	if (!rc && sync_file_range(store->fd, (off_t)offset_bytes, (off_t)size_bytes, flags))
		rc = -errno;
	drop_from_cache(store, size_bytes, offset_bytes);
	pthread_mutex_unlock(&store->write_back);
	return rc;
}

static int write_slots(struct store *store, const char *pages, size_t n, const uint64_t *slot_idx)
{
	int rc = 0;

	for (size_t i = 0, run; i < n && !rc; i += run) {
		const char *bytes = pages + bytes_of_pages(i);

		run = run_length(slot_idx + i, n - i);
		if (store->mode == CACHED)
			rc = write_run_cached(store, bytes, bytes_of_pages(run), bytes_of_pages(slot_idx[i]));
		else
			rc = write_run(store, bytes, bytes_of_pages(run), bytes_of_pages(slot_idx[i]));
	}
	return rc;
}

static int take(struct store *store, size_t n, uint64_t *slot_idx,
		int (*how)(struct slots *slots, size_t n, uint64_t *slot_idx))
{
	int rc = FAILPOINT("store.alloc");

	if (rc)
		return rc;
	pthread_mutex_lock(&store->lock);
	rc = how(&store->slots, n, slot_idx);
	pthread_mutex_unlock(&store->lock);
	if (!rc)
		atomic_fetch_add_explicit(&store->used_slots, n, memory_order_relaxed);
	return rc;
}

static int put(struct store *store, const char *pages, size_t n, uint64_t *slot_idx,
	       int (*how)(struct slots *slots, size_t n, uint64_t *slot_idx))
{
	int rc = take(store, n, slot_idx, how);

	if (rc)
		return rc;
	rc = write_slots(store, pages, n, slot_idx);
	if (rc)
		store_drop(store, slot_idx, n);
	return rc;
}

static bool is_no_space(int rc)
{
	return rc == -ENOSPC || rc == -EDQUOT || rc == -EFBIG;
}

static int refuse_put(const struct store *store, size_t n, int rc, struct error *err)
{
	unsigned long kib = (unsigned long)(bytes_of_pages(n) >> 10);

	switch (rc) {
	case -ENOSPC:
		return error_set(err, ENOSPC,
				 "no space for %lu KiB in swap directory %s: "
				 "free some there or set another one", kib, store->dir);
	case -EDQUOT:
		return error_set(err, EDQUOT, "disk quota exceeded, no %lu KiB more in swap directory %s: "
				 "free some there or raise the quota", kib, store->dir);
	case -EFBIG:
		return error_set(err, EFBIG,
				 "the file in swap directory %s cannot grow by %lu KiB: raise the limit of "
				 "file size (LimitFSIZE=), or use another file system", store->dir, kib);
	case -EIO:
		return error_set(err, EIO,
				 "write error in swap directory %s: "
				 "look at the kernel's log, the disk may be failing", store->dir);
	default:
		return error_set(err, -rc,
				 "cannot write %lu KiB in swap directory %s: %s",
				 kib, store->dir, strerror(-rc));
	}
}

int store_put(struct store *store, const void *pages, size_t n, uint64_t *slot_idx, struct error *err)
{
	int rc;

	if (!n)
		return 0;
	if (!store->ready)
		return error_set(err, EINVAL,
				 "the store in %s is not ready: "
				 "its used slots are still being marked", store->dir);
	rc = put(store, pages, n, slot_idx, slots_take);
	/* No new blocks to be had: what was freed inside the file still has its own. */
	if (is_no_space(rc)) {
		int again = put(store, pages, n, slot_idx, slots_take_spare);

		if (!again || !is_no_space(again))
			rc = again;
	}
	if (rc) {
		store_trim(store);
		return refuse_put(store, n, rc, err);
	}
	FAILPOINT_HERE("store.written");
	return 0;
}

static int read_run(const struct store *store, char *bytes, uint64_t size_bytes, uint64_t offset_bytes)
{
	uint64_t done = 0;

	while (done < size_bytes) {
		ssize_t got = FAILPOINT("store.read");

		if (!got)
			got = pread(store->fd, bytes + done, size_bytes - done, (off_t)(offset_bytes + done));
		else
			errno = (int)-got;
		if (got < 0 && errno == EINTR)
			continue;
		if (got < 0)
			return -errno;
		if ((uint64_t)got < PAGE_BYTES)
			return -EIO;
		done += (uint64_t)got & PAGE_MASK;
	}
	return 0;
}

int store_get(struct store *store, const uint64_t *slot_idx, size_t n, void *buf)
{
	char *pages = buf;
	int rc = 0;

	for (size_t i = 0, run; i < n && !rc; i += run) {
		run = run_length(slot_idx + i, n - i);
		rc = read_run(store, pages + bytes_of_pages(i), bytes_of_pages(run),
			      bytes_of_pages(slot_idx[i]));
		if (store->mode == CACHED)
			drop_from_cache(store, bytes_of_pages(run), bytes_of_pages(slot_idx[i]));
	}
	if (!rc && n && FAILPOINT("store.read.corrupt"))
		pages[0] ^= 1;
	return rc;
}

void store_drop(struct store *store, const uint64_t *slot_idx, size_t n)
{
	pthread_mutex_lock(&store->lock);
	for (size_t i = 0; i < n; i++) {
		if (!slots_free(&store->slots, slot_idx[i])) {
			fprintf(stderr, "bug: slot %llu of the store was dropped but is not in use\n",
				(unsigned long long)slot_idx[i]);
			abort();
		}
	}
	pthread_mutex_unlock(&store->lock);
	atomic_fetch_sub_explicit(&store->used_slots, n, memory_order_relaxed);
}

/* Gives back the file's own metadata too, and needs no punching. The lock is held meanwhile, 0.16 s a GiB
 * on one slow disk, so that no put writes what is then cut off; nobody else can want it, as there is
 * nothing to drop. */
static bool trim_whole_file(struct store *store)
{
	struct slots *slots = &store->slots;
	bool cut = false;

	if (slots->emptied_n && !slots->taken_n && !slots->claimed_n && ftruncate(store->fd, 0) == 0) {
		slots_clear(slots);
		cut = true;
	}
	return cut;
}

/* The extent is claimed: no slot of it is given away until its blocks are gone. */
static bool punch_extent(struct store *store, size_t extent_idx)
{
	const int mode = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
	int rc = FAILPOINT("store.punch");

	if (!rc && fallocate(store->fd, mode, (off_t)(extent_idx * EXTENT_BYTES), EXTENT_BYTES))
		rc = -errno;
	if (rc == -EOPNOTSUPP || rc == -ENOSYS)
		atomic_store_explicit(&store->cannot_punch, true, memory_order_relaxed);
	return rc == 0;
}

bool store_trim_step(struct store *store)
{
	size_t extent_idx = 0;
	bool claimed = false, done;

	if (!store->ready)
		return false;
	pthread_mutex_lock(&store->lock);
	done = trim_whole_file(store);
	if (!done && !atomic_load_explicit(&store->cannot_punch, memory_order_relaxed))
		claimed = slots_claim_emptied(&store->slots, &extent_idx);
	pthread_mutex_unlock(&store->lock);
	if (!claimed)
		return done;
	done = punch_extent(store, extent_idx);
	pthread_mutex_lock(&store->lock);
	slots_unclaim(&store->slots, extent_idx, done);
	pthread_mutex_unlock(&store->lock);
	return done;
}

void store_trim(struct store *store)
{
	while (store_trim_step(store))
		;
}

void store_account(const struct store *store, struct store_account *out)
{
	struct stat st;

	*out = (struct store_account){
		.used_slots = atomic_load_explicit(&store->used_slots, memory_order_relaxed),
		.written_bytes = atomic_load_explicit(&store->written_bytes, memory_order_relaxed),
	};
	if (fstat(store->fd, &st) == 0)
		out->disk_bytes = (uint64_t)st.st_blocks * 512;
}
