/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "store/log.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/failpoint.h"
#include "base/memory_error.h"
#include "base/units.h"
#include "store/log_open.h"
#include "store/record.h"
#include "store/take.h"
#include "store/tend.h"

_Static_assert(SEGMENT_RAW_GRANULES == (RECORD_BYTES_MAX + (1u << GRANULE_SHIFT) - 1) >> GRANULE_SHIFT,
	       "the length of a record that is not compressed");
#define RECORD_GRANULES_MAX ((RECORD_BYTES_MAX + (1u << GRANULE_SHIFT) - 1) >> GRANULE_SHIFT)

static uint32_t granules_of(size_t bytes)
{
	return (uint32_t)((bytes + (1u << GRANULE_SHIFT) - 1) >> GRANULE_SHIFT);
}

int log_create(const struct log_config *config, struct log **out, struct error *err)
{
	struct log *log = calloc(1, sizeof *log);
	int rc;

	if (!log)
		return error_set(err, ENOMEM, "no memory for the store");
	memory_error_begin();
	log->compress = config->compress;
	log->ram_max_bytes = config->ram_max_bytes;
	log->disk_max_bytes = config->disk_max_bytes;
	log->disk_keep_free_bytes = config->disk_keep_free_bytes;
	log->ram_age_s = config->ram_age_s;
	images_init(&log->images);
	writes_init(&log->own_writes);
	log->writes = &log->own_writes;
	log->headroom = headroom_create("/proc");
	log->tend_fd = log->headroom ? eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK) : -1;
	rc = log->tend_fd < 0 ? error_set(err, ENOMEM, "no memory or no fd for the store") :
				segments_open(&log->segments, config->segments_fd, err);
	if (!rc) {
		rc = log_open_tiers(log, config, err);
		if (rc)
			segments_close(&log->segments);
	}
	if (rc) {
		if (log->tend_fd >= 0)
			close(log->tend_fd);
		headroom_destroy(log->headroom);
		free(log);
		return rc;
	}
	pthread_mutex_init(&log->take_lock, NULL);
	pthread_mutex_init(&log->tend_lock, NULL);
	for (size_t i = 0; i < LOG_WRITERS; i++)
		pthread_mutex_init(&log->writers[i].lock, NULL);
	*out = log;
	return 0;
}

void log_destroy(struct log *log)
{
	if (!log)
		return;
	pthread_mutex_destroy(&log->take_lock);
	pthread_mutex_destroy(&log->tend_lock);
	close(log->tend_fd);
	headroom_destroy(log->headroom);
	for (size_t i = 0; i < LOG_WRITERS; i++)
		pthread_mutex_destroy(&log->writers[i].lock);
	seal_destroy(log->seal);
	disk_tier_destroy(log->disk);
	images_destroy(&log->images);
	fills_close(&log->fills);
	ram_tier_close(&log->ram);
	segments_close(&log->segments);
	free(log);
}

int log_mark_used(struct log *log, uint64_t slot_idx)
{
	if (slot_is_fill(slot_idx)) {
		if (slot_idx - SLOT_FILL_FIRST >= atomic_load(&log->fills.table->n))
			return -ERANGE;
		atomic_fetch_add(&log->fills.pages, 1);
		return 0;
	}
	return segments_mark(&log->segments, slot_segment(slot_idx), slot_granule(slot_idx));
}

/* Bits of the entry may have flipped. Two segments at one place: the second one is the wrong one, or the
 * first; tags and hashes tell when their pages are read. */
static void check_place(struct log *log, uint32_t segment_idx)
{
	_Atomic uint64_t *place = &log->segments.entries[segment_idx].place;
	enum segment_tier tier = place_tier(atomic_load(place));
	bool is_right = tier == TIER_NONE;

	if (tier == TIER_RAM)
		is_right = !ram_tier_mark(&log->ram, (uint32_t)atomic_load(place));
	if (tier == TIER_DISK && log->disk)
		is_right = !disk_tier_mark(log->disk, (uint32_t)atomic_load(place));
	if (!is_right)
		atomic_store(place, place_of(TIER_LOST, 0));
}

/* The segment may have been open. A bit of used_granules may have flipped: the last record that is marked
 * lies within its own length behind that. */
static void trim(struct log *log, uint32_t segment_idx)
{
	const struct segment_entry *entry = &log->segments.entries[segment_idx];
	uint64_t used_bytes = (uint64_t)atomic_load(&entry->used_granules) << GRANULE_SHIFT;

	ram_tier_trim(&log->ram, (uint32_t)atomic_load(&entry->place), used_bytes + RECORD_BYTES_MAX);
}

