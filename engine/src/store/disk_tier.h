/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Segments on disk: one unnamed file, in which each stands at a place of 2 MiB. Written whole, in one go; read by the block.
 *
 * Nothing is left in the page cache: O_DIRECT, or where the file system refuses that, through the page cache with what was used thrown out
 * again before each call returns. Knows nothing of what the segments hold. */
#ifndef VMMSWAP_DISK_TIER_H
#define VMMSWAP_DISK_TIER_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "store/slot_name.h"

#define DISK_BLOCK_BYTES ((uint64_t)4096)

struct disk_tier;

/* A file without a name in dir. -errno with what to do. */
int disk_tier_create(const char *dir, struct disk_tier **out, struct error *err);

/* The file of a predecessor, dup'ed. Then disk_tier_mark() each place in use. -EINVAL: no regular file open for reading and writing. */
int disk_tier_adopt(int fd, struct disk_tier **out, struct error *err);
/* -ERANGE: no place can have that number; -EEXIST: marked before; -ENOMEM. */
int disk_tier_mark(struct disk_tier *disk, uint32_t place_idx);
/* After the last mark: blocks of places that nobody has go. */
void disk_tier_recovered(struct disk_tier *disk);
void disk_tier_destroy(struct disk_tier *disk);

int disk_tier_fd(const struct disk_tier *disk);
const char *disk_tier_dir(const struct disk_tier *disk); /* for messages */

/* A place that nobody has. -ENOMEM. */
int disk_tier_take(struct disk_tier *disk, uint32_t *place_idx);
/* The place is free. Its blocks go, unless the file system cannot. May take a millisecond: not for threads that serve faults. */
void disk_tier_drop(struct disk_tier *disk, uint32_t place_idx);
/* The place cannot be written to: it is nobody's, and is given to nobody. */
void disk_tier_condemn(struct disk_tier *disk, uint32_t place_idx);
/* Blocks inside of a place that are not needed any more go. */
void disk_tier_punch(struct disk_tier *disk, uint32_t place_idx, uint64_t offset_bytes, uint64_t size_bytes);

/* size_bytes: a multiple of DISK_BLOCK_BYTES; bytes: as aligned. 0 or -errno (-ENOSPC, -EDQUOT, -EFBIG, -EIO, ...). */
int disk_tier_write(struct disk_tier *disk, uint32_t place_idx, const void *bytes, uint64_t size_bytes);
/* Both multiples of DISK_BLOCK_BYTES; bytes: as aligned. 0 or -errno; a short read is -EIO. */
int disk_tier_read(struct disk_tier *disk, uint32_t place_idx, uint64_t offset_bytes, void *bytes,
		   uint64_t size_bytes);

/* Puts into words why a write failed. Returns rc. */
int disk_tier_refuse(const struct disk_tier *disk, int rc, struct error *err);

uint64_t disk_tier_bytes(const struct disk_tier *disk); /* as the file system counts */
uint64_t disk_tier_free_bytes(const struct disk_tier
				      *disk); /* on its file system; one that does not tell has any */
uint64_t disk_tier_written_bytes(const struct disk_tier *disk); /* since this struct was made */
uint32_t disk_tier_places(const struct disk_tier *disk);	/* in use */

#endif
