/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "store/ram_tier.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/failpoint.h"
#include "base/units.h"

#define PIECE_BYTES (RAM_PIECE_SEGMENTS * SEGMENT_BYTES)

static uint64_t bit_of(uint32_t place_idx)
{
	return (uint64_t)1 << place_idx % 64;
}

static bool is_taken(const struct ram_tier *ram, uint32_t place_idx)
{
	return ram->taken[place_idx / 64] & bit_of(place_idx);
}

static void punch(struct ram_tier *ram, uint64_t offset_bytes, uint64_t size_bytes)
{
	fallocate(ram->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)offset_bytes,
		  (off_t)size_bytes);
}

int ram_tier_open(struct ram_tier *ram, int fd, struct error *err)
{
	int own_fd = fd < 0 ? memfd_create("vmmswap-ram", MFD_CLOEXEC) : fcntl(fd, F_DUPFD_CLOEXEC, 3);

	if (own_fd < 0)
		return error_set(err, errno, "cannot make a memfd for the RAM tier: %s", strerror(errno));
	if (fd < 0 && ftruncate(own_fd, (off_t)(SEGMENTS_MAX * SEGMENT_BYTES))) {
		int code = errno;

		close(own_fd);
		return error_set(err, code, "cannot size the memfd of the RAM tier: %s", strerror(code));
	}
	ram->taken = calloc(SEGMENTS_MAX / 64, sizeof *ram->taken);
	ram->trimmed = calloc(SEGMENTS_MAX / 64, sizeof *ram->trimmed);
	if (!ram->taken || !ram->trimmed) {
		free(ram->taken);
		free(ram->trimmed);
		close(own_fd);
		return error_set(err, ENOMEM, "no memory for the store");
	}
	ram->fd = own_fd;
	pthread_mutex_init(&ram->lock, NULL);
	return 0;
}

int ram_tier_mark(struct ram_tier *ram, uint32_t place_idx)
{
	if (place_idx >= SEGMENTS_MAX)
		return -ERANGE;
	if (is_taken(ram, place_idx))
		return -EEXIST;
	ram->taken[place_idx / 64] |= bit_of(place_idx);
	ram->trimmed[place_idx / 64] |= bit_of(place_idx); /* by the predecessor, perhaps */
	return 0;
}

void ram_tier_recovered(struct ram_tier *ram)
{
	uint32_t from_idx = 0;

	for (uint32_t idx = 0; idx <= SEGMENTS_MAX; idx++) {
		if (idx < SEGMENTS_MAX && !is_taken(ram, idx))
			continue;
		if (from_idx < idx)
			punch(ram, from_idx * SEGMENT_BYTES, (idx - from_idx) * SEGMENT_BYTES);
		from_idx = idx + 1;
	}
}

void ram_tier_close(struct ram_tier *ram)
{
	for (size_t i = 0; i < RAM_PIECES; i++)
		if (ram->pieces[i])
			munmap(ram->pieces[i], PIECE_BYTES);
	free(ram->taken);
	free(ram->trimmed);
	pthread_mutex_destroy(&ram->lock);
	close(ram->fd);
}

static bool take_spare(struct ram_tier *ram, uint32_t *place_idx)
{
	bool found;

	pthread_mutex_lock(&ram->lock);
	found = ram->spares_n;
	if (found)
		*place_idx = ram->spares[--ram->spares_n];
	pthread_mutex_unlock(&ram->lock);
	return found;
}

/* Take the lowest free place: so few pieces are mapped. False: all places are taken. */
static bool take_free(struct ram_tier *ram, uint32_t *place_idx)
{
	bool found;

	pthread_mutex_lock(&ram->lock);
	while (ram->free_from_idx < SEGMENTS_MAX && is_taken(ram, ram->free_from_idx))
		ram->free_from_idx++;
	*place_idx = ram->free_from_idx;
	found = *place_idx < SEGMENTS_MAX;
	if (found)
		ram->taken[*place_idx / 64] |= bit_of(*place_idx);
	pthread_mutex_unlock(&ram->lock);
	return found;
}

static int allocate_once(struct ram_tier *ram, uint32_t place_idx)
{
	int rc = FAILPOINT("store.ram");

	if (!rc && fallocate(ram->fd, 0, (off_t)(place_idx * SEGMENT_BYTES), (off_t)SEGMENT_BYTES))
		rc = -errno;
	return rc;
}

