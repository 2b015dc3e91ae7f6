/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "store/take.h"

#include <errno.h>
#include <string.h>
#include <time.h>

#include "base/failpoint.h"
#include "store/move.h"

/* Left below the limit of each cgroup: for page tables, and the images of segments that are on their way to
 * disk. */
#define RESERVE_BYTES ((uint64_t)16 << 20)
#define ALLOWED_SEGMENTS_MAX 16
#define MOVER_NS 1000000

/* Without a disk tier, this much is stored before we judge whether compression frees enough. */
#define JUDGED_BYTES ((uint64_t)15 << 20)

/* The number of segments that may hold memory. Even if the RAM tier may hold nothing, RAM is the way to the
 * disk: each writer fills one segment of each kind, and one more is on its way. */
static uint32_t ram_segments_max(const struct log *log)
{
	uint64_t max = atomic_load(&log->ram_max_bytes) / SEGMENT_BYTES;
	uint64_t least = 4;

	if (max < least || (log->disk && atomic_load(&log->host_is_short)))
		return (uint32_t)least;
	return (uint32_t)(max > SEGMENTS_MAX ? SEGMENTS_MAX : max);
}

/* At a cgroup's limit the kernel kills instead of refusing. So look before the limit is near, and then use at
 * most half of what there was before looking again: others take memory, too. */
static bool has_memory(struct log *log)
{
	uint64_t left_bytes, allowed;

	if (log->allowed_segments) {
		log->allowed_segments--;
		return true;
	}
	left_bytes = FAILPOINT("store.headroom") ? 0 : headroom_bytes(log->headroom);
	if (left_bytes < RESERVE_BYTES + SEGMENT_BYTES)
		return false;
	allowed = (left_bytes - RESERVE_BYTES) / SEGMENT_BYTES / 2;
	log->allowed_segments = (uint32_t)(allowed < ALLOWED_SEGMENTS_MAX ? allowed : ALLOWED_SEGMENTS_MAX);
	return true;
}

static int take_memory(struct log *log, bool raw, uint32_t *segment_idx, struct error *err)
{
	enum segment_pages pages = !raw ? PAGES_COMPRESSED : log->compress ? PAGES_INCOMPRESSIBLE : PAGES_RAW;
	uint32_t place_idx;
	int rc;

	if (!ram_tier_has_spare(&log->ram) && !has_memory(log))
		return error_set(
			err, ENOMEM,
			"no memory for the RAM tier: less than %llu MiB are left on the host, or below "
			"a limit of a cgroup of the monitor; free some, or raise MemoryMax=",
			(unsigned long long)((RESERVE_BYTES + SEGMENT_BYTES) >> 20));
	rc = segments_take(&log->segments, pages, segment_idx);
	if (rc)
		return error_set(err, -rc, "no further segment can be had in the store: %s", strerror(-rc));
	rc = ram_tier_take(&log->ram, &place_idx);
	if (rc) {
		segments_put_back(&log->segments, *segment_idx);
		return error_set(
			err, ENOMEM,
			"no memory for the RAM tier (%s): free some on the host, or lower RamTierMax=",
			strerror(-rc));
	}
	segments_now_in_ram(&log->segments, *segment_idx, place_idx);
	return 0;
}

/* Check the limit and take the segment under one lock, or two writers could both take the last one. any: also
 * above the RAM tier's limit. */
static int take_below_limit(struct log *log, bool raw, bool any, uint32_t *segment_idx, struct error *err)
{
	int rc = -EAGAIN;

	pthread_mutex_lock(&log->take_lock);
	if (any || atomic_load(&log->segments.ram_n) < ram_segments_max(log))
		rc = take_memory(log, raw, segment_idx, err);
	pthread_mutex_unlock(&log->take_lock);
	return rc;
}

/* False: there is nothing to move, and nobody is moving anything. */
static bool make_room(struct log *log)
{
	struct error why;

	if (!log->disk)
		return false;
	if (!log_move_oldest(log, UINT32_MAX, &why))
		return true;
	if (!atomic_load(&log->movers_n))
		return false;
	nanosleep(&(struct timespec){ .tv_nsec = MOVER_NS }, NULL);
	return true;
}

/* Without a disk, pages that do not compress would only go from the guest's memory to ours. Judge by the
 * records: each writer has two segments open, and those are nearly empty at first. */
static bool frees_too_little(struct log *log)
{
	uint64_t pages = atomic_load(&log->segments.live_n) + atomic_load(&log->fills.pages);
	uint64_t record_bytes = atomic_load(&log->segments.live_granules) << GRANULE_SHIFT;

	return !log->disk && log->compress && record_bytes >= JUDGED_BYTES &&
	       record_bytes > pages * 4096 / 8 * 7;
}

static int take(struct log *log, bool raw, uint32_t *segment_idx, struct error *err)
{
	int rc = take_below_limit(log, raw, false, segment_idx, err);

	while (rc == -EAGAIN) {
		rc = log_move_oldest(log, UINT32_MAX, err);
		if (rc && rc != -ENOENT)
			return rc;
		/* -ENOENT: all are open, or being moved by others */
		rc = take_below_limit(log, raw, rc == -ENOENT, segment_idx, err);
	}
	while (rc == -ENOMEM && make_room(log))
		rc = take_below_limit(log, raw, true, segment_idx, err);
	if (rc)
		atomic_store(&log->limited_by, log->disk ? LIMITED_BY_NO_SPACE : LIMITED_BY_RAM_TIER);
	return rc;
}

int log_take_target(struct log *log, bool raw, uint32_t *segment_idx, struct error *err)
{
	return take_below_limit(log, raw, true, segment_idx, err);
}

int log_take_segment(struct log *log, bool raw, uint32_t *segment_idx, struct error *err)
{
	if (raw && frees_too_little(log)) {
		atomic_store(&log->limited_by, LIMITED_BY_RAM_TIER);
		return error_set(
			err, ENOSPC,
			"the VM's pages do not compress: on RAM they would free less than an eighth of "
			"what they take; set a disk tier (DiskTierMax=)");
	}
	return take(log, raw, segment_idx, err);
}
