/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "base/trace.h"

#include <errno.h>
#include <stdlib.h>

int trace_create(size_t rings_n, struct trace **out)
{
	struct trace *trace = calloc(1, sizeof *trace);

	if (!trace)
		return -ENOMEM;
	trace->rings = calloc(rings_n, sizeof *trace->rings);
	if (!trace->rings) {
		free(trace);
		return -ENOMEM;
	}
	trace->rings_n = rings_n;
	*out = trace;
	return 0;
}

void trace_destroy(struct trace *trace)
{
	if (!trace)
		return;
	for (size_t i = 0; i < trace->rings_n; i++)
		free(trace->rings[i].records);
	free(trace->rings);
	free(trace);
}

int trace_set(struct trace *trace, bool on)
{
	for (size_t i = 0; on && i < trace->rings_n; i++) {
		struct trace_ring *ring = &trace->rings[i];

		if (!ring->records)
			ring->records = calloc(TRACE_RING_RECORDS, sizeof *ring->records);
		if (!ring->records)
			return -ENOMEM;
	}
	/* Releases the rings' memory to the threads that see the flag. */
	atomic_store_explicit(&trace->on, on, memory_order_release);
	return 0;
}

void trace_add(struct trace *trace, size_t ring_idx, const struct trace_record *record)
{
	struct trace_ring *ring = &trace->rings[ring_idx];
	uint64_t written, drained;

	if (!atomic_load_explicit(&trace->on, memory_order_acquire))
		return;
	written = atomic_load_explicit(&ring->written, memory_order_relaxed);
	drained = atomic_load_explicit(&ring->drained, memory_order_acquire);
	if (written - drained == TRACE_RING_RECORDS) {
		atomic_fetch_add_explicit(&ring->dropped, 1, memory_order_relaxed);
		return;
	}
	ring->records[written % TRACE_RING_RECORDS] = *record;
	atomic_store_explicit(&ring->written, written + 1, memory_order_release);
}

/* The ring whose oldest record is the oldest of all; NULL: all are empty. */
static struct trace_ring *oldest(struct trace *trace)
{
	struct trace_ring *found = NULL;
	uint64_t found_ns = 0;

	for (size_t i = 0; i < trace->rings_n; i++) {
		struct trace_ring *ring = &trace->rings[i];
		uint64_t drained = atomic_load_explicit(&ring->drained, memory_order_relaxed);
		uint64_t time_ns;

		if (drained == atomic_load_explicit(&ring->written, memory_order_acquire))
			continue;
		time_ns = ring->records[drained % TRACE_RING_RECORDS].time_ns;
		if (!found || time_ns < found_ns) {
			found = ring;
			found_ns = time_ns;
		}
	}
	return found;
}

size_t trace_drain(struct trace *trace, struct trace_record *out, size_t room)
{
	struct trace_ring *ring;
	size_t n = 0;

	while (n < room && (ring = oldest(trace))) {
		uint64_t drained = atomic_load_explicit(&ring->drained, memory_order_relaxed);

		out[n++] = ring->records[drained % TRACE_RING_RECORDS];
		atomic_store_explicit(&ring->drained, drained + 1, memory_order_release);
	}
	return n;
}

uint64_t trace_dropped(const struct trace *trace)
{
	uint64_t dropped = 0;

	for (size_t i = 0; i < trace->rings_n; i++)
		dropped += atomic_load_explicit(&trace->rings[i].dropped, memory_order_relaxed);
	return dropped;
}
