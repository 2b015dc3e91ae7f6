/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "base/stats.h"

#include <string.h>
#include <time.h>

static size_t bucket_of(uint64_t value)
{
	unsigned power;

	if (value < 16)
		return (size_t)value;
	power = 63 - (unsigned)__builtin_clzll(value); /* at least 4 */
	size_t bucket = 16 + (size_t)(power - 4) * 8 + ((value >> (power - 3)) & 7);
	return bucket < LATENCY_BUCKETS ? bucket : LATENCY_BUCKETS - 1;
}

static uint64_t upper_edge_of(size_t bucket)
{
	unsigned power;

	if (bucket < 16)
		return bucket;
	power = (unsigned)((bucket - 16) / 8) + 4;
	return ((uint64_t)1 << power) + (((bucket - 16) % 8 + 1) << (power - 3)) - 1;
}

static uint64_t now_s(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
	return (uint64_t)now.tv_sec;
}

/* There is one writer. */
static void add_one(_Atomic uint64_t *count)
{
	atomic_store_explicit(count, atomic_load_explicit(count, memory_order_relaxed) + 1,
			      memory_order_relaxed);
}

static void count_in_second(struct latency *latency)
{
	uint64_t at_s = now_s(), second_s = atomic_load_explicit(&latency->second_s, memory_order_relaxed);

	if (at_s != second_s) {
		uint64_t n = atomic_load_explicit(&latency->in_second_n, memory_order_relaxed);

		atomic_store_explicit(&latency->in_last_n, at_s == second_s + 1 ? n : 0,
				      memory_order_relaxed);
		atomic_store_explicit(&latency->in_second_n, 0, memory_order_relaxed);
		atomic_store_explicit(&latency->second_s, at_s, memory_order_relaxed);
	}
	add_one(&latency->in_second_n);
}

void latency_add(struct latency *latency, uint64_t duration_ns)
{
	add_one(&latency->counts[bucket_of(duration_ns)]);
	count_in_second(latency);
}

static uint64_t last_second(const struct latency *latency, uint64_t at_s)
{
	uint64_t second_s = atomic_load_explicit(&latency->second_s, memory_order_relaxed);

	if (second_s == at_s)
		return atomic_load_explicit(&latency->in_last_n, memory_order_relaxed);
	return second_s + 1 == at_s ? atomic_load_explicit(&latency->in_second_n, memory_order_relaxed) : 0;
}

static uint64_t percentile(const uint64_t *counts, uint64_t total, unsigned percent)
{
	uint64_t wanted = (total * percent + 99) / 100, seen = 0;

	for (size_t bucket = 0; bucket < LATENCY_BUCKETS; bucket++) {
		seen += counts[bucket];
		if (seen >= wanted)
			return upper_edge_of(bucket);
	}
	return upper_edge_of(LATENCY_BUCKETS - 1);
}

void latency_summarise(const struct latency *all, size_t n, struct latency_summary *out)
{
	uint64_t counts[LATENCY_BUCKETS] = { 0 };

	memset(out, 0, sizeof *out);
	for (size_t i = 0; i < n; i++)
		out->last_second_n += last_second(&all[i], now_s());
	for (size_t i = 0; i < n; i++)
		for (size_t bucket = 0; bucket < LATENCY_BUCKETS; bucket++)
			counts[bucket] += atomic_load_explicit(&all[i].counts[bucket], memory_order_relaxed);
	for (size_t bucket = 0; bucket < LATENCY_BUCKETS; bucket++)
		out->count += counts[bucket];
	if (!out->count)
		return;
	out->p50_ns = percentile(counts, out->count, 50);
	out->p99_ns = percentile(counts, out->count, 99);
}
