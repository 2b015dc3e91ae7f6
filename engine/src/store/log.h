/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The store proper: a log of records in segments, which begin in RAM and age to disk.
 *
 *   put     a writer packs pages into its open segment, in RAM; that is all that a swap-out does as long as there is room there
 *   move    a full segment goes to disk in one write, sealed, and its memory is given back: when the RAM tier is over its limit (the writer
 *           does it itself), by age, or when asked (move.h)
 *   compact records in use leave a sparse segment for an open one, and their pages are told (compact.h)
 *   get     from memory, or by the block from disk
 *   drop    counts; a segment without a record in use gives its memory or its blocks back
 *
 * Bytes first, then the name: a slot index is valid when log_put() returns, whatever dies from then on. */
#ifndef VMMSWAP_LOG_H
#define VMMSWAP_LOG_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "store/disk_tier.h"
#include "store/fills.h"
#include "store/ram_tier.h"
#include "store/seal.h"
#include "store/segments.h"
#include "store/store.h"

#define LOG_WRITERS 8
#define LOG_COMPACTOR (LOG_WRITERS - 1) /* the writer that compaction has for itself */

struct log_config {
	const char *dir;			  /* of a new disk tier; NULL: none */
	int segments_fd, ram_fd, disk_fd, key_fd; /* -1, or a predecessor's */
	bool compress;
	bool encrypt;
	uint64_t ram_max_bytes;	 /* 0: RAM only on the way to disk */
	uint64_t disk_max_bytes; /* 0: no disk tier */
	uint64_t disk_keep_free_bytes;
	uint32_t ram_age_s; /* pages that are older move to disk; 0: never */
};

struct page_to_put {
	const void *page;
	uint64_t owner;	   /* for log_compact(); below 2^40 */
	uint64_t slot_idx; /* out */
};

/* One open segment for pages that compress, one for those that do not. */
struct log_writer {
	pthread_mutex_t lock;
	struct {
		bool is_open;
		uint32_t segment_idx;
		uint32_t next_granule;
	} open[2];
};

struct log {
	struct segments segments;
	struct ram_tier ram;
	struct disk_tier *disk; /* NULL: none */
	struct seal *seal;	/* NULL: not encrypted */
	struct fills fills;
	bool compress;
	struct log_writer writers[LOG_WRITERS];
	pthread_mutex_t take_lock; /* of the RAM tier's limit */

	uint64_t disk_keep_free_bytes;
	uint32_t ram_age_s;
	_Atomic uint64_t ram_max_bytes, disk_max_bytes;
	_Atomic int64_t write_budget_bytes; /* what may still be written; INT64_MAX: any amount */
	_Atomic uint32_t limited_by;
	_Atomic uint32_t moving_n; /* disk places that are being filled */
	_Atomic uint64_t moved_segments, compacted_segments;
};

int log_create(const struct log_config *config, struct log **out, struct error *err);
void log_destroy(struct log *log);

/* Recovery, before anything else: each slot that the page map holds, once; then log_recovered(). -ERANGE, -EEXIST: the page map is damaged. */
int log_mark_used(struct log *log, uint64_t slot_idx);
/* Gives back what nobody uses, also what a process that died left half done. */
void log_recovered(struct log *log);

/* Pack n pages. How many were put, in order; fewer than n with *err set: -ENOSPC with log->limited_by, or an error of disk or memory. One
 * writer, one thread at a time. */
size_t log_put(struct log *log, size_t writer_idx, struct page_to_put *pages, size_t n, struct error *err);

/* One page. 0; -EIO, -EBADMSG, ... . A get that races with the drop of its slot gives -EIO, -EBADMSG, old or foreign bytes: the caller
 * must notice, and throw the result away. No locks, and for a page in RAM no system call. */
int log_get(struct log *log, uint64_t slot_idx, void *page);

/* n pages into buf; errors by page. Reads from disk are sorted, and near ones become one. */
void log_get_many(struct log *log, const uint64_t *slot_idx, size_t n, void *buf, int *rc);

/* Any thread; no I/O. A slot that is not in use is a bug of ours that could hand one page's bytes to another: abort(). True if there is something
 * to tidy now. */
bool log_drop(struct log *log, uint64_t slot_idx);

/* Give back memory and blocks of what was dropped: one segment a call. False: there is nothing. Takes up to some milliseconds. */
bool log_tidy_step(struct log *log);

/* No writer appends to what is open now: so that it can be moved. */
void log_seal_open(struct log *log);

struct log_account {
	uint64_t ram_bytes, disk_bytes; /* as kernel and file system count */
	uint64_t record_bytes;		/* of all records in use */
	uint64_t written_bytes;		/* to disk, since the log was made */
	uint64_t records, raw_records, fill_pages;
};
void log_account(struct log *log, struct log_account *out);

#endif
