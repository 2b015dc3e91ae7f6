/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The page-fault trace. Each fault thread writes into a ring of its own; Python drains them all. A full ring
 * drops and counts new records: a guest never waits for its log. */
#ifndef VMMSWAP_TRACE_H
#define VMMSWAP_TRACE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct trace_record {
	uint64_t time_ns; /* CLOCK_MONOTONIC, when the event was read */
	uint64_t addr;	  /* as the kernel gave it, in the faulting process */
	uint32_t process_id;
	uint32_t flags; /* UFFD_PAGEFAULT_FLAG_* */
};

#define TRACE_RING_RECORDS 16384 /* a power of two */

struct trace_ring {
	_Atomic uint64_t written; /* by its thread */
	_Atomic uint64_t drained; /* by the drainer */
	_Atomic uint64_t dropped;
	struct trace_record *records; /* TRACE_RING_RECORDS, allocated when tracing first starts */
};

struct trace {
	_Atomic bool on;
	size_t rings_n;
	struct trace_ring *rings;
};

int trace_create(size_t rings_n, struct trace **out);
void trace_destroy(struct trace *trace);

/* Switch tracing on or off. Records stay until they are drained. -ENOMEM, with nothing changed. */
int trace_set(struct trace *trace, bool on);
void trace_add(struct trace *trace, size_t ring_idx, const struct trace_record *record);

/* Take the oldest records over all rings, so that no ring waits for one that fills as fast as it is drained.
 * A record that is written meanwhile may be older than one that was taken: the caller sorts by time. One
 * thread at a time may drain. */
size_t trace_drain(struct trace *trace, struct trace_record *out, size_t room);
uint64_t trace_dropped(const struct trace *trace);

#endif
