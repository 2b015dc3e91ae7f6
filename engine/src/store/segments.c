/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "store/segments_inside.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#ifndef MADV_DONTNEED_LOCKED /* Linux 5.18 */
#define MADV_DONTNEED_LOCKED 24
#endif

#define SPARSE_GRANULES (SEGMENT_GRANULES / 2)

static uint32_t now_s(void)
{
	struct timespec now;

	clock_gettime(CLOCK_BOOTTIME, &now);
	return (uint32_t)now.tv_sec;
}

/* Compressed pages are never packed beside others. */
static bool is_raw(const struct segments *segments, uint32_t segment_idx)
{
	return atomic_load(&segments->entries[segment_idx].pages) != PAGES_COMPRESSED;
}

void segments_count_live(struct segments *segments, uint32_t segment_idx, uint32_t granules)
{
	struct segment *own = own_of(segments, segment_idx);

	atomic_fetch_add(&own->live_n, 1);
	atomic_fetch_add(&own->live_granules, granules);
	atomic_fetch_add(&segments->live_n, 1);
	atomic_fetch_add(&segments->live_granules, granules);
	if (is_raw(segments, segment_idx))
		atomic_fetch_add(&segments->raw_n, 1);
}

/* The first bit set at or after `bit`; SEGMENT_GRANULES if there is none. */
static uint32_t next_bit(const _Atomic uint64_t *bits, uint32_t bit)
{
	for (uint32_t word = bit / 64; word < SEGMENT_BIT_WORDS; word++) {
		uint64_t set = atomic_load_explicit(&bits[word], memory_order_acquire);

		if (word == bit / 64)
			set &= ~(uint64_t)0 << bit % 64;
		if (set)
			return word * 64 + (uint32_t)__builtin_ctzll(set);
	}
	return SEGMENT_GRANULES;
}

/* The end of what is written is read first: a record that is added meanwhile either lies behind it, or its
 * start is seen. */
uint32_t segments_extent(const struct segments *segments, uint32_t segment_idx, uint32_t granule)
{
	uint32_t used = atomic_load(&segments->entries[segment_idx].used_granules);
	uint32_t next = is_raw(segments, segment_idx) ?
				granule + SEGMENT_RAW_GRANULES :
				next_bit(bits_of(segments, segment_idx)->starts, granule + 1);

	if (next > used)
		next = used;
	return next > granule ? next - granule : 0;
}

bool segments_next_live(const struct segments *segments, uint32_t segment_idx, uint32_t *granule)
{
	*granule = next_bit(bits_of(segments, segment_idx)->live, *granule);
	return *granule < SEGMENT_GRANULES;
}

/* Under the lock. */
static bool find_free(struct segments *segments, uint32_t *segment_idx)
{
	uint32_t idx = segments->free_from_idx;

	while (idx < segments->known_n && own_of(segments, idx)->state != SEGMENT_FREE)
		idx++;
	segments->free_from_idx = *segment_idx = idx;
	return idx < SEGMENTS_MAX;
}

int segments_take(struct segments *segments, enum segment_pages pages, uint32_t *segment_idx)
{
	struct segment_entry *entry;
	int rc = 0;

	pthread_mutex_lock(&segments->lock);
	if (!find_free(segments, segment_idx))
		rc = -EFBIG;
	if (!rc)
		rc = segments_make_room(segments, *segment_idx);
	if (!rc) {
		entry = &segments->entries[*segment_idx];
		own_of(segments, *segment_idx)->state = SEGMENT_OPEN;
		atomic_store(&entry->used_granules, 0);
		atomic_store(&entry->born_s, now_s());
		atomic_store(&entry->pages, pages);
		if (*segment_idx >= segments->known_n) {
			segments->known_n = *segment_idx + 1;
			atomic_store(&segments->table->known_n, segments->known_n);
		}
	}
	pthread_mutex_unlock(&segments->lock);
	return rc;
}

void segments_now_in_ram(struct segments *segments, uint32_t segment_idx, uint32_t place_idx)
{
	atomic_store(&own_of(segments, segment_idx)->ram_place_n, place_idx + 1);
	atomic_store(&segments->entries[segment_idx].place, place_of(TIER_RAM, place_idx));
	atomic_fetch_add(&segments->ram_n, 1);
}

