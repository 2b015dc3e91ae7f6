/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "store/disk_tier.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "base/failpoint.h"
#include "base/held.h"
#include "store/page_read.h"
#include "store/swap_file.h"

struct disk_tier {
	struct swap_file file;

	pthread_mutex_t lock; /* of the places */
	uint64_t *taken;      /* one bit per place */
	uint16_t *given;      /* blocks of each place that were given back */
	uint64_t given_blocks;
	uint32_t places_room;
	_Atomic uint32_t places_n;
	uint64_t file_bytes; /* its size */

	atomic_bool cannot_punch;
};

static int make_tier(struct swap_file file, struct disk_tier **out, struct error *err)
{
	struct disk_tier *disk = calloc(1, sizeof *disk);
	struct stat st;

	if (!disk || fstat(file.fd, &st)) {
		int code = disk ? errno : ENOMEM;

		free(disk);
		swap_file_close(&file);
		return error_set(err, code, "cannot open the disk tier: %s", strerror(code));
	}
	disk->file = file;
	disk->file_bytes = (uint64_t)st.st_size;
	pthread_mutex_init(&disk->lock, NULL);
	*out = disk;
	return 0;
}

int disk_tier_create(const char *dir, struct disk_tier **out, struct error *err)
{
	struct swap_file file;
	int rc = swap_file_create(dir, &file, err);

	return rc ? rc : make_tier(file, out, err);
}

/* Under the lock, or with no other thread. */
static int make_room(struct disk_tier *disk, uint32_t places)
{
	uint32_t room = disk->places_room ? disk->places_room : 64;
	uint64_t *taken;
	uint16_t *given;

	while (room < places)
		room *= 2;
	if (room == disk->places_room)
		return 0;
	given = realloc(disk->given, room * sizeof *given);
	if (!given)
		return -ENOMEM;
	memset(given + disk->places_room, 0, (room - disk->places_room) * sizeof *given);
	disk->given = given;
	taken = realloc(disk->taken, room / 8);
	if (!taken)
		return -ENOMEM;
	memset((char *)taken + disk->places_room / 8, 0, (room - disk->places_room) / 8);
	disk->taken = taken;
	disk->places_room = room;
	return 0;
}

/* What the file has room for: no segment lies beyond its end. */
static uint32_t places_of(const struct disk_tier *disk)
{
	uint64_t places = (disk->file_bytes + SEGMENT_BYTES - 1) / SEGMENT_BYTES;

	return places < SEGMENTS_MAX ? (uint32_t)places : SEGMENTS_MAX;
}

int disk_tier_adopt(int fd, struct disk_tier **out, struct error *err)
{
	struct swap_file file;
	int rc = swap_file_adopt(fd, &file, err);

	if (!rc)
		rc = make_tier(file, out, err);
	if (rc || !make_room(*out, places_of(*out)))
		return rc;
	disk_tier_destroy(*out);
	*out = NULL;
	return error_set(err, ENOMEM, "no memory for the disk tier");
}

void disk_tier_destroy(struct disk_tier *disk)
{
	if (!disk)
		return;
	swap_file_close(&disk->file);
	pthread_mutex_destroy(&disk->lock);
	free(disk->taken);
	free(disk->given);
	free(disk);
}

int disk_tier_fd(const struct disk_tier *disk)
{
	return disk->file.fd;
}

const char *disk_tier_dir(const struct disk_tier *disk)
{
	return disk->file.dir;
}

int disk_tier_mark(struct disk_tier *disk, uint32_t place_idx)
{
	if (place_idx >= places_of(disk))
		return -ERANGE;
	if (disk->taken[place_idx / 64] >> place_idx % 64 & 1)
		return -EEXIST;
	disk->taken[place_idx / 64] |= (uint64_t)1 << place_idx % 64;
	disk->places_n++;
	return 0;
}

static bool is_taken(const struct disk_tier *disk, uint64_t place_idx)
{
	return place_idx < disk->places_room && (disk->taken[place_idx / 64] >> place_idx % 64 & 1);
}

/* Under the lock, or with no other thread. */
static int set_size(struct disk_tier *disk, uint64_t size_bytes)
{
	if (ftruncate(disk->file.fd, (off_t)size_bytes))
		return -errno;
	disk->file_bytes = size_bytes;
	return 0;
}

/* The predecessor may have written a segment and died before it recorded the place. Or it is of an older
 * version, and its file ends within a place. */
void disk_tier_recovered(struct disk_tier *disk)
{
	uint64_t end_idx = (disk->file_bytes + SEGMENT_BYTES - 1) / SEGMENT_BYTES;

	while (end_idx && !is_taken(disk, end_idx - 1))
		end_idx--;
	set_size(disk, end_idx * SEGMENT_BYTES); /* if not, a read behind the end is an error */
	for (uint64_t idx = 0; idx < end_idx; idx++)
		if (!is_taken(disk, idx))
			disk_tier_punch(disk, (uint32_t)idx, 0, SEGMENT_BYTES);
}

/* Take the lowest free place: the file stays as short as possible. */
int disk_tier_take(struct disk_tier *disk, uint32_t *place_idx)
{
	uint32_t word = 0;
	int rc;

	pthread_mutex_lock(&disk->lock);
	while (word < disk->places_room / 64 && !~disk->taken[word])
		word++;
	*place_idx = word * 64 +
		     (word < disk->places_room / 64 ? (uint32_t)__builtin_ctzll(~disk->taken[word]) : 0);
	rc = make_room(disk, *place_idx + 1);
	if (!rc) {
		disk->taken[*place_idx / 64] |= (uint64_t)1 << *place_idx % 64;
		disk->places_n++;
	}
	pthread_mutex_unlock(&disk->lock);
	return rc;
}

