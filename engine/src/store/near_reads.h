/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The reads of some pages, begun together: those that lie near each other in one file are one read, in the
 * order of the file. What needs no device is read at once, in near_reads_find(). */
#ifndef VMMSWAP_NEAR_READS_H
#define VMMSWAP_NEAR_READS_H

#include <stddef.h>
#include <stdint.h>

#include "store/page_read.h"
#include "store/reads.h"
#include "store/store.h"

#define NEAR_PAGES_MAX 16
#define NEAR_GAPS_BYTES ((uint64_t)160 << 10) /* read and not used, in all reads together */
#define NEAR_RAW_BYTES (NEAR_PAGES_MAX * PAGE_READ_BYTES_MAX + NEAR_GAPS_BYTES)

struct near_reads;

struct near_run {
	struct file_read file; /* first: what has ended is found by it */
	struct near_reads *of;
	uint64_t slot_idx; /* of its first page */
};

/* Of one thread. */
struct near_reads {
	struct store *store;
	char *pages; /* NEAR_PAGES_MAX pages, page aligned: page i of the caller goes to place i */
	char *raw;   /* NEAR_RAW_BYTES, page aligned */
	size_t n, runs_n;
	size_t pending_n; /* runs that have not ended */
	struct page_read read[NEAR_PAGES_MAX];
	int result[NEAR_PAGES_MAX]; /* 0: the page is there; -errno; 1: it comes with run[i] */
	uint8_t run[NEAR_PAGES_MAX];
	struct near_run runs[NEAR_PAGES_MAX];
};

/* Find n slots. What needs no device is read in this call: its result is 0 then, or -errno; 1: a device has
 * it. */
void near_reads_find(struct near_reads *self, const uint64_t *slot_idx, size_t n);

/* Begin to read what a device has. reads: each run is begun there, and may begin only with reads_submit();
 * NULL: all is read in this call. */
void near_reads_begin(struct near_reads *self, struct reads *reads);

/* A run has ended: reads_take() returned it. */
void near_reads_run_ended(struct file_read *file);

/* Nothing is pending: make page i of what was read. Once for each page that is wanted still. 0 or -errno,
 * which result[i] is then, too. What store_end_read() says of a slot that is dropped meanwhile is true until
 * here. */
int near_reads_end(struct near_reads *self, size_t i);

#endif
