/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Segments in RAM: one memfd, in which each segment stands at its number times 2 MiB, mapped a piece at a time. The fd store keeps
 * the memfd, so that what is in it survives the process.
 *
 * A segment's memory is taken as a whole before anything is written there, by fallocate(): a shortage is an error of that call, and
 * never a SIGBUS or an OOM kill in the middle of a record. */
#ifndef VMMSWAP_RAM_TIER_H
#define VMMSWAP_RAM_TIER_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>

#include "base/error.h"
#include "store/slot_name.h"

#define RAM_PIECE_SEGMENTS 512 /* 1 GiB is mapped at once */
#define RAM_PIECES (SEGMENTS_MAX / RAM_PIECE_SEGMENTS)

struct ram_tier {
	int fd;
	pthread_mutex_t lock; /* of mapping a further piece */
	char *_Atomic pieces[RAM_PIECES];
};

/* fd -1: a new one; else that of a predecessor, dup'ed. */
int ram_tier_open(struct ram_tier *ram, int fd, struct error *err);
void ram_tier_close(struct ram_tier *ram);

/* Memory for a segment. -ENOMEM, -ENOSPC. */
int ram_tier_take(struct ram_tier *ram, uint32_t segment_idx);

/* Where a segment that was taken is mapped; NULL: no memory for the mapping. */
void *ram_tier_at(struct ram_tier *ram, uint32_t segment_idx);

/* Give the memory of segments back; none of them may be read any more. */
void ram_tier_drop(struct ram_tier *ram, uint32_t segment_idx, uint32_t segments_n);

/* Give back what is beyond so many bytes of a segment: nothing stands there, and nothing will. */
void ram_tier_trim(struct ram_tier *ram, uint32_t segment_idx, uint64_t used_bytes);

/* As the kernel counts. */
uint64_t ram_tier_bytes(const struct ram_tier *ram);

#endif
