/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Segments in RAM: one memfd, in which segment i begins at i times 2 MiB. It is mapped in pieces of 1 GiB.
 * The fd store holds the memfd, so that its contents survive the process.
 *
 * fallocate() allocates a segment's memory as a whole before anything is written to it: a shortage is an
 * error of that call, and never a SIGBUS or an OOM kill in the middle of a record. */
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
	pthread_mutex_t lock; /* held while another piece is mapped */
	char *_Atomic pieces[RAM_PIECES];
};

/* fd -1: create a memfd; else take over a predecessor's, which is dup'ed. */
int ram_tier_open(struct ram_tier *ram, int fd, struct error *err);
void ram_tier_close(struct ram_tier *ram);

/* Allocate a segment's memory. -ENOMEM, -ENOSPC. */
int ram_tier_take(struct ram_tier *ram, uint32_t segment_idx);

/* The address of a segment that was taken; NULL: no memory for the mapping. */
void *ram_tier_at(struct ram_tier *ram, uint32_t segment_idx);

/* Release the memory of segments; nobody may read them any more. */
void ram_tier_drop(struct ram_tier *ram, uint32_t segment_idx, uint32_t segments_n);

/* Release the segment's memory beyond used_bytes: nothing is stored there, and nothing will be. */
void ram_tier_trim(struct ram_tier *ram, uint32_t segment_idx, uint64_t used_bytes);

/* As the kernel counts. */
uint64_t ram_tier_bytes(const struct ram_tier *ram);

#endif
