/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The trace's rings, and what a drainer with little room takes from them. */
#include "base/trace.h"

#include "harness.h"

#define RINGS 3

static void add(struct trace *trace, size_t ring_idx, uint64_t time_ns)
{
	struct trace_record record = { .time_ns = time_ns, .process_id = (uint32_t)ring_idx };

	trace_add(trace, ring_idx, &record);
}

/* The first ring is full whenever it is drained. */
TEST(a_busy_ring_does_not_starve_the_others)
{
	struct trace_record out[64];
	struct trace *trace;
	uint64_t now_ns = 0, others_n = 0;

	CHECK_OK(trace_create(RINGS, &trace));
	CHECK_OK(trace_set(trace, true));
	for (int i = 0; i < TRACE_RING_RECORDS; i++)
		add(trace, 0, ++now_ns);
	for (size_t ring_idx = 1; ring_idx < RINGS; ring_idx++)
		for (int i = 0; i < 10; i++)
			add(trace, ring_idx, ++now_ns);
	for (int round = 0; round < TRACE_RING_RECORDS / 64 + 1; round++) {
		CHECK_EQ(trace_drain(trace, out, 64), 64);
		for (int i = 0; i < 64; i++)
			others_n += out[i].process_id != 0;
		for (int i = 0; i < 64; i++)
			add(trace, 0, ++now_ns);
	}
	CHECK_EQ(others_n, 10 * (RINGS - 1));
	trace_destroy(trace);
}

TEST(all_rings_are_drained_as_one_by_time)
{
	struct trace_record out[RINGS * 100];
	struct trace *trace;
	uint64_t last_ns = 0;
	size_t n, all_n = 0;

	CHECK_OK(trace_create(RINGS, &trace));
	CHECK_OK(trace_set(trace, true));
	for (uint64_t i = 0; i < RINGS * 100; i++)
		add(trace, (i * 7 / 5) % RINGS, i + 1);
	while ((n = trace_drain(trace, out, 7))) {
		all_n += n;
		for (size_t i = 0; i < n; i++) {
			CHECK(out[i].time_ns > last_ns);
			last_ns = out[i].time_ns;
		}
	}
	CHECK_EQ(all_n, RINGS * 100);
	trace_destroy(trace);
}
