/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "store/compact.h"

#include <string.h>

#include "base/failpoint.h"
#include "base/memory_error.h"
#include "base/units.h"
#include "store/record.h"

enum outcome { MOVED, STAYS, NO_ROOM };

struct head {
	const char *record;
	uint64_t room;
	struct record_header header;
	bool is_right;
};

static void read_head(void *argument)
{
	struct head *it = argument;

	it->is_right = record_header_of(it->record, it->room, &it->header);
}

static bool owner_of(struct log *log, uint32_t segment_idx, uint32_t granule, uint64_t *owner)
{
	uint64_t offset_bytes = (uint64_t)granule << GRANULE_SHIFT;
	struct head it = { .room = SEGMENT_BYTES - offset_bytes };
	char *segment;

	if (log_memory_of(log, segment_idx, &segment))
		return false;
	it.record = segment + offset_bytes;
	if (!memory_try(read_head, &it) || !it.is_right)
		return false;
	*owner = it.header.owner;
	return true;
}

/* Unpack the record and pack it again: so a record that is damaged in memory is not copied as if it were
 * intact. */
static enum outcome move_record(struct log *log, uint32_t segment_idx, uint32_t granule,
				relocate_page relocate, void *context)
{
	uint64_t from_idx = slot_of_record(segment_idx, granule);
	char page[PAGE_BYTES];
	struct page_to_put put = { .page = page };
	struct error err;

	if (!owner_of(log, segment_idx, granule, &put.owner) || log_get(log, from_idx, page))
		return STAYS;
	if (log_put(log, LOG_COMPACTOR, &put, 1, &err) != 1)
		return NO_ROOM;
	if (slot_is_record(put.slot_idx))
		segments_inherit_age(&log->segments, slot_segment(put.slot_idx), segment_idx);
	FAILPOINT_HERE("store.compact.copied");
	if (!relocate(context, put.owner, from_idx, put.slot_idx)) {
		log_drop(log, put.slot_idx);
		return STAYS;
	}
	FAILPOINT_HERE("store.compact.relocated");
	log_drop(log, from_idx);
	return MOVED;
}

static bool compact(struct log *log, uint32_t segment_idx, relocate_page relocate, void *context)
{
	enum outcome outcome = STAYS;
	bool moved = false;

	for (uint32_t granule = 0;
	     outcome != NO_ROOM && segments_next_live(&log->segments, segment_idx, &granule); granule++) {
		outcome = move_record(log, segment_idx, granule, relocate, context);
		moved |= outcome == MOVED;
	}
	if (moved)
		atomic_fetch_add(&log->compacted_segments, 1);
	else if (outcome == STAYS)
		segments_stuck(&log->segments, segment_idx);
	segments_unclaim(&log->segments, segment_idx);
	return moved;
}

/* Records whose pages somebody is working on, or which are damaged, cannot be moved: then the next segment
 * may do. */
bool log_compact_step(struct log *log, relocate_page relocate, void *context)
{
	struct log_writer *writer = &log->writers[LOG_COMPACTOR];
	bool has_target[2];
	uint32_t from_idx = 0, segment_idx;

	pthread_mutex_lock(&writer->lock); /* the end of a swap-out seals it */
	has_target[0] = writer->open[0].is_open;
	has_target[1] = writer->open[1].is_open;
	pthread_mutex_unlock(&writer->lock);
	while (segments_claim_sparse(&log->segments, from_idx, has_target, &segment_idx)) {
		if (compact(log, segment_idx, relocate, context))
			return true;
		from_idx = segment_idx + 1;
	}
	return false;
}
