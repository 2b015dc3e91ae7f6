/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "store/move.h"

#include <errno.h>
#include <string.h>

#include "base/failpoint.h"
#include "base/memory_error.h"
#include "store/record.h"
#include "store/tend.h"
#include "store/thin.h"

struct copying {
	const char *record;
	uint64_t room;
	char *out;
	struct record_header header;
	bool is_right;
};

static void copy(void *argument)
{
	struct copying *it = argument;

	it->is_right = record_header_of(it->record, it->room, &it->header);
	if (it->is_right)
		memcpy(it->out, it->record, record_bytes(&it->header));
}

/* *end_bytes: where the record ends, in bytes from `out`. */
static int seal_record(struct log *log, uint64_t serial, uint32_t granule, const char *record, char *out,
		       uint64_t *end_bytes)
{
	struct copying it = { .record = record,
			      .room = SEGMENT_BYTES - ((uint64_t)granule << GRANULE_SHIFT),
			      .out = out };
	const size_t head_bytes = RECORD_HEAD_BYTES - RECORD_TAG_BYTES;
	char *payload = out + RECORD_HEAD_BYTES;

	if (!memory_try(copy, &it) || !it.is_right)
		return -EBADMSG;
	*end_bytes = record_bytes(&it.header);
	if (!log->seal)
		return 0;
	return seal_close(log->seal, serial, granule, out, head_bytes, payload, it.header.payload_bytes,
			  payload, out + head_bytes); /* in place */
}

/* Zeros wherever no record in use is. A record that is damaged in memory is left out: reading it gives an
 * error on disk as it does in memory. The image's length in whole blocks follows from its records, and not
 * from what the table says was written: a bit of that may have flipped. */
static int make_image(struct log *log, uint32_t segment_idx, uint64_t serial, char *image, uint64_t *bytes)
{
	uint64_t done_bytes = 0, record_end_bytes;
	char *segment;
	int rc = log_memory_of(log, segment_idx, &segment);

	if (rc)
		return rc;
	for (uint32_t granule = 0; segments_next_live(&log->segments, segment_idx, &granule); granule++) {
		uint64_t offset_bytes = (uint64_t)granule << GRANULE_SHIFT;

		rc = seal_record(log, serial, granule, segment + offset_bytes, image + offset_bytes,
				 &record_end_bytes);
		if (rc == -EBADMSG)
			continue;
		if (rc)
			return rc;
		/* A damaged length may reach into the next record. */
		if (offset_bytes > done_bytes)
			memset(image + done_bytes, 0, offset_bytes - done_bytes);
		if (offset_bytes + record_end_bytes > done_bytes)
			done_bytes = offset_bytes + record_end_bytes;
	}
	*bytes = (done_bytes + DISK_BLOCK_BYTES - 1) & ~(DISK_BLOCK_BYTES - 1);
	if (!*bytes)
		*bytes = DISK_BLOCK_BYTES;
	memset(image + done_bytes, 0, *bytes - done_bytes);
	return 0;
}

static int limited(struct log *log, enum limited_by by, struct error *err, const char *text)
{
	atomic_store(&log->limited_by, by);
	return error_set(err, ENOSPC, "%s", text);
}

static int refuse_over_max(struct log *log, struct error *err)
{
	atomic_store(&log->limited_by, LIMITED_BY_DISK_TIER);
	return error_set(err, ENOSPC,
			 "the VM may store %llu KiB in swap directory %s, and needs more: raise "
			 "DiskTierMax=",
			 (unsigned long long)(atomic_load(&log->disk_max_bytes) >> 10),
			 disk_tier_dir(log->disk));
}

static int refuse_reserve(struct log *log, struct error *err)
{
	atomic_store(&log->limited_by, LIMITED_BY_NO_SPACE);
	return error_set(err, ENOSPC,
			 "less than %llu KiB would be left free on the file system of swap directory %s: "
			 "free some there, set another one, or lower DiskKeepFree=",
			 (unsigned long long)(log->disk_keep_free_bytes >> 10), disk_tier_dir(log->disk));
}

/* With no reserve the disk itself says when it is full. */
static bool is_in_reserve(const struct log *log, uint64_t bytes)
{
	return log->disk_keep_free_bytes &&
	       disk_tier_free_bytes(log->disk) < log->disk_keep_free_bytes + bytes;
}

static bool is_over_max(const struct log *log, uint64_t moving_n)
{
	return disk_tier_reserved_bytes(log->disk) + moving_n * SEGMENT_BYTES >
	       atomic_load(&log->disk_max_bytes);
}