uint64_t disk_tier_punch(struct disk_tier *disk, uint32_t place_idx, uint64_t offset_bytes,
			 uint64_t size_bytes)
{
	int rc;

	if (atomic_load_explicit(&disk->cannot_punch, memory_order_relaxed))
		return 0;
	rc = FAILPOINT("store.punch");
	if (!rc && fallocate(disk->file.fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
			     (off_t)(place_idx * SEGMENT_BYTES + offset_bytes), (off_t)size_bytes))
		rc = -errno;
	if (rc == -EOPNOTSUPP || rc == -ENOSYS)
		atomic_store_explicit(&disk->cannot_punch, true, memory_order_relaxed);
	swap_file_measure(&disk->file);
	return rc ? 0 : size_bytes;
}

/* Release the blocks first: once the place is free, somebody else may write there. */
void disk_tier_drop(struct disk_tier *disk, uint32_t place_idx)
{
	bool taken;

	pthread_mutex_lock(&disk->lock);
	taken = is_taken(disk, place_idx);
	pthread_mutex_unlock(&disk->lock);
	if (!taken) /* a bit has flipped in the table: it may be somebody else's, and is not touched */
		return;
	disk_tier_punch(disk, place_idx, 0, SEGMENT_BYTES);
	pthread_mutex_lock(&disk->lock);
	disk->taken[place_idx / 64] &= ~((uint64_t)1 << place_idx % 64);
	disk->places_n--;
	disk->given_blocks -= disk->given[place_idx];
	disk->given[place_idx] = 0;
	pthread_mutex_unlock(&disk->lock);
}

void disk_tier_given_back(struct disk_tier *disk, uint32_t place_idx, uint64_t bytes)
{
	uint16_t blocks = (uint16_t)(bytes / DISK_BLOCK_BYTES);

	pthread_mutex_lock(&disk->lock);
	if (is_taken(disk, place_idx)) {
		disk->given_blocks += blocks;
		disk->given_blocks -= disk->given[place_idx];
		disk->given[place_idx] = blocks;
	}
	pthread_mutex_unlock(&disk->lock);
}

void disk_tier_condemn(struct disk_tier *disk, uint32_t place_idx)
{
	disk_tier_punch(disk, place_idx, 0, SEGMENT_BYTES);
	disk->places_n--;
}

/* The file holds each place whole, though images end earlier. A successor does not know the length of a
 * record that was followed by dropped ones: it reads as much as a record can take, and the file must not end
 * there. */
static int extend_to(struct disk_tier *disk, uint32_t place_idx)
{
	uint64_t end_bytes = (place_idx + (uint64_t)1) * SEGMENT_BYTES;
	int rc = 0;

	HELD_MAY_WAIT(WAIT_WRITE);
	pthread_mutex_lock(&disk->lock);
	if (end_bytes > disk->file_bytes)
		rc = set_size(disk, end_bytes);
	pthread_mutex_unlock(&disk->lock);
	return rc;
}

int disk_tier_write(struct disk_tier *disk, uint32_t place_idx, const void *bytes, uint64_t size_bytes,
		    uint64_t *written_bytes)
{
	struct pieces pieces;
	int rc = extend_to(disk, place_idx);

	if (rc)
		return rc;
	pieces_of_one(&pieces, (void *)bytes, size_bytes);
	return swap_file_write(&disk->file, &pieces, place_idx * SEGMENT_BYTES, written_bytes);
}

int disk_tier_read(struct disk_tier *disk, uint32_t place_idx, uint64_t offset_bytes, void *bytes,
		   uint64_t size_bytes)
{
	struct pieces pieces;

	pieces_of_one(&pieces, bytes, size_bytes);
	return swap_file_read(&disk->file, &pieces, place_idx * SEGMENT_BYTES + offset_bytes);
}

void disk_tier_locate(const struct disk_tier *disk, uint32_t place_idx, uint64_t offset_bytes,
		      struct page_read *read)
{
	read->fd = disk->file.fd;
	read->offset_bytes = place_idx * SEGMENT_BYTES + offset_bytes;
}

void disk_tier_was_read(const struct disk_tier *disk, const struct page_read *read)
{
	swap_file_was_read(&disk->file, read->size_bytes, read->offset_bytes);
}

int disk_tier_refuse(const struct disk_tier *disk, int rc, struct error *err)
{
	return swap_file_refuse(&disk->file, SEGMENT_BYTES, rc, err);
}

uint64_t disk_tier_bytes(const struct disk_tier *disk)
{
	return swap_file_disk_bytes(&disk->file);
}

uint64_t disk_tier_free_bytes(const struct disk_tier *disk)
{
	struct statvfs fs;

	return fstatvfs(disk->file.fd, &fs) ? UINT64_MAX : (uint64_t)fs.f_bavail * fs.f_frsize;
}

uint32_t disk_tier_places(const struct disk_tier *disk)
{
	return disk->places_n;
}

uint64_t disk_tier_reserved_bytes(struct disk_tier *disk)
{
	uint64_t bytes;

	pthread_mutex_lock(&disk->lock);
	bytes = disk->places_n * SEGMENT_BYTES - disk->given_blocks * DISK_BLOCK_BYTES;
	pthread_mutex_unlock(&disk->lock);
	return bytes;
}
