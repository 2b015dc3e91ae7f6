/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "store/segments.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/units.h"

static const char magic[8] = "vmmsseg1";

struct segments_table {
	char magic[8];
	_Atomic uint32_t known_n;
	uint32_t reserved[13];
	struct fills_table fills;
	struct segment_entry entries[];
};

struct segment_piece {
	struct segment_bits bits[SEGMENTS_IN_PIECE]; /* first: page aligned */
	struct segment own[SEGMENTS_IN_PIECE];
};

#define TABLE_BYTES (sizeof(struct segments_table) + SEGMENTS_MAX * sizeof(struct segment_entry))

static uint32_t now_s(void)
{
	struct timespec now;

	clock_gettime(CLOCK_BOOTTIME, &now);
	return (uint32_t)now.tv_sec;
}

static int map_table(struct segments *segments, bool is_new, struct error *err)
{
	struct stat st;

	if (is_new && ftruncate(segments->fd, (off_t)TABLE_BYTES))
		return error_set(err, errno, "cannot size the segment table: %s", strerror(errno));
	if (fstat(segments->fd, &st) || (uint64_t)st.st_size != TABLE_BYTES)
		return error_set(err, EPROTO, "the file given as segment table is not one");
	segments->table = mmap(NULL, TABLE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, segments->fd, 0);
	if (segments->table == MAP_FAILED) {
		segments->table = NULL;
		return error_set(err, ENOMEM, "cannot map the segment table: %s", strerror(errno));
	}
	if (is_new)
		memcpy(segments->table->magic, magic, sizeof magic);
	else if (memcmp(segments->table->magic, magic, sizeof magic))
		return error_set(err, EPROTO, "the segment table is of another version of vmmswap");
	segments->entries = segments->table->entries;
	segments->fills = &segments->table->fills;
	return 0;
}

static struct segment *own_of(const struct segments *segments, uint32_t segment_idx)
{
	return &segments->pieces[segment_idx / SEGMENTS_IN_PIECE]->own[segment_idx % SEGMENTS_IN_PIECE];
}

static struct segment_bits *bits_of(const struct segments *segments, uint32_t segment_idx)
{
	return &segments->pieces[segment_idx / SEGMENTS_IN_PIECE]->bits[segment_idx % SEGMENTS_IN_PIECE];
}