/* Blocks that nothing uses are given back now instead of later. */
static void make_room(struct log *log, uint64_t bytes)
{
	while ((is_over_max(log, atomic_load(&log->moving_n) + 1) || is_in_reserve(log, bytes)) &&
	       log_thin_step(log))
		;
}

/* Places are counted before they are taken, so that two movers do not share the last one. */
static int check_limits(struct log *log, uint64_t bytes, struct error *err)
{
	uint64_t moving_n = atomic_fetch_add(&log->moving_n, 1) + 1;
	int rc = 0;

	if (is_over_max(log, moving_n))
		rc = refuse_over_max(log, err);
	else if (is_in_reserve(log, bytes))
		rc = refuse_reserve(log, err);
	else if (!writes_take(log->writes, bytes))
		rc = limited(log, LIMITED_BY_WRITE_BUDGET, err, WRITES_SPENT);
	if (rc)
		atomic_fetch_sub(&log->moving_n, 1);
	return rc;
}

static int write_image(struct log *log, uint32_t place_idx, const char *image, uint64_t bytes,
		       uint64_t *written_bytes, struct error *err)
{
	int rc = disk_tier_write(log->disk, place_idx, image, bytes, written_bytes);

	FAILPOINT_HERE("store.move.written");
	if (!rc)
		return 0;
	if (rc == -ENOSPC || rc == -EDQUOT || rc == -EFBIG)
		atomic_store(&log->limited_by, LIMITED_BY_NO_SPACE);
	return disk_tier_refuse(log->disk, rc, err);
}

static int write_segment(struct log *log, uint32_t segment_idx, char *image, struct error *err)
{
	uint64_t serial = log->seal ? seal_next_serial(log->seal) : 0;
	uint64_t bytes, written_bytes = 0;
	uint32_t place_idx;
	int rc = make_image(log, segment_idx, serial, image, &bytes);

	if (rc)
		return error_set(err, -rc, "cannot seal a segment: %s", strerror(-rc));
	make_room(log, bytes);
	rc = check_limits(log, bytes, err);
	if (rc)
		return rc;
	rc = disk_tier_take(log->disk, &place_idx);
	atomic_fetch_sub(&log->moving_n, 1);
	if (rc) {
		writes_return(log->writes, bytes);
		return error_set(err, ENOMEM, "no memory for a further segment on disk");
	}
	rc = write_image(log, place_idx, image, bytes, &written_bytes, err);
	if (rc) {
		if (rc == -EIO) /* nobody else should get that place */
			disk_tier_condemn(log->disk, place_idx);
		else
			disk_tier_drop(log->disk, place_idx);
		writes_return(log->writes, bytes - written_bytes);
		return rc;
	}
	segments_now_on_disk(&log->segments, segment_idx, place_idx, serial,
			     (uint32_t)(bytes >> GRANULE_SHIFT));
	if (segments_is_thin(&log->segments, segment_idx)) /* it was sparse on RAM */
		log_thin_later(log);
	FAILPOINT_HERE("store.move.placed");
	return 0;
}

static void give_memory_back(struct log *log, uint32_t segment_idx)
{
	if (segments_leave_ram(&log->segments, segment_idx))
		log_release_memory(log, segment_idx);
}

static int move_oldest(struct log *log, uint32_t born_before_s, struct error *err)
{
	uint32_t segment_idx;
	char *image;
	int rc;

	if (!log->disk)
		return limited(log, LIMITED_BY_RAM_TIER, err,
			       "the RAM tier is full, and there is no disk tier: raise RamTierMax=");
	if (!segments_claim_oldest(&log->segments, born_before_s, &segment_idx))
		return -ENOENT;
	image = images_take(&log->images);
	if (!image) {
		segments_unclaim(&log->segments, segment_idx);
		return error_set(err, ENOMEM, "no memory to make a segment ready for the disk");
	}
	rc = write_segment(log, segment_idx, image, err);
	if (rc == -EIO) /* another place may be better */
		rc = write_segment(log, segment_idx, image, err);
	images_return(&log->images, image);
	if (!rc) {
		give_memory_back(log, segment_idx);
		atomic_fetch_add(&log->moved_segments, 1);
	}
	segments_unclaim(&log->segments, segment_idx);
	log_wake_tender(log); /* it may have been emptied meanwhile, or there are more */
	return rc;
}

int log_move_oldest(struct log *log, uint32_t born_before_s, struct error *err)
{
	int rc;

	atomic_fetch_add(&log->movers_n, 1);
	rc = move_oldest(log, born_before_s, err);
	atomic_fetch_sub(&log->movers_n, 1);
	return rc;
}
