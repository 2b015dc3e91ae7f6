/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "store/page_file.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "base/failpoint.h"
#include "base/held.h"
#include "base/units.h"
#include "store/page_read.h"
#include "store/slots.h"
#include "store/sorted_read.h"
#include "store/swap_file.h"
#include "store/writes.h"

struct page_file {
	struct tier tier;
	struct swap_file file;
	uint64_t max_bytes;	  /* of disk blocks; 0: no limit */
	uint64_t keep_free_bytes; /* on the file system; 0: none */
	uint64_t marks_n;	  /* slots in the adopted file; marks must be below */
	bool ready;		  /* pages can be put: false between page_file_adopt() and ready() */

	pthread_mutex_t lock; /* of slots; held for microseconds, but see cut_unused_file() */
	struct slots slots;
	uint64_t condemned_n; /* taken slots without a page: a write to them failed */

	atomic_uint_least64_t used_slots;
	atomic_bool cannot_punch;
	_Atomic uint32_t limited_by;
};

static struct page_file *of(struct tier *tier)
{
	return (struct page_file *)tier;
}

static int mark_used(struct tier *tier, uint64_t slot_idx)
{
	struct page_file *store = of(tier);

	if (slot_idx >= store->marks_n)
		return -ERANGE;
	if (!slots_take_one(&store->slots, slot_idx))
		return -EEXIST;
	atomic_fetch_add_explicit(&store->used_slots, 1, memory_order_relaxed);
	return 0;
}

static void ready(struct tier *tier)
{
	of(tier)->ready = true;
}

static void destroy(struct tier *tier)
{
	struct page_file *store = of(tier);

	swap_file_close(&store->file);
	slots_clear(&store->slots);
	pthread_mutex_destroy(&store->lock);
	free(store);
}

/* A put would exceed max_bytes, or the write budget. No system call of ours returns these. */
#define OVER_MAX EXFULL
#define OVER_BUDGET ENOANO

static int write_slots(struct page_file *store, const void *const *page, size_t n, const uint64_t *slot_idx)
{
	uint64_t written_bytes = 0;
	struct pieces pieces;
	int rc = 0;

	if (!writes_take(store->tier.writes, bytes_of_pages(n)))
		return -OVER_BUDGET;
	for (size_t i = 0, run; i < n && !rc; i += run) {
		pieces_begin(&pieces);
		for (run = 0; i + run < n && slot_idx[i + run] == slot_idx[i] + run; run++)
			if (!pieces_add(&pieces, (void *)page[i + run], PAGE_BYTES))
				break;
		rc = swap_file_write(&store->file, &pieces, bytes_of_pages(slot_idx[i]), &written_bytes);
	}
	if (rc)
		writes_return(store->tier.writes, bytes_of_pages(n) - written_bytes);
	return rc;
}