bool segments_ram_place(const struct segments *segments, uint32_t segment_idx, uint32_t *place_idx)
{
	uint32_t place_n = atomic_load(&own_of(segments, segment_idx)->ram_place_n);

	*place_idx = place_n - 1;
	return place_n;
}

/* The monitor's memory is locked, and there MADV_DONTNEED does nothing but return EINVAL. */
static void forget_bits(struct segment_bits *bits)
{
	if (madvise(bits, sizeof *bits, MADV_DONTNEED_LOCKED))
		memset(bits, 0, sizeof *bits);
}

/* Under the lock. */
static void now_free(struct segments *segments, uint32_t segment_idx)
{
	atomic_store(&segments->entries[segment_idx].place, place_of(TIER_NONE, 0));
	forget_bits(bits_of(segments, segment_idx));
	own_of(segments, segment_idx)->stuck_n = 0;
	own_of(segments, segment_idx)->disk_place_n = 0;
	atomic_store(&own_of(segments, segment_idx)->kept_granules, 0);
	own_of(segments, segment_idx)->state = SEGMENT_FREE;
	if (segment_idx < segments->free_from_idx)
		segments->free_from_idx = segment_idx;
}

void segments_put_back(struct segments *segments, uint32_t segment_idx)
{
	pthread_mutex_lock(&segments->lock);
	now_free(segments, segment_idx);
	pthread_mutex_unlock(&segments->lock);
}

void segments_add(struct segments *segments, uint32_t segment_idx, uint32_t granule, uint32_t granules)
{
	struct segment_bits *bits = bits_of(segments, segment_idx);

	if (!is_raw(segments, segment_idx))
		atomic_fetch_or(&bits->starts[granule / 64], (uint64_t)1 << granule % 64);
	atomic_fetch_or(&bits->live[granule / 64], (uint64_t)1 << granule % 64);
	segments_count_live(segments, segment_idx, granules);
	atomic_store_explicit(&segments->entries[segment_idx].used_granules, granule + granules,
			      memory_order_release);
}

/* Under the lock: SEALED, or EMPTY. */
static void settle(struct segments *segments, uint32_t segment_idx)
{
	struct segment *own = own_of(segments, segment_idx);

	own->state = SEGMENT_SEALED;
	if (atomic_load(&own->live_n))
		return;
	own->state = SEGMENT_EMPTY;
	segments->empty_n++;
}

void segments_seal(struct segments *segments, uint32_t segment_idx)
{
	pthread_mutex_lock(&segments->lock);
	settle(segments, segment_idx);
	pthread_mutex_unlock(&segments->lock);
}

void segments_unclaim(struct segments *segments, uint32_t segment_idx)
{
	segments_seal(segments, segment_idx);
}

/* The last record in use was dropped. If the segment is OPEN or MOVING, its holder checks for this when it
 * releases the segment. */
static bool now_empty(struct segments *segments, uint32_t segment_idx)
{
	struct segment *own = own_of(segments, segment_idx);
	bool emptied;

	pthread_mutex_lock(&segments->lock);
	emptied = own->state == SEGMENT_SEALED && !atomic_load(&own->live_n);
	if (emptied) {
		own->state = SEGMENT_EMPTY;
		segments->empty_n++;
	}
	pthread_mutex_unlock(&segments->lock);
	return emptied;
}

bool segments_drop(struct segments *segments, uint32_t segment_idx, uint32_t granule, bool *is_work)
{
	uint64_t bit = (uint64_t)1 << granule % 64;
	struct segment *own;
	uint32_t granules, before, kept;

	*is_work = false;
	if (segment_idx >= SEGMENTS_MAX || !segments->pieces[segment_idx / SEGMENTS_IN_PIECE])
		return false;
	own = own_of(segments, segment_idx);
	granules = segments_extent(segments, segment_idx, granule);
	if (!(atomic_fetch_and(&bits_of(segments, segment_idx)->live[granule / 64], ~bit) & bit))
		return false;
	atomic_fetch_sub(&segments->live_n, 1);
	atomic_fetch_sub(&segments->live_granules, granules);
	if (is_raw(segments, segment_idx))
		atomic_fetch_sub(&segments->raw_n, 1);
	before = atomic_fetch_sub(&own->live_granules, granules);
	kept = atomic_load(&own->kept_granules);
	*is_work = before >= SPARSE_GRANULES && before - granules < SPARSE_GRANULES;
	*is_work |= kept && before >= kept / 2 && before - granules < kept / 2;
	if (atomic_fetch_sub(&own->live_n, 1) == 1)
		*is_work = now_empty(segments, segment_idx);
	return true;
}

