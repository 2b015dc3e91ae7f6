/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The main part of the store: a log of records in segments, which begin in RAM and age to disk.
 *
 *   put     a writer packs pages into its open segment, in RAM; a swap-out does no more than that
 *           while there is room in RAM
 *   move    a full segment is sealed and written to disk in one write, and its memory is released: when the
 *           RAM tier is over its limit (the writer does it itself), by age, or on request (move.h)
 *   compact records in use are copied from a sparse segment to an open one, and the owners of their pages
 *           get the new names (compact.h)
 *   thin    blocks on disk that no record in use needs are given back (thin.h)
 *   get     reads from memory, or in blocks from disk
 *   drop    counts; a segment without a record in use releases its memory or its blocks
 *
 * The bytes are written before the name is given out: a slot index is valid when log_put() returns, whatever
 * dies after that. */
#ifndef VMMSWAP_LOG_H
#define VMMSWAP_LOG_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "linux/headroom.h"
#include "store/disk_tier.h"
#include "store/fills.h"
#include "store/images.h"
#include "store/ram_tier.h"
#include "store/seal.h"
#include "store/segments.h"
#include "store/store.h"
#include "store/writes.h"

#define LOG_WRITERS 8
#define LOG_COMPACTOR (LOG_WRITERS - 1) /* the writer reserved for compaction */

struct log_config {
	const char *dir;			  /* of a new disk tier; NULL: none */
	int segments_fd, ram_fd, disk_fd, key_fd; /* -1, or those of a predecessor */
	bool compress;
	bool encrypt;
	uint64_t ram_max_bytes;	 /* 0: use RAM only on the way to disk */
	uint64_t disk_max_bytes; /* 0: no disk tier */
	uint64_t disk_keep_free_bytes;
	uint32_t ram_age_s; /* pages that are older move to disk; 0: never */
};

struct page_read;

struct page_to_put {
	const void *page;
	uint64_t owner;	   /* for log_compact(); below 2^40 */
	uint64_t slot_idx; /* out */
};

/* One open segment for pages that compress, one for those that do not. */
struct log_writer {
	pthread_mutex_t lock;
	uint32_t raw_run; /* pages in a row that were stored as they are */
	struct {
		bool is_open;
		uint32_t segment_idx;
		uint32_t next_granule;
		char *memory;
	} open[2];
};

struct log {
	struct segments segments;
	struct ram_tier ram;
	struct disk_tier *disk; /* NULL: none */
	struct seal *seal;	/* NULL: not encrypted */
	struct fills fills;
	struct images images;
	bool compress;
	struct log_writer writers[LOG_WRITERS];
	pthread_mutex_t take_lock; /* of the RAM tier's limit, and what follows */
	struct headroom *headroom;
	uint32_t allowed_segments; /* may be taken before the next look at the memory that is left */

	uint64_t disk_keep_free_bytes;
	uint32_t ram_age_s;
	_Atomic uint64_t ram_max_bytes, disk_max_bytes;
	struct writes *writes; /* own_writes, or the store's */
	struct writes own_writes;
	_Atomic uint32_t limited_by;
	_Atomic uint32_t moving_n; /* disk places that are being filled */
	_Atomic uint32_t movers_n; /* threads that move a segment now */
	_Atomic uint64_t moved_segments, compacted_segments;

	int tend_fd; /* eventfd: see tend.h */
	pthread_mutex_t tend_lock;
	_Atomic bool host_is_short;
	_Atomic uint64_t move_again_s; /* nothing is moved before this time: the last move failed */
	_Atomic uint64_t thin_from_s; /* blocks are given back from this time on; 0: there is nothing to do */
};

int log_create(const struct log_config *config, struct log **out, struct error *err);
void log_destroy(struct log *log);

/* The memory of a segment. -EIO: it has none; -ENOMEM: it cannot be mapped. */
int log_memory_of(struct log *log, uint32_t segment_idx, char **memory);
/* Release the memory of a segment that belongs to the caller alone, if it has any. */
void log_release_memory(struct log *log, uint32_t segment_idx);

/* Recovery, before anything else: call this once for each slot in the page map, then log_recovered().
 * -ERANGE, -EEXIST: the page map is damaged. */
int log_mark_used(struct log *log, uint64_t slot_idx);
/* Releases everything that is not in use, including what a process left unfinished when it died. */
void log_recovered(struct log *log);

/* Pack n pages. Returns how many were put, in order. If fewer than n, *err is set: -ENOSPC with
 * log->limited_by, or an error of disk or memory. Only one thread at a time may use a writer. */
size_t log_put(struct log *log, size_t writer_idx, struct page_to_put *pages, size_t n, struct error *err);

/* Read one page. 0; -EIO, -EBADMSG, ... . A get that races with the drop of its slot gives -EIO, -EBADMSG,
 * old bytes or another page's bytes: the caller must notice this and discard the result. Takes no locks, and
 * makes no system call for a page in RAM. */
int log_get(struct log *log, uint64_t slot_idx, void *page);

/* The same, begun and ended apart: as store_begin_read() and store_end_read(), with the page in *page. */
int log_begin_read(struct log *log, uint64_t slot_idx, void *page, struct page_read *read);
int log_end_read(struct log *log, const struct page_read *read, int result, const void *bytes, void *page);

/* Read n pages into buf; rc[i] is the result for page i. Reads from disk are sorted, and reads that lie near
 * each other are merged. */
void log_get_many(struct log *log, const uint64_t *slot_idx, size_t n, void *buf, int *rc);

/* Any thread; no I/O. Dropping a slot that is not in use is a bug of ours that could hand one page's bytes to
 * another: abort(). It wakes the tender (tend.h) if there is work for it now. */
void log_drop(struct log *log, uint64_t slot_idx);

/* Release memory and blocks of dropped records, one segment per call. False: nothing to release. Takes up to
 * some milliseconds. */
bool log_tidy_step(struct log *log);

/* Seal all open segments, so that they can be moved: no writer appends to them from now on. Memory that was
 * kept for further segments is released. */
void log_seal_open(struct log *log);
/* The same for one writer's. */
void log_seal_writer(struct log *log, size_t writer_idx);

struct log_account {
	uint64_t ram_bytes, disk_bytes; /* as kernel and file system count */
	uint64_t record_bytes;		/* of all records in use */
	uint64_t records, raw_records, fill_pages;
};
void log_account(struct log *log, struct log_account *out);

#endif
