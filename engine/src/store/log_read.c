/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Reads pages from the log: from memory, or in blocks from disk. */
#include <errno.h>
#include <stdlib.h>

#include "base/memory_error.h"
#include "base/units.h"
#include "store/log.h"
#include "store/page_read.h"
#include "store/record.h"

/* Reads from disk no further apart than this are merged. */
#define GAP_BYTES_MAX ((uint64_t)32 << 10)
/* To map and clear the memory of a whole segment takes longer than a read of some pages. */
#define SMALL_BYTES ((uint64_t)512 << 10)

struct unpacking {
	const char *record;
	uint64_t room;
	void *page;
	bool is_right;
};

static void unpack(void *argument)
{
	struct unpacking *it = argument;
	struct record_header header;

	it->is_right = record_header_of(it->record, it->room, &header) &&
		       record_unpack(&header, it->record + RECORD_HEAD_BYTES, it->page);
}

static int read_from_ram(struct log *log, uint32_t segment_idx, uint32_t granule, void *page)
{
	uint64_t offset_bytes = (uint64_t)granule << GRANULE_SHIFT;
	struct unpacking it = { .room = SEGMENT_BYTES - offset_bytes, .page = page };
	char *segment;
	int rc = log_memory_of(log, segment_idx, &segment);

	if (rc)
		return rc;
	it.record = segment + offset_bytes;
	if (!memory_try(unpack, &it))
		return -EIO;
	return it.is_right ? 0 : -EBADMSG;
}

/* A record on disk, of which at most room bytes are there. */
static int open_record(struct log *log, uint64_t serial, uint32_t granule, const char *record, uint64_t room,
		       void *page)
{
	char compressed[PAGE_BYTES];
	struct record_header header;
	const size_t head_bytes = RECORD_HEAD_BYTES - RECORD_TAG_BYTES;
	const char *packed = record + RECORD_HEAD_BYTES;
	int rc;

	if (!record_header_of(record, room, &header))
		return -EBADMSG;
	if (log->seal) {
		bool is_whole = header.codec == RECORD_RAW;
		char *opened = is_whole ? page : compressed;

		rc = seal_open(log->seal, serial, granule, record, head_bytes, packed, header.payload_bytes,
			       record + head_bytes, opened);
		if (rc || is_whole)
			return rc;
		packed = opened;
	}
	return record_unpack(&header, packed, page) ? 0 : -EBADMSG;
}

/* A record on disk, and the whole blocks that contain it. */
struct on_disk {
	size_t i; /* the caller's index */
	uint32_t segment_idx, granule;
	uint32_t place_idx;
	uint64_t offset_bytes, size_bytes; /* in the segment */
	uint64_t from_bytes, end_bytes;	   /* of the blocks */
};

static struct on_disk find_on_disk(const struct log *log, size_t i, uint64_t slot_idx, uint64_t place)
{
	struct on_disk at = { .i = i,
			      .segment_idx = slot_segment(slot_idx),
			      .granule = slot_granule(slot_idx),
			      .place_idx = (uint32_t)place };
	uint64_t extent_bytes = (uint64_t)segments_extent(&log->segments, at.segment_idx, at.granule)
				<< GRANULE_SHIFT;

	at.offset_bytes = (uint64_t)at.granule << GRANULE_SHIFT;
	at.size_bytes = extent_bytes < RECORD_BYTES_MAX ? extent_bytes : RECORD_BYTES_MAX;
	at.from_bytes = at.offset_bytes & ~(DISK_BLOCK_BYTES - 1);
	at.end_bytes = (at.offset_bytes + at.size_bytes + DISK_BLOCK_BYTES - 1) & ~(DISK_BLOCK_BYTES - 1);
	return at;
}

/* blocks begins at at->from_bytes, or earlier. */
static int open_from_blocks(struct log *log, const struct on_disk *at, const char *blocks,
			    uint64_t blocks_from_bytes, void *page)
{
	uint64_t serial = atomic_load(&log->segments.entries[at->segment_idx].serial);

	return open_record(log, serial, at->granule, blocks + (at->offset_bytes - blocks_from_bytes),
			   at->size_bytes, page);
}

static int read_from_disk(struct log *log, const struct on_disk *at, void *page)
{
	_Alignas(4096) char blocks[RECORD_BYTES_MAX + 2 * DISK_BLOCK_BYTES];
	int rc;

	if (!log->disk)
		return -EIO;
	rc = disk_tier_read(log->disk, at->place_idx, at->from_bytes, blocks, at->end_bytes - at->from_bytes);
	return rc ? rc : open_from_blocks(log, at, blocks, at->from_bytes, page);
}

static bool is_known(const struct log *log, uint64_t slot_idx)
{
	return slot_is_record(slot_idx) &&
	       log->segments.pieces[slot_segment(slot_idx) / SEGMENTS_IN_PIECE] != NULL;
}

/* 0: the page was read. Negative: it cannot be read. 1: it is on disk, at *at. */
static int get_from_memory(struct log *log, size_t i, uint64_t slot_idx, void *page, struct on_disk *at)
{
	uint32_t segment_idx = slot_segment(slot_idx);
	uint64_t place;
	int rc = -EIO;

	if (slot_is_fill(slot_idx))
		return fills_get(&log->fills, (uint32_t)(slot_idx - SLOT_FILL_FIRST), page);
	if (!is_known(log, slot_idx))
		return -EIO;
	place = segments_enter(&log->segments, segment_idx);
	if (place_tier(place) == TIER_RAM)
		rc = read_from_ram(log, segment_idx, slot_granule(slot_idx), page);
	segments_leave(&log->segments, segment_idx);
	if (place_tier(place) != TIER_DISK)
		return rc;
	*at = find_on_disk(log, i, slot_idx, place);
	return 1;
}