/* The table decides: a place that no entry names is free, in RAM and on disk. */
void log_recovered(struct log *log)
{
	for (uint32_t idx = 0; idx < log->segments.known_n; idx++) {
		check_place(log, idx);
		if (place_tier(atomic_load(&log->segments.entries[idx].place)) == TIER_RAM)
			trim(log, idx);
	}
	ram_tier_recovered(&log->ram);
	if (log->disk)
		disk_tier_recovered(log->disk);
	segments_recovered(&log->segments);
	log_thin_later(log);
	while (log_tidy_step(log))
		;
}

/* While a swap-out fills segments, it wants memory for the next ones again and again. */
static void keep_spares(struct log *log, bool keeps)
{
	ram_tier_keep_spares(&log->ram, keeps);
	images_keep(&log->images, keeps);
}

static int open_segment(struct log *log, struct log_writer *writer, bool raw, struct error *err)
{
	bool compacts = writer == &log->writers[LOG_COMPACTOR];
	uint32_t segment_idx;
	int rc;

	if (!compacts)
		keep_spares(log, true);
	rc = compacts ? log_take_target(log, raw, &segment_idx, err) :
			log_take_segment(log, raw, &segment_idx, err);
	if (rc)
		return rc;
	log_memory_of(log, segment_idx, &writer->open[raw].memory); /* it was mapped as it was taken */
	writer->open[raw].is_open = true;
	writer->open[raw].segment_idx = segment_idx;
	writer->open[raw].next_granule = 0;
	return 0;
}

static void seal_writer(struct log *log, struct log_writer *writer, bool raw)
{
	uint32_t place_idx;

	if (!writer->open[raw].is_open)
		return;
	writer->open[raw].is_open = false;
	if (segments_ram_place(&log->segments, writer->open[raw].segment_idx, &place_idx))
		ram_tier_trim(&log->ram, place_idx,
			      (uint64_t)writer->open[raw].next_granule << GRANULE_SHIFT);
	segments_seal(&log->segments, writer->open[raw].segment_idx);
	log_wake_tender(log);
	FAILPOINT_HERE("store.sealed");
}

/* Where the next record goes: there is room for the longest one. */
static int room_for_record(struct log *log, struct log_writer *writer, bool raw, char **at, struct error *err)
{
	if (writer->open[raw].is_open &&
	    writer->open[raw].next_granule + RECORD_GRANULES_MAX > SEGMENT_GRANULES)
		seal_writer(log, writer, raw);
	if (!writer->open[raw].is_open) {
		int rc = open_segment(log, writer, raw, err);

		if (rc)
			return rc;
	}
	*at = writer->open[raw].memory + ((uint64_t)writer->open[raw].next_granule << GRANULE_SHIFT);
	return 0;
}

static uint64_t take_record(struct log *log, struct log_writer *writer, bool raw, size_t bytes)
{
	uint32_t granule = writer->open[raw].next_granule, segment_idx = writer->open[raw].segment_idx;

	segments_add(&log->segments, segment_idx, granule, granules_of(bytes));
	writer->open[raw].next_granule += granules_of(bytes);
	return slot_of_record(segment_idx, granule);
}

/* Pages that do not compress come in long runs: encrypted or compressed data of the guest's own. There LZ4 is
 * run on every fourth page only, until one compresses. */
#define LONG_RUN 32

static bool is_hopeless(const struct log_writer *writer)
{
	return writer->raw_run >= LONG_RUN && writer->raw_run % 4;
}

struct packing {
	bool raw;
	const struct page_to_put *put;
	char *at;
	size_t bytes;
};

static void pack_record(void *argument)
{
	struct packing *it = argument;

	it->bytes = it->raw ? record_pack_raw(it->put->page, it->put->owner, it->at) :
			      record_pack_compressed(it->put->page, it->put->owner, it->at);
}

/* *bytes is 0 if the page does not compress. If memory of the segment is lost, the next record goes into
 * another one. */
static int pack(struct log *log, struct log_writer *writer, bool raw, const struct page_to_put *put,
		size_t *bytes, struct error *err)
{
	struct packing it = { .raw = raw, .put = put };
	int rc = room_for_record(log, writer, raw, &it.at, err);

	if (rc)
		return rc;
	if (!memory_try(pack_record, &it)) {
		seal_writer(log, writer, raw);
		return error_set(err, EIO, "memory of the RAM tier is lost: a hardware error");
	}
	*bytes = it.bytes;
	return 0;
}

/* Pages that do not compress have segments of their own, so that those can go to disk first. */
static int put_record(struct log *log, struct log_writer *writer, struct page_to_put *put, struct error *err)
{
	bool raw = !log->compress || is_hopeless(writer);
	size_t bytes;
	int rc = pack(log, writer, raw, put, &bytes, err);

	if (!rc && !bytes) {
		raw = true;
		rc = pack(log, writer, raw, put, &bytes, err);
	}
	if (rc)
		return rc;
	writer->raw_run = raw ? writer->raw_run + 1 : 0;
	put->slot_idx = take_record(log, writer, raw, bytes);
	return 0;
}