/* EINTR needs no signal: an io_uring that this thread has used and that comes to its end is as good as one
 * (io_uring/io_uring.c, io_ring_exit_work()). */
static int allocate(struct ram_tier *ram, uint32_t place_idx)
{
	void *at = ram_tier_at(ram, place_idx);
	int rc = at ? -EINTR : -ENOMEM;

	while (rc == -EINTR)
		rc = allocate_once(ram, place_idx);
	/* All of it is written soon: one call replaces a page fault for every page. */
	if (!rc)
		madvise(at, SEGMENT_BYTES, MADV_POPULATE_WRITE);
	return rc;
}

/* Release the memory first: once the place is free, somebody else may take it. */
static void give_up(struct ram_tier *ram, uint32_t place_idx)
{
	punch(ram, place_idx * SEGMENT_BYTES, SEGMENT_BYTES);
	pthread_mutex_lock(&ram->lock);
	ram->taken[place_idx / 64] &= ~bit_of(place_idx);
	atomic_fetch_and(&ram->trimmed[place_idx / 64], ~bit_of(place_idx));
	if (place_idx < ram->free_from_idx)
		ram->free_from_idx = place_idx;
	pthread_mutex_unlock(&ram->lock);
}

int ram_tier_take(struct ram_tier *ram, uint32_t *place_idx)
{
	int rc;

	if (take_spare(ram, place_idx))
		return 0;
	if (!take_free(ram, place_idx))
		return -ENOSPC;
	rc = allocate(ram, *place_idx);
	if (rc)
		give_up(ram, *place_idx); /* a part may have been allocated */
	return rc;
}

void ram_tier_release(struct ram_tier *ram, uint32_t place_idx)
{
	bool is_spare = !(atomic_load(&ram->trimmed[place_idx / 64]) & bit_of(place_idx));

	pthread_mutex_lock(&ram->lock);
	is_spare = is_spare && ram->keeps_spares && ram->spares_n < RAM_SPARES_MAX;
	if (is_spare)
		ram->spares[ram->spares_n++] = place_idx;
	pthread_mutex_unlock(&ram->lock);
	if (!is_spare)
		give_up(ram, place_idx);
}

void ram_tier_keep_spares(struct ram_tier *ram, bool keeps_spares)
{
	uint32_t spares[RAM_SPARES_MAX], n = 0;

	pthread_mutex_lock(&ram->lock);
	ram->keeps_spares = keeps_spares;
	while (!keeps_spares && ram->spares_n)
		spares[n++] = ram->spares[--ram->spares_n];
	pthread_mutex_unlock(&ram->lock);
	while (n)
		give_up(ram, spares[--n]);
}

static char *map_piece(struct ram_tier *ram, size_t piece)
{
	char *at;

	pthread_mutex_lock(&ram->lock);
	at = ram->pieces[piece];
	if (!at) {
		at = mmap(NULL, PIECE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, ram->fd,
			  (off_t)(piece * PIECE_BYTES));
		if (at == MAP_FAILED) {
			at = NULL;
		} else {
			madvise(at, PIECE_BYTES,
				MADV_DONTDUMP); /* guest memory has no place in our core dumps */
			ram->pieces[piece] = at;
		}
	}
	pthread_mutex_unlock(&ram->lock);
	return at;
}

void *ram_tier_at(struct ram_tier *ram, uint32_t place_idx)
{
	size_t piece = place_idx / RAM_PIECE_SEGMENTS;
	char *at = piece < RAM_PIECES ? ram->pieces[piece] : NULL;

	if (!at && piece < RAM_PIECES)
		at = map_piece(ram, piece);
	return at ? at + place_idx % RAM_PIECE_SEGMENTS * SEGMENT_BYTES : NULL;
}

void ram_tier_trim(struct ram_tier *ram, uint32_t place_idx, uint64_t used_bytes)
{
	uint64_t end_bytes = (used_bytes + PAGE_BYTES - 1) & PAGE_MASK;

	if (end_bytes + RAM_TRIMMED_BYTES_MIN > SEGMENT_BYTES)
		return;
	atomic_fetch_or(&ram->trimmed[place_idx / 64], bit_of(place_idx));
	punch(ram, place_idx * SEGMENT_BYTES + end_bytes, SEGMENT_BYTES - end_bytes);
}

uint64_t ram_tier_bytes(const struct ram_tier *ram)
{
	struct stat st;

	return fstat(ram->fd, &st) ? 0 : (uint64_t)st.st_blocks * 512;
}