static bool is_in_ram(const struct segments *segments, uint32_t segment_idx)
{
	return place_tier(atomic_load(&segments->entries[segment_idx].place)) == TIER_RAM;
}

/* Under the lock. */
static bool is_sealed_in_ram(struct segments *segments, uint32_t segment_idx)
{
	return own_of(segments, segment_idx)->state == SEGMENT_SEALED && is_in_ram(segments, segment_idx);
}

/* Pages that do not compress gain nothing by staying in RAM: they rank as older than all others. */
static uint64_t age_rank(const struct segment_entry *entry)
{
	return atomic_load(&entry->pages) == PAGES_INCOMPRESSIBLE ? 0 :
								    1 + (uint64_t)atomic_load(&entry->born_s);
}

bool segments_claim_oldest(struct segments *segments, uint32_t born_before_s, uint32_t *segment_idx)
{
	uint64_t oldest = UINT64_MAX;

	pthread_mutex_lock(&segments->lock);
	for (uint32_t idx = 0; idx < segments->known_n; idx++) {
		uint64_t rank = age_rank(&segments->entries[idx]);

		if (rank < oldest && rank <= 1 + (uint64_t)born_before_s && is_sealed_in_ram(segments, idx)) {
			oldest = rank;
			*segment_idx = idx;
		}
	}
	if (oldest != UINT64_MAX)
		own_of(segments, *segment_idx)->state = SEGMENT_MOVING;
	pthread_mutex_unlock(&segments->lock);
	return oldest != UINT64_MAX;
}

bool segments_oldest_s(struct segments *segments, uint32_t *born_s)
{
	uint64_t oldest = UINT64_MAX;

	pthread_mutex_lock(&segments->lock);
	for (uint32_t idx = 0; idx < segments->known_n; idx++) {
		uint64_t rank = age_rank(&segments->entries[idx]);

		if (rank < oldest && is_sealed_in_ram(segments, idx))
			oldest = rank;
	}
	pthread_mutex_unlock(&segments->lock);
	if (oldest == UINT64_MAX)
		return false;
	*born_s = oldest ? (uint32_t)(oldest - 1) : 0;
	return true;
}

static bool is_sparse(struct segments *segments, uint32_t segment_idx)
{
	const struct segment *own = own_of(segments, segment_idx);

	return is_sealed_in_ram(segments, segment_idx) &&
	       atomic_load(&own->live_granules) < SPARSE_GRANULES &&
	       atomic_load(&own->live_n) != own->stuck_n;
}

/* Without this a small segment would be copied again and again, each time into another small one. */
static bool gains(struct segments *segments, uint32_t segment_idx, const size_t targets_n[2])
{
	return targets_n[is_raw(segments, segment_idx)] > 1 ||
	       atomic_load(&own_of(segments, segment_idx)->live_granules) <
		       atomic_load(&segments->entries[segment_idx].used_granules) / 2;
}

bool segments_claim_sparse(struct segments *segments, uint32_t from_idx, const bool has_target[2],
			   uint32_t *segment_idx)
{
	size_t targets_n[2] = { has_target[0], has_target[1] };
	bool found = false;

	pthread_mutex_lock(&segments->lock);
	for (uint32_t idx = 0; idx < segments->known_n; idx++)
		if (is_sparse(segments, idx))
			targets_n[is_raw(segments, idx)]++;
	for (uint32_t idx = from_idx; idx < segments->known_n && !found; idx++) {
		found = is_sparse(segments, idx) && gains(segments, idx, targets_n);
		*segment_idx = idx;
	}
	if (found)
		own_of(segments, *segment_idx)->state = SEGMENT_MOVING;
	pthread_mutex_unlock(&segments->lock);
	return found;
}

void segments_stuck(struct segments *segments, uint32_t segment_idx)
{
	struct segment *own = own_of(segments, segment_idx);

	pthread_mutex_lock(&segments->lock);
	own->stuck_n = atomic_load(&own->live_n);
	pthread_mutex_unlock(&segments->lock);
}

