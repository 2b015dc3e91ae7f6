/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Bytes that go to disk: how many were written, and up to where more may be.
 *
 * Bytes are counted before they are written, and what was not written after all is counted out again. So if
 * we die in between, a successor counts some that were not written, and never misses one that was. */
#ifndef VMMSWAP_WRITES_H
#define VMMSWAP_WRITES_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#define WRITES_UNLIMITED UINT64_MAX
#define WRITES_SPENT \
	"the bytes that may be written to disk in a day are used up: wait, or raise WriteBudgetPerDay="

struct writes {
	_Atomic uint64_t *written_bytes; /* where the caller wants it, or own_bytes */
	_Atomic uint64_t own_bytes;
	_Atomic uint64_t max_bytes; /* that *written_bytes may reach */
};

static inline void writes_init(struct writes *writes)
{
	writes->written_bytes = &writes->own_bytes;
	atomic_init(&writes->own_bytes, 0);
	atomic_init(&writes->max_bytes, WRITES_UNLIMITED);
}

/* Call before so many bytes are written. False: they may not be. */
static inline bool writes_take(struct writes *writes, uint64_t bytes)
{
	uint64_t written = atomic_load(writes->written_bytes);

	do {
		uint64_t max = atomic_load(&writes->max_bytes);

		if (written > max || bytes > max - written)
			return false;
	} while (!atomic_compare_exchange_weak(writes->written_bytes, &written, written + bytes));
	return true;
}

/* So many of the bytes that were taken were not written. */
static inline void writes_return(struct writes *writes, uint64_t bytes)
{
	atomic_fetch_sub(writes->written_bytes, bytes);
}

#endif