int log_get(struct log *log, uint64_t slot_idx, void *page)
{
	struct on_disk at;
	int rc = get_from_memory(log, 0, slot_idx, page, &at);

	return rc == 1 ? read_from_disk(log, &at, page) : rc;
}

int log_begin_read(struct log *log, uint64_t slot_idx, void *page, struct page_read *read)
{
	struct on_disk at;
	int rc = get_from_memory(log, 0, slot_idx, page, &at);

	if (rc != 1)
		return rc;
	if (!log->disk)
		return -EIO;
	*read = (struct page_read){
		.slot_idx = slot_idx,
		.size_bytes = at.end_bytes - at.from_bytes,
		.record_bytes = at.size_bytes,
	};
	disk_tier_locate(log->disk, at.place_idx, at.from_bytes, read);
	return 1;
}

int log_end_read(struct log *log, const struct page_read *read, int result, const void *bytes, void *page)
{
	uint32_t segment_idx = slot_segment(read->slot_idx), granule = slot_granule(read->slot_idx);
	uint64_t in_block_bytes = ((uint64_t)granule << GRANULE_SHIFT) & (DISK_BLOCK_BYTES - 1);

	return result ? result :
			open_record(log, atomic_load(&log->segments.entries[segment_idx].serial), granule,
				    (const char *)bytes + in_block_bytes, read->record_bytes, page);
}

static int by_place(const void *left, const void *right)
{
	const struct on_disk *a = left, *b = right;

	if (a->place_idx != b->place_idx)
		return a->place_idx < b->place_idx ? -1 : 1;
	return a->from_bytes < b->from_bytes ? -1 : a->from_bytes > b->from_bytes;
}

/* How many records, from the first on, one read up to *end_bytes covers. The last of them need not end last:
 * those that begin in one block come in any order. */
static size_t near_run(const struct on_disk *at, size_t n, uint64_t *end_bytes)
{
	size_t run = 0;

	*end_bytes = at->end_bytes;
	while (run < n && at[run].place_idx == at->place_idx &&
	       at[run].from_bytes <= *end_bytes + GAP_BYTES_MAX) {
		if (at[run].end_bytes > *end_bytes)
			*end_bytes = at[run].end_bytes;
		run++;
	}
	return run;
}

/* If the run cannot be read as one, each page is read by itself: one bad block fails only one page. */
static void read_run(struct log *log, const struct on_disk *at, size_t n, uint64_t end_bytes, char *blocks,
		     char *buf, int *rc)
{
	uint64_t from_bytes = at->from_bytes;
	bool whole = n > 1 && blocks && log->disk &&
		     !disk_tier_read(log->disk, at->place_idx, from_bytes, blocks, end_bytes - from_bytes);

	for (size_t k = 0; k < n; k++) {
		char *page = buf + bytes_of_pages(at[k].i);

		rc[at[k].i] = whole ? open_from_blocks(log, &at[k], blocks, from_bytes, page) :
				      read_from_disk(log, &at[k], page);
	}
}

static uint64_t longest_run_bytes(const struct on_disk *at, size_t n)
{
	uint64_t most_bytes = 0;

	for (size_t i = 0, run; i < n; i += run) {
		uint64_t end_bytes;

		run = near_run(at + i, n - i, &end_bytes);
		if (run > 1 && end_bytes - at[i].from_bytes > most_bytes)
			most_bytes = end_bytes - at[i].from_bytes;
	}
	return most_bytes;
}

/* For the runs of more than one record. NULL: there is none, or no memory; then each is read by itself. */
static char *blocks_new(struct log *log, uint64_t size_bytes)
{
	if (size_bytes > SMALL_BYTES)
		return images_take(&log->images);
	return size_bytes ? aligned_alloc(DISK_BLOCK_BYTES, size_bytes) : NULL;
}

static void blocks_free(struct log *log, char *blocks, uint64_t size_bytes)
{
	if (size_bytes > SMALL_BYTES)
		images_return(&log->images, blocks);
	else
		free(blocks);
}

void log_get_many(struct log *log, const uint64_t *slot_idx, size_t n, void *buf, int *rc)
{
	struct on_disk *at = calloc(n, sizeof *at);
	char *pages = buf, *blocks;
	uint64_t blocks_bytes;
	size_t on_disk_n = 0;

	for (size_t i = 0; i < n; i++) {
		struct on_disk one;

		rc[i] = get_from_memory(log, i, slot_idx[i], pages + bytes_of_pages(i), &one);
		if (rc[i] == 1 && at)
			at[on_disk_n++] = one;
		else if (rc[i] == 1)
			rc[i] = read_from_disk(log, &one, pages + bytes_of_pages(i));
	}
	if (on_disk_n > 1)
		qsort(at, on_disk_n, sizeof *at, by_place);
	blocks_bytes = longest_run_bytes(at, on_disk_n);
	blocks = blocks_new(log, blocks_bytes);
	for (size_t i = 0, run; i < on_disk_n; i += run) {
		uint64_t end_bytes;

		run = near_run(at + i, on_disk_n - i, &end_bytes);
		read_run(log, at + i, run, end_bytes, blocks, pages, rc);
	}
	blocks_free(log, blocks, blocks_bytes);
	free(at);
}
