/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Latencies of page faults. Each thread counts its own, and a reader adds them up; no thread waits. */
#ifndef VMMSWAP_STATS_H
#define VMMSWAP_STATS_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

/* Buckets grow by an eighth: values below 16 ns stand alone, then 8 buckets for each power of two. */
#define LATENCY_BUCKETS 320

struct latency {
	_Atomic uint64_t counts[LATENCY_BUCKETS]; /* one writer each; relaxed */
	/* how many there were in this second of the clock, and in the one before it */
	_Atomic uint64_t second_s, in_second_n, in_last_n;
};

void latency_add(struct latency *latency, uint64_t duration_ns);

struct latency_summary {
	uint64_t count;
	uint64_t last_second_n;	 /* in the last whole second */
	uint64_t p50_ns, p99_ns; /* upper edge of the bucket; 0 where count is 0 */
};

void latency_summarise(const struct latency *all, size_t n, struct latency_summary *out);

#endif