static void drop(struct tier *tier, const uint64_t *slot_idx, size_t n)
{
	struct page_file *store = of(tier);

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

/* What the file may occupy once these pages are in it: every extent that has ever had a slot counts in full.
 * Under the lock. */
static bool is_over_max(const struct page_file *store, size_t more)
{
	const struct slots *slots = &store->slots;
	uint64_t extents = (more + EXTENT_SLOTS - 1) / EXTENT_SLOTS + slots->claimed_n;

	return store->max_bytes &&
	       (slots->taken_n + slots->spare_n + extents * EXTENT_SLOTS) * PAGE_BYTES > store->max_bytes;
}

/* Check the limit and take the slots under one lock, or two puts could both take the last ones. Spare slots
 * already have blocks. */
static int take(struct page_file *store, size_t n, uint64_t *slot_idx,
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

/* A slot that cannot be written to stays taken, or the next page would be put there and fail too. */
static void condemn(struct page_file *store)
{
	atomic_fetch_sub_explicit(&store->used_slots, 1, memory_order_relaxed);
	pthread_mutex_lock(&store->lock);
	store->condemned_n++;
	pthread_mutex_unlock(&store->lock);
}

static int put_there(struct page_file *store, const void *const *page, size_t n, uint64_t *slot_idx,
		     int (*how)(struct slots *slots, size_t n, uint64_t *slot_idx))
{
	int rc = take(store, n, slot_idx, how);

	if (rc)
		return rc;
	rc = write_slots(store, page, n, slot_idx);
	if (rc == -EIO && n == 1)
		condemn(store);
	else if (rc)
		drop(&store->tier, slot_idx, n);
	return rc;
}

static bool is_no_space(int rc)
{
	return rc == -ENOSPC || rc == -EDQUOT || rc == -EFBIG || rc == -OVER_MAX;
}

/* True if n pages of new disk blocks would use space that must stay free. A file system that does not report
 * its free space has no such reserve. */
static bool is_in_reserve(const struct page_file *store, size_t n)
{
	struct statvfs fs;

	return store->keep_free_bytes && fstatvfs(store->file.fd, &fs) == 0 &&
	       (uint64_t)fs.f_bavail * fs.f_frsize < store->keep_free_bytes + bytes_of_pages(n);
}

static int refuse_over_max(struct page_file *store, struct error *err)
{
	atomic_store(&store->limited_by, LIMITED_BY_DISK_TIER);
	return error_set(err, ENOSPC,
			 "the VM may store %llu KiB in swap directory %s, and needs more: raise "
			 "DiskTierMax=",
			 (unsigned long long)(store->max_bytes >> 10), store->file.dir);
}

static int refuse_reserve(const struct page_file *store, struct error *err)
{
	return error_set(err, ENOSPC,
			 "less than %llu KiB would be left free on the file system of swap directory %s: "
			 "free some there, set another one, or lower DiskKeepFree=",
			 (unsigned long long)(store->keep_free_bytes >> 10), store->file.dir);
}

static int refuse_over_budget(struct page_file *store, struct error *err)
{
	atomic_store(&store->limited_by, LIMITED_BY_WRITE_BUDGET);
	return error_set(err, ENOSPC, WRITES_SPENT);
}

static bool trim_step(struct tier *tier);

static int put(struct tier *tier, const void *const *page, const uint64_t *owner_idx, size_t n,
	       uint64_t *slot_idx, struct error *err)
{
	struct page_file *store = of(tier);
	bool reserve;
	int rc;

	(void)owner_idx;
	if (!store->ready)
		return error_set(err, EINVAL,
				 "the store in %s is not ready: "
				 "its used slots are still being marked",
				 store->file.dir);
	reserve = is_in_reserve(store, n);
	rc = reserve ? -ENOSPC : put_there(store, page, n, slot_idx, slots_take);
	if (rc == -EIO && n == 1) /* another place may be better */
		rc = put_there(store, page, n, slot_idx, slots_take);
	/* There are no new blocks: slots that were freed inside the file still have theirs. */
	if (is_no_space(rc)) {
		int again = put_there(store, page, n, slot_idx, slots_take_spare);

		if (!again || !is_no_space(again))
			rc = again;
	}
	if (rc) {
		while (rc != -EIO && trim_step(tier))
			;
		if (rc == -OVER_MAX)
			return refuse_over_max(store, err);
		if (rc == -OVER_BUDGET)
			return refuse_over_budget(store, err);
		if (is_no_space(rc))
			atomic_store(&store->limited_by, LIMITED_BY_NO_SPACE);
		return reserve && rc == -ENOSPC ? refuse_reserve(store, err) :
						  swap_file_refuse(&store->file, bytes_of_pages(n), rc, err);
	}
	FAILPOINT_HERE("store.written");
	return 0;
}

static int get(struct tier *tier, const uint64_t *slot_idx, size_t n, void *buf)
{
	struct page_file *store = of(tier);
	struct pieces one;
	int rc = 0;

	if (n == 1) { /* a page fault */
		pieces_of_one(&one, buf, PAGE_BYTES);
		return swap_file_read(&store->file, &one, bytes_of_pages(slot_idx[0]));
	}
	for (size_t i = 0, part; i < n && !rc; i += part) {
		part = n - i < CHUNK_PAGES ? n - i : CHUNK_PAGES;
		rc = sorted_read(&store->file, slot_idx + i, part, (char *)buf + bytes_of_pages(i));
	}
	return rc;
}

/* On tmpfs, a read is a copy. */
static int begin_read(struct tier *tier, uint64_t slot_idx, void *page, struct page_read *read)
{
	struct page_file *store = of(tier);

	if (store->file.mode == FILE_MEMORY)
		return get(tier, &slot_idx, 1, page);
	*read = (struct page_read){ .slot_idx = slot_idx,
				    .fd = store->file.fd,
				    .offset_bytes = bytes_of_pages(slot_idx),
				    .size_bytes = PAGE_BYTES };
	return 1;
}

static void was_read(struct tier *tier, const struct page_read *read)
{
	swap_file_was_read(&of(tier)->file, read->size_bytes, read->offset_bytes);
}

static int end_read(struct tier *tier, const struct page_read *read, int result, char *bytes, char *room,
		    char **page)
{
	(void)tier, (void)read, (void)room;
	*page = bytes;
	return result;
}

#define CUT_EXTENTS 32 /* 64 MiB: some 50 ms on a disk with discard */

/* Cut the file once all is punched; if it cannot be punched, cut parts from its end. This also releases the
 * file's own metadata. The lock is held meanwhile, so that no put writes to what is then cut off; nobody else
 * needs it, as there is nothing to drop. */
static bool cut_unused_file(struct page_file *store)
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
	if (FAILPOINT("store.cut") || ftruncate(store->file.fd, (off_t)(left_n * EXTENT_BYTES)) != 0)
		return false;
	swap_file_measure(&store->file);
	slots_cut(slots, left_n);
	store->condemned_n = slots->taken_n; /* new blocks will replace the bad ones */
	return true;
}

/* The extent is claimed: none of its slots is given out until its blocks are gone. */
static bool punch_extent(struct page_file *store, size_t extent_idx)
{
	const int mode = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
	int rc = FAILPOINT("store.punch");

	if (!rc && fallocate(store->file.fd, mode, (off_t)(extent_idx * EXTENT_BYTES), EXTENT_BYTES))
		rc = -errno;
	if (rc == -EOPNOTSUPP || rc == -ENOSYS)
		atomic_store_explicit(&store->cannot_punch, true, memory_order_relaxed);
	swap_file_measure(&store->file);
	return rc == 0;
}

static bool trim_step(struct tier *tier)
{
	struct page_file *store = of(tier);
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

static void account(struct tier *tier, struct store_account *out)
{
	struct page_file *store = of(tier);

	out->used_slots += atomic_load_explicit(&store->used_slots, memory_order_relaxed);
	if (atomic_load(&store->limited_by))
		out->limited_by = atomic_load(&store->limited_by);
	out->disk_bytes += swap_file_disk_bytes(&store->file);
}

static int fd_of(const struct tier *tier)
{
	return ((const struct page_file *)tier)->file.fd;
}

static const struct tier_ops ops = {
	.file_kind = "swap",
	.checks_bytes = false,
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

void page_file_limit(struct tier *tier, uint64_t max_bytes, uint64_t keep_free_bytes)
{
	of(tier)->max_bytes = max_bytes;
	of(tier)->keep_free_bytes = keep_free_bytes;
}

void page_file_forget_limit(struct tier *tier)
{
	atomic_store(&of(tier)->limited_by, LIMITED_BY_NOTHING);
}

static int make(struct swap_file file, struct page_file **out, struct error *err)
{
	struct page_file *store = calloc(1, sizeof *store);

	if (!store) {
		swap_file_close(&file);
		return error_set(err, ENOMEM, "no memory for the store");
	}
	store->tier.ops = &ops;
	store->file = file;
	pthread_mutex_init(&store->lock, NULL);
	*out = store;
	return 0;
}

int page_file_create(const char *dir, struct tier **out, struct error *err)
{
	struct page_file *store;
	struct swap_file file;
	int rc = swap_file_create(dir, &file, err);

	if (!rc)
		rc = make(file, &store, err);
	if (rc)
		return rc;
	store->ready = true;
	*out = &store->tier;
	return 0;
}

int page_file_adopt(int fd, struct tier **out, struct error *err)
{
	struct page_file *store;
	struct swap_file file;
	struct stat st;
	int rc = swap_file_adopt(fd, &file, err);

	if (!rc)
		rc = make(file, &store, err);
	if (rc)
		return rc;
	if (fstat(store->file.fd, &st))
		rc = -errno;
	else
		store->marks_n = pages_of_bytes((uint64_t)st.st_size);
	if (!rc)
		rc = slots_adopt(&store->slots, store->marks_n);
	if (rc) {
		destroy(&store->tier);
		return error_set(err, -rc, "cannot take over a store of %llu bytes: %s",
				 (unsigned long long)st.st_size, strerror(-rc));
	}
	*out = &store->tier;
	return 0;
}
