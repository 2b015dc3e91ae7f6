/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "store/ram_tier.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/failpoint.h"
#include "base/units.h"

#define PIECE_BYTES (RAM_PIECE_SEGMENTS * SEGMENT_BYTES)

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
	ram->fd = own_fd;
	pthread_mutex_init(&ram->lock, NULL);
	return 0;
}

void ram_tier_close(struct ram_tier *ram)
{
	for (size_t i = 0; i < RAM_PIECES; i++)
		if (ram->pieces[i])
			munmap(ram->pieces[i], PIECE_BYTES);
	pthread_mutex_destroy(&ram->lock);
	close(ram->fd);
}

int ram_tier_take(struct ram_tier *ram, uint32_t segment_idx)
{
	int rc = FAILPOINT("store.ram");
	void *at;

	if (!rc && fallocate(ram->fd, 0, (off_t)(segment_idx * SEGMENT_BYTES), (off_t)SEGMENT_BYTES))
		rc = -errno;
	/* All of it is written soon: one call replaces a page fault for every page. */
	at = rc ? NULL : ram_tier_at(ram, segment_idx);
	if (at)
		madvise(at, SEGMENT_BYTES, MADV_POPULATE_WRITE);
	if (rc) /* a part may have been allocated */
		ram_tier_drop(ram, segment_idx, 1);
	return rc;
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

void *ram_tier_at(struct ram_tier *ram, uint32_t segment_idx)
{
	size_t piece = segment_idx / RAM_PIECE_SEGMENTS;
	char *at = ram->pieces[piece];

	if (!at)
		at = map_piece(ram, piece);
	return at ? at + segment_idx % RAM_PIECE_SEGMENTS * SEGMENT_BYTES : NULL;
}

void ram_tier_drop(struct ram_tier *ram, uint32_t segment_idx, uint32_t segments_n)
{
	fallocate(ram->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)(segment_idx * SEGMENT_BYTES),
		  (off_t)(segments_n * SEGMENT_BYTES));
}

void ram_tier_trim(struct ram_tier *ram, uint32_t segment_idx, uint64_t used_bytes)
{
	uint64_t end_bytes = (used_bytes + PAGE_BYTES - 1) & PAGE_MASK;

	if (end_bytes < SEGMENT_BYTES)
		fallocate(ram->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
			  (off_t)(segment_idx * SEGMENT_BYTES + end_bytes),
			  (off_t)(SEGMENT_BYTES - end_bytes));
}

uint64_t ram_tier_bytes(const struct ram_tier *ram)
{
	struct stat st;

	return fstat(ram->fd, &st) ? 0 : (uint64_t)st.st_blocks * 512;
}
