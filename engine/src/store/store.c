/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "base/failpoint.h"
#include "base/held.h"
#include "base/units.h"
#include "store/store_file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

int store_mark_used(struct store *store, uint64_t slot_idx)
{
	if (store->mode == SNAPSHOT)
		return 0; /* all its pages are there, for all who ask */
	if (slot_idx >= store->marks_n)
		return -ERANGE;
	if (!slots_take_one(&store->slots, slot_idx))
		return -EEXIST;
	atomic_fetch_add_explicit(&store->used_slots, 1, memory_order_relaxed);
	return 0;
}

void store_ready(struct store *store)
{
	store->ready = store->mode != SNAPSHOT;
}

void store_destroy(struct store *store)
{
	if (!store)
		return;
	close(store->fd);
	slots_clear(&store->slots);
	pthread_mutex_destroy(&store->lock);
	pthread_mutex_destroy(&store->write_back);
	free(store->place);
	free(store);
}

void store_limit(struct store *store, uint64_t max_bytes, uint64_t keep_free_bytes)
{
	store->max_bytes = max_bytes;
	store->keep_free_bytes = keep_free_bytes;
}

const char *store_file_kind(const struct store *store)
{
	return store->mode == SNAPSHOT ? "snapshot's" : "swap";
}

bool store_checks_bytes(const struct store *store)
{
	return store->mode == SNAPSHOT;
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

	HELD_MAY_WAIT(WAIT_WRITE);
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

#define OVER_MAX EXFULL /* the errno of a put that would go over max_bytes: no system call of ours has it */

/* What the file may occupy once these pages are in it: all of each extent that has had a slot. Under the lock. */
static bool is_over_max(const struct store *store, size_t more)
{
	const struct slots *slots = &store->slots;
	uint64_t extents = (more + EXTENT_SLOTS - 1) / EXTENT_SLOTS + slots->claimed_n;

	return store->max_bytes &&
	       (slots->taken_n + slots->spare_n + extents * EXTENT_SLOTS) * PAGE_BYTES > store->max_bytes;
}

/* Looked at and taken in one go, or two puts would share what is left below the limit. Spare slots have their blocks. */
static int take(struct store *store, size_t n, uint64_t *slot_idx,
		int (*how)(struct slots *slots, size_t n, uint64_t *slot_idx))
{
	int rc = FAILPOINT("store.alloc");

	if (rc)
		return rc;
	pthread_mutex_lock(&store->lock);
	rc = how == slots_take && is_over_max(store, n) ? -OVER_MAX : how(&store->slots, n, slot_idx);
	pthread_mutex_unlock(&store->lock);
	if (!rc)
		atomic_fetch_add_explicit(&store->used_slots, n, memory_order_relaxed);
	return rc;
}

/* A slot that cannot be written to stays taken, or the next page would be put there, and fail too. */
static void condemn(struct store *store)
{
	atomic_fetch_sub_explicit(&store->used_slots, 1, memory_order_relaxed);
	pthread_mutex_lock(&store->lock);
	store->condemned_n++;
	pthread_mutex_unlock(&store->lock);
}

static int put(struct store *store, const char *pages, size_t n, uint64_t *slot_idx,
	       int (*how)(struct slots *slots, size_t n, uint64_t *slot_idx))
{
	int rc = take(store, n, slot_idx, how);

	if (rc)
		return rc;
	rc = write_slots(store, pages, n, slot_idx);
	if (rc == -EIO && n == 1)
		condemn(store);
	else if (rc)
		store_drop(store, slot_idx, n);
	return rc;
}

static bool is_no_space(int rc)
{
	return rc == -ENOSPC || rc == -EDQUOT || rc == -EFBIG || rc == -OVER_MAX;
}

/* True if n pages of new disk blocks would come from what is to stay free. A file system that does not tell has no such reserve. */
static bool is_in_reserve(const struct store *store, size_t n)
{
	struct statvfs fs;

	return store->keep_free_bytes && fstatvfs(store->fd, &fs) == 0 &&
	       (uint64_t)fs.f_bavail * fs.f_frsize < store->keep_free_bytes + bytes_of_pages(n);
}

static int refuse_over_max(const struct store *store, struct error *err)
{
	return error_set(err, ENOSPC,
			 "the VM may store %llu KiB in swap directory %s and needs more: raise DiskTierMax=",
			 (unsigned long long)(store->max_bytes >> 10), store->place);
}

static int refuse_reserve(const struct store *store, struct error *err)
{
	return error_set(err, ENOSPC,
			 "less than %llu KiB would be left free on the file system of swap directory %s: "
			 "free some there, set another one, or lower DiskKeepFree=",
			 (unsigned long long)(store->keep_free_bytes >> 10), store->place);
}

static int refuse_put(const struct store *store, size_t n, int rc, struct error *err)
{
	unsigned long kib = (unsigned long)(bytes_of_pages(n) >> 10);

	switch (rc) {
	case -ENOSPC:
		return error_set(err, ENOSPC,
				 "no space for %lu KiB in swap directory %s: "
				 "free some there or set another one",
				 kib, store->place);
	case -EDQUOT:
		return error_set(err, EDQUOT,
				 "disk quota exceeded, no %lu KiB more in swap directory %s: "
				 "free some there or raise the quota",
				 kib, store->place);
	case -EFBIG:
		return error_set(err, EFBIG,
				 "the file in swap directory %s cannot grow by %lu KiB: raise the limit of "
				 "file size (LimitFSIZE=), or use another file system",
				 store->place, kib);
	case -EIO:
		return error_set(err, EIO,
				 "write error in swap directory %s: "
				 "look at the kernel's log, the disk may be failing",
				 store->place);
	default:
		return error_set(err, -rc, "cannot write %lu KiB in swap directory %s: %s", kib, store->place,
				 strerror(-rc));
	}
}

int store_put(struct store *store, const void *pages, size_t n, uint64_t *slot_idx, struct error *err)
{
	bool reserve;
	int rc;

	if (!n)
		return 0;
	if (store->mode == SNAPSHOT)
		return error_set(err, EROFS, "%s is a snapshot's memory file: nothing is written there",
				 store->place);
	if (!store->ready)
		return error_set(err, EINVAL,
				 "the store in %s is not ready: "
				 "its used slots are still being marked",
				 store->place);
	reserve = is_in_reserve(store, n);
	rc = reserve ? -ENOSPC : put(store, pages, n, slot_idx, slots_take);
	if (rc == -EIO && n == 1) /* another place may be better */
		rc = put(store, pages, n, slot_idx, slots_take);
	/* No new blocks to be had: what was freed inside the file still has its own. */
	if (is_no_space(rc)) {
		int again = put(store, pages, n, slot_idx, slots_take_spare);

		if (!again || !is_no_space(again))
			rc = again;
	}
	if (rc) {
		if (rc != -EIO)
			store_trim(store);
		if (rc == -OVER_MAX)
			return refuse_over_max(store, err);
		return reserve && rc == -ENOSPC ? refuse_reserve(store, err) : refuse_put(store, n, rc, err);
	}
	FAILPOINT_HERE("store.written");
	return 0;
}

static int read_run(const struct store *store, char *bytes, uint64_t size_bytes, uint64_t offset_bytes)
{
	uint64_t done = 0;

	HELD_MAY_WAIT(WAIT_READ);
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

/* Looked at after a read: write() sets the time before it changes a byte, and truncation changes the length. A writer with a
 * shared mapping is not noticed: the kernel sets the time at best when a page becomes writable there, and not when it is
 * written to. */
static bool is_changed(const struct store *store)
{
	struct snapshot_version now;
	struct stat st;

	if (fstat(store->fd, &st))
		return true;
	now = snapshot_version_of(&st);
	return now.size_bytes != store->version.size_bytes || now.mtime_ns != store->version.mtime_ns;
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
	if (!rc && store->mode == SNAPSHOT && is_changed(store))
		rc = -EBADMSG;
	if (!rc && n && FAILPOINT("store.read.corrupt"))
		pages[0] ^= 1;
	return rc;
}

bool store_next_data(struct store *store, uint64_t slot_idx, uint64_t *start_idx, uint64_t *end_idx)
{
	off_t data = lseek(store->fd, (off_t)bytes_of_pages(slot_idx), SEEK_DATA), hole;

	if (data < 0 && errno == ENXIO)
		return false;
	hole = data < 0 ? -1 : lseek(store->fd, data, SEEK_HOLE);
	*start_idx = data < 0 ? slot_idx : pages_of_bytes((uint64_t)data);
	*end_idx = hole < 0 ? STORE_SLOTS_MAX : pages_of_bytes((uint64_t)hole + PAGE_BYTES - 1);
	return true;
}

void store_drop(struct store *store, const uint64_t *slot_idx, size_t n)
{
	if (store->mode == SNAPSHOT)
		return;
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

#define CUT_EXTENTS 32 /* 64 MiB: some 50 ms on a disk with discard */

/* Once all is punched, or in pieces from the end where that cannot be. It gives back the file's own metadata too. The lock is
 * held meanwhile, so that no put writes what is then cut off; nobody else can want it, as there is nothing to drop. */
static bool cut_unused_file(struct store *store)
{
	struct slots *slots = &store->slots;
	size_t left_n = 0;

	if (slots->taken_n != store->condemned_n || slots->claimed_n || !slots->extents_n)
		return false;
	if (slots->emptied_n) {
		if (!atomic_load_explicit(&store->cannot_punch, memory_order_relaxed))
			return false;
		left_n = slots->extents_n > CUT_EXTENTS ? slots->extents_n - CUT_EXTENTS : 0;
	}
	if (FAILPOINT("store.cut") || ftruncate(store->fd, (off_t)(left_n * EXTENT_BYTES)) != 0)
		return false;
	slots_cut(slots, left_n);
	store->condemned_n = slots->taken_n; /* other blocks will be there */
	return true;
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

	HELD_MAY_WAIT(WAIT_WRITE);
	if (!store->ready)
		return false;
	pthread_mutex_lock(&store->lock);
	done = cut_unused_file(store);
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
	if (store->mode != SNAPSHOT && fstat(store->fd, &st) == 0)
		out->disk_bytes = (uint64_t)st.st_blocks * 512;
}
