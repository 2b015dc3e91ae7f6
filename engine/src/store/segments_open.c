/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Opens the segments: a new table, or that of a predecessor with what its page map says. */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "store/segments_inside.h"

static const char magic[8] = "vmmsseg2";
static const char magic_of_1[8] = "vmmsseg1"; /* where the segment's own number was its place in RAM */

#define TABLE_BYTES (sizeof(struct segments_table) + SEGMENTS_MAX * sizeof(struct segment_entry))

/* Whoever dies in the middle of this leaves a table that can be upgraded again. */
static void upgrade(struct segments_table *table)
{
	for (uint32_t idx = 0; idx < atomic_load(&table->known_n) && idx < SEGMENTS_MAX; idx++)
		if (place_tier(atomic_load(&table->entries[idx].place)) == TIER_RAM)
			atomic_store(&table->entries[idx].place, place_of(TIER_RAM, idx));
	memcpy(table->magic, magic, sizeof magic);
}

static int map_table(struct segments *segments, bool is_new, struct error *err)
{
	struct stat st;

	if (is_new && ftruncate(segments->fd, (off_t)TABLE_BYTES))
		return error_set(err, errno, "cannot size the segment table: %s", strerror(errno));
	if (fstat(segments->fd, &st) || (uint64_t)st.st_size != TABLE_BYTES)
		return error_set(err, EPROTO, "the file given as segment table is not a segment table");
	segments->table = mmap(NULL, TABLE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, segments->fd, 0);
	if (segments->table == MAP_FAILED) {
		segments->table = NULL;
		return error_set(err, ENOMEM, "cannot map the segment table: %s", strerror(errno));
	}
	if (is_new)
		memcpy(segments->table->magic, magic, sizeof magic);
	else if (!memcmp(segments->table->magic, magic_of_1, sizeof magic))
		upgrade(segments->table);
	else if (memcmp(segments->table->magic, magic, sizeof magic))
		return error_set(err, EPROTO, "the segment table is of another version of vmmswap");
	segments->entries = segments->table->entries;
	segments->fills = &segments->table->fills;
	return 0;
}

int segments_make_room(struct segments *segments, uint32_t segment_idx)
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
		if (segments_make_room(segments, idx))
			rc = error_set(err, ENOMEM, "no memory for %u segments", segments->known_n);
	if (rc)
		segments_close(segments);
	return rc;
}

void segments_note_tiers(struct segments *segments, uint32_t tiers)
{
	atomic_store(&segments->table->tiers, tiers);
}

uint32_t segments_tiers(const struct segments *segments)
{
	return atomic_load(&segments->table->tiers);
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
	if (atomic_load(&segments->entries[segment_idx].pages) == PAGES_COMPRESSED)
		bits->starts[granule / 64] |= (uint64_t)1 << granule % 64;
	bits->live[granule / 64] |= (uint64_t)1 << granule % 64;
	return 0;
}

/* A record's length follows from where the next record in use begins: records dropped before we started count
 * towards the one before them. */
static void count_segment(struct segments *segments, uint32_t segment_idx)
{
	for (uint32_t granule = 0; segments_next_live(segments, segment_idx, &granule); granule++)
		segments_count_live(segments, segment_idx, segments_extent(segments, segment_idx, granule));
}

void segments_recovered(struct segments *segments)
{
	for (uint32_t idx = 0; idx < segments->known_n; idx++) {
		struct segment *own = own_of(segments, idx);
		enum segment_tier tier = place_tier(atomic_load(&segments->entries[idx].place));

		if (tier == TIER_NONE)
			continue;
		count_segment(segments, idx);
		if (tier == TIER_RAM) {
			own->ram_place_n = 1 + (uint32_t)segments->entries[idx].place;
			segments->ram_n++;
		} else if (tier == TIER_DISK) {
			own->disk_place_n = 1 + (uint32_t)segments->entries[idx].place;
			own->kept_granules = 3 * SEGMENT_GRANULES; /* nobody knows: look at it once */
		}
		own->state = own->live_n ? SEGMENT_SEALED : SEGMENT_EMPTY;
		segments->empty_n += own->state == SEGMENT_EMPTY;
	}
}