void segments_inherit_age(struct segments *segments, uint32_t to_idx, uint32_t from_idx)
{
	uint32_t born_s = atomic_load(&segments->entries[from_idx].born_s);

	if (born_s < atomic_load(&segments->entries[to_idx].born_s))
		atomic_store(&segments->entries[to_idx].born_s, born_s);
}

bool segments_has_leftovers(struct segments *segments)
{
	bool found;

	pthread_mutex_lock(&segments->lock);
	found = segments->empty_n;
	for (uint32_t idx = 0; idx < segments->known_n && !found; idx++)
		found = atomic_load(&own_of(segments, idx)->stale_ram);
	pthread_mutex_unlock(&segments->lock);
	return found;
}

void segments_now_on_disk(struct segments *segments, uint32_t segment_idx, uint32_t place_idx,
			  uint64_t serial, uint32_t image_granules)
{
	struct segment_entry *entry = &segments->entries[segment_idx];
	struct segment *own = own_of(segments, segment_idx);

	atomic_store(&entry->serial, serial);
	atomic_store(&entry->place,
		     place_of(TIER_DISK, place_idx)); /* sequentially consistent: see segments_enter() */
	pthread_mutex_lock(&segments->lock);
	own->disk_place_n = place_idx + 1;
	atomic_store(&own->kept_granules, image_granules);
	pthread_mutex_unlock(&segments->lock);
}

/* A reader counts itself in, then reads the place; the mover sets the place, then looks for readers. So at
 * least one of the two sees the other. */
uint64_t segments_enter(struct segments *segments, uint32_t segment_idx)
{
	atomic_fetch_add(&own_of(segments, segment_idx)->readers, 1);
	return atomic_load(&segments->entries[segment_idx].place);
}

void segments_leave(struct segments *segments, uint32_t segment_idx)
{
	atomic_fetch_sub(&own_of(segments, segment_idx)->readers, 1);
}

bool segments_leave_ram(struct segments *segments, uint32_t segment_idx)
{
	struct segment *own = own_of(segments, segment_idx);

	atomic_store(&own->stale_ram, true);
	return !atomic_load(&own->readers) && atomic_exchange(&own->stale_ram, false);
}

/* It is claimed until its memory is gone: else it could be emptied, freed and taken by a writer meanwhile,
 * whose records would be released. Of an EMPTY one, whoever frees it releases the memory. */
bool segments_take_stale(struct segments *segments, uint32_t *segment_idx)
{
	bool found = false;

	pthread_mutex_lock(&segments->lock);
	for (uint32_t idx = 0; idx < segments->known_n && !found; idx++) {
		struct segment *own = own_of(segments, idx);

		found = own->state == SEGMENT_SEALED && atomic_load(&own->stale_ram) &&
			!atomic_load(&own->readers) && atomic_exchange(&own->stale_ram, false);
		if (found)
			own->state = SEGMENT_MOVING;
		*segment_idx = idx;
	}
	pthread_mutex_unlock(&segments->lock);
	return found;
}

bool segments_take_ram(struct segments *segments, uint32_t segment_idx, uint32_t *place_idx)
{
	struct segment *own = own_of(segments, segment_idx);
	uint32_t place_n = atomic_exchange(&own->ram_place_n, 0);

	atomic_store(&own->stale_ram, false);
	*place_idx = place_n - 1;
	return place_n;
}

void segments_ram_is_gone(struct segments *segments)
{
	atomic_fetch_sub(&segments->ram_n, 1);
}

/* A thread with a stale name of a record here may still be reading: the memory stays until it has left. */
bool segments_take_empty(struct segments *segments, uint32_t *segment_idx)
{
	bool found = false;

	pthread_mutex_lock(&segments->lock);
	for (uint32_t idx = 0; idx < segments->known_n && segments->empty_n && !found; idx++) {
		struct segment *own = own_of(segments, idx);

		if (own->state == SEGMENT_EMPTY && !atomic_load(&own->readers)) {
			own->state = SEGMENT_MOVING;
			segments->empty_n--;
			*segment_idx = idx;
			found = true;
		}
	}
	pthread_mutex_unlock(&segments->lock);
	return found;
}

void segments_free(struct segments *segments, uint32_t segment_idx)
{
	pthread_mutex_lock(&segments->lock);
	now_free(segments, segment_idx);
	pthread_mutex_unlock(&segments->lock);
}