static int put_page(struct log *log, struct log_writer *writer, struct page_to_put *put, struct error *err)
{
	uint64_t word;
	uint32_t fill_idx;

	if (!page_fill_of(put->page, &word) || !fills_put(&log->fills, word, &fill_idx))
		return put_record(log, writer, put, err);
	put->slot_idx = SLOT_FILL_FIRST + fill_idx;
	atomic_fetch_add(&log->fills.pages, 1);
	return 0;
}

size_t log_put(struct log *log, size_t writer_idx, struct page_to_put *pages, size_t n, struct error *err)
{
	struct log_writer *writer = &log->writers[writer_idx % LOG_WRITERS];
	size_t done = 0;

	pthread_mutex_lock(&writer->lock);
	while (done < n && !put_page(log, writer, &pages[done], err))
		done++;
	pthread_mutex_unlock(&writer->lock);
	FAILPOINT_HERE("store.written");
	return done;
}

void log_seal_writer(struct log *log, size_t writer_idx)
{
	struct log_writer *writer = &log->writers[writer_idx];

	pthread_mutex_lock(&writer->lock);
	seal_writer(log, writer, false);
	seal_writer(log, writer, true);
	pthread_mutex_unlock(&writer->lock);
}

void log_seal_open(struct log *log)
{
	keep_spares(log, false);
	for (size_t i = 0; i < LOG_WRITERS; i++)
		log_seal_writer(log, i);
}

static _Noreturn void drop_of_unused(uint64_t slot_idx)
{
	fprintf(stderr, "bug: slot %#llx of the store was dropped but is not in use\n",
		(unsigned long long)slot_idx);
	abort();
}

void log_drop(struct log *log, uint64_t slot_idx)
{
	bool is_work = false;

	if (slot_is_fill(slot_idx)) {
		if (!atomic_load(&log->fills.pages))
			drop_of_unused(slot_idx);
		atomic_fetch_sub(&log->fills.pages, 1);
	} else if (!segments_drop(&log->segments, slot_segment(slot_idx), slot_granule(slot_idx), &is_work)) {
		drop_of_unused(slot_idx);
	}
	if (is_work) {
		log_thin_later(log);
		log_wake_tender(log);
	}
}

int log_memory_of(struct log *log, uint32_t segment_idx, char **memory)
{
	uint32_t place_idx;

	if (!segments_ram_place(&log->segments, segment_idx, &place_idx))
		return -EIO;
	*memory = ram_tier_at(&log->ram, place_idx);
	return *memory ? 0 : -ENOMEM;
}

static void release_place(struct log *log, uint32_t place_idx)
{
	ram_tier_release(&log->ram, place_idx);
	segments_ram_is_gone(&log->segments);
}

void log_release_memory(struct log *log, uint32_t segment_idx)
{
	uint32_t place_idx;

	if (segments_take_ram(&log->segments, segment_idx, &place_idx))
		release_place(log, place_idx);
}

/* Clear the entry first: the place's next owner is the one that a successor should find. */
static void give_back(struct log *log, uint32_t segment_idx)
{
	uint64_t place = atomic_load(&log->segments.entries[segment_idx].place);
	uint32_t ram_place_idx;
	bool has_memory = segments_take_ram(&log->segments, segment_idx, &ram_place_idx);

	segments_free(&log->segments, segment_idx);
	FAILPOINT_HERE("store.freed");
	if (has_memory)
		release_place(log, ram_place_idx);
	if (place_tier(place) == TIER_DISK && log->disk)
		disk_tier_drop(log->disk, (uint32_t)place);
}

bool log_tidy_step(struct log *log)
{
	uint32_t segment_idx;

	if (segments_take_stale(&log->segments, &segment_idx)) {
		log_release_memory(log, segment_idx);
		segments_unclaim(&log->segments, segment_idx);
		return true;
	}
	if (!segments_take_empty(&log->segments, &segment_idx))
		return false;
	give_back(log, segment_idx);
	return true;
}

void log_account(struct log *log, struct log_account *out)
{
	*out = (struct log_account){
		.ram_bytes = ram_tier_bytes(&log->ram),
		.disk_bytes = log->disk ? disk_tier_bytes(log->disk) : 0,
		.record_bytes = atomic_load(&log->segments.live_granules) << GRANULE_SHIFT,
		.records = atomic_load(&log->segments.live_n),
		.raw_records = atomic_load(&log->segments.raw_n),
		.fill_pages = atomic_load(&log->fills.pages),
	};
}
