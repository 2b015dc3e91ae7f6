/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "store/tend.h"

#include <errno.h>
#include <time.h>
#include <unistd.h>

#include "store/compact.h"
#include "store/move.h"
#include "store/thin.h"

#define MOVE_AGAIN_S 60 /* after a move that failed */
#define READER_MS 20	/* memory that somebody is reading is looked at again */
#define THIN_REST_S 30	/* after the first segment has become sparse */

static uint64_t now_s(void)
{
	struct timespec now;

	clock_gettime(CLOCK_BOOTTIME, &now);
	return (uint64_t)now.tv_sec;
}

/* Segments that began at this time or earlier move now. */
static uint32_t moves_if_born_by_s(struct log *log, uint64_t now)
{
	uint64_t ram_bytes = atomic_load(&log->segments.ram_n) * SEGMENT_BYTES;

	if (atomic_load(&log->host_is_short) || ram_bytes > atomic_load(&log->ram_max_bytes))
		return UINT32_MAX;
	return log->ram_age_s && now > log->ram_age_s ? (uint32_t)(now - log->ram_age_s) : 0;
}

/* A segment that cannot be moved stays in RAM, and is tried again later. */
static bool move_some(struct log *log)
{
	uint64_t now = now_s();
	struct error why;
	int rc;

	if (!log->disk || now < atomic_load(&log->move_again_s))
		return false;
	rc = log_move_oldest(log, moves_if_born_by_s(log, now), &why);
	if (rc && rc != -ENOENT)
		atomic_store(&log->move_again_s, now + MOVE_AGAIN_S);
	return !rc;
}

/* What comes back all at once, at a wake-up or a swap-in, leaves sparse segments that are soon empty, and
 * wants the disk itself. */
static bool thin_some(struct log *log)
{
	uint64_t from_s = atomic_load(&log->thin_from_s);

	if (!from_s || now_s() < from_s)
		return false;
	atomic_store(&log->thin_from_s,
		     0); /* before it is looked: what becomes sparse meanwhile is not lost */
	if (!log_thin_step(log))
		return false;
	atomic_store(&log->thin_from_s, 1); /* there may be more */
	return true;
}

void log_thin_later(struct log *log)
{
	uint64_t never = 0;

	if (log->disk)
		atomic_compare_exchange_strong(&log->thin_from_s, &never, now_s() + THIN_REST_S);
}

bool log_tend_step(struct log *log, relocate_page relocate, void *context)
{
	bool is_more;

	pthread_mutex_lock(&log->tend_lock);
	is_more = log_tidy_step(log) || move_some(log) || log_compact_step(log, relocate, context) ||
		  thin_some(log);
	if (!is_more) /* what compaction filled can age, too */
		log_seal_writer(log, LOG_COMPACTOR);
	pthread_mutex_unlock(&log->tend_lock);
	return is_more;
}

int log_flush_step(struct log *log, struct error *err)
{
	int rc;

	pthread_mutex_lock(&log->tend_lock);
	rc = log_move_oldest(log, UINT32_MAX, err);
	if (rc == -ENOENT) {
		log_seal_open(log);
		rc = log_move_oldest(log, UINT32_MAX, err);
	}
	pthread_mutex_unlock(&log->tend_lock);
	return rc;
}

/* Until a segment moves; -1: none does. */
static int64_t move_wait_ms(struct log *log)
{
	uint64_t now = now_s(), again_s = atomic_load(&log->move_again_s), due_s;
	uint32_t oldest_s;

	if (!log->disk || !segments_oldest_s(&log->segments, &oldest_s))
		return -1;
	due_s = oldest_s;
	if (oldest_s > moves_if_born_by_s(log, now)) {
		if (!log->ram_age_s)
			return -1;
		due_s = (uint64_t)oldest_s + log->ram_age_s;
	}
	if (due_s < again_s)
		due_s = again_s;
	return due_s > now ? (int64_t)(due_s - now) * 1000 : READER_MS;
}

int64_t log_tend_wait_ms(struct log *log)
{
	uint64_t now = now_s(), thin_s = atomic_load(&log->thin_from_s);
	int64_t wait_ms = move_wait_ms(log), thin_ms;

	if (segments_has_leftovers(&log->segments))
		return READER_MS;
	if (!thin_s)
		return wait_ms;
	thin_ms = thin_s > now ? (int64_t)(thin_s - now) * 1000 : READER_MS;
	return wait_ms < 0 || thin_ms < wait_ms ? thin_ms : wait_ms;
}

void log_wake_tender(struct log *log)
{
	uint64_t one = 1;

	/* EAGAIN: it is readable already. */
	if (write(log->tend_fd, &one, sizeof one) < 0)
		return;
}

void log_host_is_short(struct log *log, bool is_short)
{
	if (atomic_exchange(&log->host_is_short, is_short) != is_short && is_short)
		log_wake_tender(log);
}
