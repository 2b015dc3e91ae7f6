/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Segments on disk: one unnamed file, divided into places of 2 MiB, one segment in each. A segment is written
 * whole, in one write, and read in blocks.
 *
 * Nothing is left in the page cache: the file uses O_DIRECT. Where the file system refuses that, it uses the
 * page cache, and each call drops what it used from the cache before it returns. Knows nothing of what the
 * segments hold. */
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
struct page_read;

/* Create a file without a name in dir. On error -errno, with what to do. */
int disk_tier_create(const char *dir, struct disk_tier **out, struct error *err);

/* Take over the file of a predecessor; fd is dup'ed. Then call disk_tier_mark() for each place in use.
 * -EINVAL: fd is not a regular file open for reading and writing. */
int disk_tier_adopt(int fd, struct disk_tier **out, struct error *err);
/* With no other thread. -ERANGE: the file has no such place; -EEXIST: already marked. */
int disk_tier_mark(struct disk_tier *disk, uint32_t place_idx);
/* Call after the last mark: releases the blocks of all places that are not in use. */
void disk_tier_recovered(struct disk_tier *disk);
void disk_tier_destroy(struct disk_tier *disk);

int disk_tier_fd(const struct disk_tier *disk);
const char *disk_tier_dir(const struct disk_tier *disk); /* for messages */

/* Take a free place. -ENOMEM. */
int disk_tier_take(struct disk_tier *disk, uint32_t *place_idx);
/* Free the place and release its blocks, if the file system can. May take a millisecond: not for threads that
 * serve faults. */
void disk_tier_drop(struct disk_tier *disk, uint32_t place_idx);
/* The place cannot be written to: take it out of use and never hand it out again. */
void disk_tier_condemn(struct disk_tier *disk, uint32_t place_idx);
/* Release blocks inside a place that are no longer needed. Returns size_bytes; 0: they are still there. */
uint64_t disk_tier_punch(struct disk_tier *disk, uint32_t place_idx, uint64_t offset_bytes,
			 uint64_t size_bytes);

/* So much of a place has been punched by now, in all. */
void disk_tier_given_back(struct disk_tier *disk, uint32_t place_idx, uint64_t bytes);

/* size_bytes is a multiple of DISK_BLOCK_BYTES; bytes is aligned to it. 0 or -errno (-ENOSPC, -EDQUOT,
 * -EFBIG, -EIO, ...); *written_bytes: how many were sent, also on error. */
int disk_tier_write(struct disk_tier *disk, uint32_t place_idx, const void *bytes, uint64_t size_bytes,
		    uint64_t *written_bytes);
/* Offset and size are multiples of DISK_BLOCK_BYTES; bytes is aligned to it. 0 or -errno; a short read is
 * -EIO. */
int disk_tier_read(struct disk_tier *disk, uint32_t place_idx, uint64_t offset_bytes, void *bytes,
		   uint64_t size_bytes);

/* For a caller that reads by itself: where offset_bytes of the place is in the file; and that it was read. */
void disk_tier_locate(const struct disk_tier *disk, uint32_t place_idx, uint64_t offset_bytes,
		      struct page_read *read);
void disk_tier_was_read(const struct disk_tier *disk, const struct page_read *read);

/* Describes in *err why a write failed. Returns rc. */
int disk_tier_refuse(const struct disk_tier *disk, int rc, struct error *err);

uint64_t disk_tier_bytes(const struct disk_tier *disk); /* as the file system counts */
uint64_t disk_tier_free_bytes(const struct disk_tier
				      *disk); /* on its file system; unlimited if that does not report it */
uint32_t disk_tier_places(const struct disk_tier *disk); /* in use */
/* Of all places in use, each whole, but what was given back of them. */
uint64_t disk_tier_reserved_bytes(struct disk_tier *disk);

#endif