/* Under the lock, or alone. */
static int make_room(struct segments *segments, uint32_t segment_idx)
{
	size_t piece = segment_idx / SEGMENTS_IN_PIECE;
	void *at;

	if (segments->pieces[piece])
		return 0;
	at = mmap(NULL, sizeof(struct segment_piece), PROT_READ | PROT_WRITE,
		  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (at == MAP_FAILED)
		return -ENOMEM;
	segments->pieces[piece] = at;
	return 0;
}

int segments_open(struct segments *segments, int fd, struct error *err)
{
	int rc;

	segments->fd = fd < 0 ? memfd_create("vmmswap-segments", MFD_CLOEXEC) : fcntl(fd, F_DUPFD_CLOEXEC, 3);
	if (segments->fd < 0)
		return error_set(err, errno, "cannot make a memfd for the segment table: %s",
				 strerror(errno));
	pthread_mutex_init(&segments->lock, NULL);
	rc = map_table(segments, fd < 0, err);
	if (!rc)
		segments->known_n = atomic_load(&segments->table->known_n);
	if (!rc && segments->known_n > SEGMENTS_MAX)
		rc = error_set(err, EPROTO, "the segment table is damaged: it says that it has %u segments",
			       segments->known_n);
	for (uint32_t idx = 0; !rc && idx < segments->known_n; idx++)
		if (make_room(segments, idx))
			rc = error_set(err, ENOMEM, "no memory for %u segments", segments->known_n);
	if (rc)
		segments_close(segments);
	return rc;
}

void segments_close(struct segments *segments)
{
	for (size_t i = 0; i < SEGMENT_PIECES; i++)
		if (segments->pieces[i])
			munmap(segments->pieces[i], sizeof(struct segment_piece));
	if (segments->table)
		munmap(segments->table, TABLE_BYTES);
	pthread_mutex_destroy(&segments->lock);
	close(segments->fd);
}

static bool test_bit(const _Atomic uint64_t *bits, uint32_t bit)
{
	return atomic_load_explicit(&bits[bit / 64], memory_order_acquire) >> bit % 64 & 1;
}

/* The first bit that is set at or after `bit`; SEGMENT_GRANULES if there is none. */
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

uint32_t segments_extent(const struct segments *segments, uint32_t segment_idx, uint32_t granule)
{
	uint32_t next = next_bit(bits_of(segments, segment_idx)->starts, granule + 1);
	uint32_t used = atomic_load(&segments->entries[segment_idx].used_granules);

	if (next > used)
		next = used;
	return next > granule ? next - granule : 0;
}

bool segments_next_live(const struct segments *segments, uint32_t segment_idx, uint32_t *granule)
{
	*granule = next_bit(bits_of(segments, segment_idx)->live, *granule);
	return *granule < SEGMENT_GRANULES;
}

static void count_live(struct segments *segments, uint32_t segment_idx, uint32_t granules)
{
	struct segment *own = own_of(segments, segment_idx);

	atomic_fetch_add(&own->live_n, 1);
	atomic_fetch_add(&own->live_granules, granules);
	atomic_fetch_add(&segments->live_n, 1);
	atomic_fetch_add(&segments->live_granules, granules);
	if (atomic_load(&segments->entries[segment_idx].raw))
		atomic_fetch_add(&segments->raw_n, 1);
}

int segments_mark(struct segments *segments, uint32_t segment_idx, uint32_t granule)
{
	struct segment_bits *bits;

	if (segment_idx >= segments->known_n ||
	    place_tier(atomic_load(&segments->entries[segment_idx].place)) == TIER_NONE ||
	    granule >= atomic_load(&segments->entries[segment_idx].used_granules))
		return -ERANGE;
	bits = bits_of(segments, segment_idx);
	if (test_bit(bits->live, granule))
		return -EEXIST;
	bits->starts[granule / 64] |= (uint64_t)1 << granule % 64;
	bits->live[granule / 64] |= (uint64_t)1 << granule % 64;
	return 0;
}

/* Lengths follow from where the next record in use begins: what was dropped before we came counts for the one before it. */
static void count_segment(struct segments *segments, uint32_t segment_idx)
{
	for (uint32_t granule = 0; segments_next_live(segments, segment_idx, &granule); granule++)
		count_live(segments, segment_idx, segments_extent(segments, segment_idx, granule));
}

void segments_recovered(struct segments *segments)
{
	for (uint32_t idx = 0; idx < segments->known_n; idx++) {
		struct segment *own = own_of(segments, idx);
		enum segment_tier tier = place_tier(atomic_load(&segments->entries[idx].place));

		if (tier == TIER_NONE)
			continue;
		count_segment(segments, idx);
		segments->ram_n += tier == TIER_RAM;
		own->state = own->live_n ? SEGMENT_SEALED : SEGMENT_EMPTY;
		segments->empty_n += own->state == SEGMENT_EMPTY;
	}
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

int segments_take(struct segments *segments, bool raw, uint32_t *segment_idx)
{
	struct segment_entry *entry;
	int rc = 0;

	pthread_mutex_lock(&segments->lock);
	if (!find_free(segments, segment_idx))
		rc = -EFBIG;
	if (!rc)
		rc = make_room(segments, *segment_idx);
	if (!rc) {
		entry = &segments->entries[*segment_idx];
		own_of(segments, *segment_idx)->state = SEGMENT_OPEN;
		atomic_store(&entry->used_granules, 0);
		atomic_store(&entry->born_s, now_s());
		atomic_store(&entry->raw, raw);
		if (*segment_idx >= segments->known_n) {
			segments->known_n = *segment_idx + 1;
			atomic_store(&segments->table->known_n, segments->known_n);
		}
	}
	pthread_mutex_unlock(&segments->lock);
	return rc;
}

void segments_now_in_ram(struct segments *segments, uint32_t segment_idx)
{
	atomic_store(&segments->entries[segment_idx].place, place_of(TIER_RAM, 0));
	atomic_fetch_add(&segments->ram_n, 1);
}

/* Under the lock. */
static void now_free(struct segments *segments, uint32_t segment_idx)
{
	atomic_store(&segments->entries[segment_idx].place, place_of(TIER_NONE, 0));
	madvise(bits_of(segments, segment_idx), sizeof(struct segment_bits), MADV_DONTNEED);
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

	atomic_fetch_or(&bits->starts[granule / 64], (uint64_t)1 << granule % 64);
	atomic_fetch_or(&bits->live[granule / 64], (uint64_t)1 << granule % 64);
	count_live(segments, segment_idx, granules);
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

/* The last record in use is gone. Whoever has the segment OPEN or MOVING looks when it lets it go. */
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

bool segments_drop(struct segments *segments, uint32_t segment_idx, uint32_t granule, bool *emptied)
{
	uint64_t bit = (uint64_t)1 << granule % 64;
	struct segment *own;
	uint32_t granules;

	*emptied = false;
	if (segment_idx >= SEGMENTS_MAX || !segments->pieces[segment_idx / SEGMENTS_IN_PIECE])
		return false;
	own = own_of(segments, segment_idx);
	granules = segments_extent(segments, segment_idx, granule);
	if (!(atomic_fetch_and(&bits_of(segments, segment_idx)->live[granule / 64], ~bit) & bit))
		return false;
	atomic_fetch_sub(&segments->live_n, 1);
	atomic_fetch_sub(&segments->live_granules, granules);
	if (atomic_load(&segments->entries[segment_idx].raw))
		atomic_fetch_sub(&segments->raw_n, 1);
	atomic_fetch_sub(&own->live_granules, granules);
	if (atomic_fetch_sub(&own->live_n, 1) == 1)
		*emptied = now_empty(segments, segment_idx);
	return true;
}

static bool is_in_ram(const struct segments *segments, uint32_t segment_idx)
{
	return place_tier(atomic_load(&segments->entries[segment_idx].place)) == TIER_RAM;
}

/* Pages that do not compress gain nothing by staying: older than all others. */
static uint64_t age_rank(const struct segment_entry *entry)
{
	return atomic_load(&entry->raw) ? 0 : 1 + (uint64_t)atomic_load(&entry->born_s);
}

bool segments_claim_oldest(struct segments *segments, uint32_t born_before_s, uint32_t *segment_idx)
{
	uint64_t oldest = UINT64_MAX;

	pthread_mutex_lock(&segments->lock);
	for (uint32_t idx = 0; idx < segments->known_n; idx++) {
		uint64_t rank = age_rank(&segments->entries[idx]);

		if (rank < oldest && rank <= 1 + (uint64_t)born_before_s &&
		    own_of(segments, idx)->state == SEGMENT_SEALED && is_in_ram(segments, idx)) {
			oldest = rank;
			*segment_idx = idx;
		}
	}
	if (oldest != UINT64_MAX)
		own_of(segments, *segment_idx)->state = SEGMENT_MOVING;
	pthread_mutex_unlock(&segments->lock);
	return oldest != UINT64_MAX;
}

bool segments_claim_sparsest(struct segments *segments, uint32_t below_granules, uint32_t *segment_idx)
{
	uint32_t least = below_granules;

	pthread_mutex_lock(&segments->lock);
	for (uint32_t idx = 0; idx < segments->known_n; idx++) {
		struct segment *own = own_of(segments, idx);

		if (own->state == SEGMENT_SEALED && is_in_ram(segments, idx) &&
		    atomic_load(&own->live_granules) < least) {
			least = atomic_load(&own->live_granules);
			*segment_idx = idx;
		}
	}
	if (least < below_granules)
		own_of(segments, *segment_idx)->state = SEGMENT_MOVING;
	pthread_mutex_unlock(&segments->lock);
	return least < below_granules;
}

void segments_now_on_disk(struct segments *segments, uint32_t segment_idx, uint32_t place_idx,
			  uint64_t serial)
{
	struct segment_entry *entry = &segments->entries[segment_idx];

	atomic_store(&entry->serial, serial);
	atomic_store(&entry->place,
		     place_of(TIER_DISK, place_idx)); /* sequentially consistent: see segments_enter() */
}

/* Two orders that must not both be lost: we count ourselves in, then look where it is; who moved it says where it is, then looks
 * for readers. */
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

bool segments_take_stale(struct segments *segments, uint32_t *segment_idx)
{
	for (uint32_t idx = 0; idx < segments->known_n; idx++) {
		struct segment *own = own_of(segments, idx);

		if (!atomic_load(&own->stale_ram) || atomic_load(&own->readers) ||
		    !atomic_exchange(&own->stale_ram, false))
			continue;
		*segment_idx = idx;
		return true;
	}
	return false;
}

bool segments_clear_stale(struct segments *segments, uint32_t segment_idx)
{
	return atomic_exchange(&own_of(segments, segment_idx)->stale_ram, false);
}

void segments_ram_is_gone(struct segments *segments)
{
	atomic_fetch_sub(&segments->ram_n, 1);
}

/* Who holds a stale name of a record here may still read: the memory stays until they have left. */
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
