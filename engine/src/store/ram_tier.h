/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Segments in RAM: one memfd, divided into places of 2 MiB, one segment in each. It is mapped in pieces of
 * 1 GiB. The fd store holds the memfd, so that its contents survive the process. The segment table says which
 * segment has which place.
 *
 * fallocate() allocates a place's memory as a whole before anything is written to it: a shortage is an error
 * of that call, and never a SIGBUS or an OOM kill in the middle of a record.
 *
 * The kernel needs about a millisecond to find, clear and map 512 pages, and half of that to take them back.
 * So while a swap-out fills segments that move to disk right after, a few released places keep their memory,
 * as spares, and the next segments get those. */
#ifndef VMMSWAP_RAM_TIER_H
#define VMMSWAP_RAM_TIER_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "store/slot_name.h"

#define RAM_PIECE_SEGMENTS 512 /* 1 GiB is mapped at once */
#define RAM_PIECES (SEGMENTS_MAX / RAM_PIECE_SEGMENTS)
#define RAM_SPARES_MAX 4 /* one for each writer, and one: as many as a swap-out has on their way */

#define RAM_TRIMMED_BYTES_MIN ((uint64_t)8192) /* longer than any record */

struct ram_tier {
	int fd;
	pthread_mutex_t lock; /* of all that follows */
	char *_Atomic pieces[RAM_PIECES];
	uint64_t *taken;	   /* one bit per place; spares are taken, too */
	_Atomic uint64_t *trimmed; /* places that may not have all of their memory */
	uint32_t free_from_idx;	   /* no place below it is free */
	bool keeps_spares;
	uint32_t spares[RAM_SPARES_MAX];
	_Atomic uint32_t spares_n;
};

/* fd -1: create a memfd; else take over a predecessor's, which is dup'ed. Then call ram_tier_mark() for each
 * place in use. */
int ram_tier_open(struct ram_tier *ram, int fd, struct error *err);
/* -ERANGE: no place can have that number; -EEXIST: already marked. */
int ram_tier_mark(struct ram_tier *ram, uint32_t place_idx);
/* Call after the last mark: releases the memory of all places that are not in use. */
void ram_tier_recovered(struct ram_tier *ram);
void ram_tier_close(struct ram_tier *ram);

/* Take a place with all of its memory: a spare, if there is one. Its contents are undefined. -ENOMEM,
 * -ENOSPC. */
int ram_tier_take(struct ram_tier *ram, uint32_t *place_idx);

/* The address of a place; NULL: no memory for the mapping, or there is no such place. */
void *ram_tier_at(struct ram_tier *ram, uint32_t place_idx);

/* Release a place; nobody may read there any more. It becomes a spare, or its memory is released. */
void ram_tier_release(struct ram_tier *ram, uint32_t place_idx);

/* Whether released places become spares. On false, the memory of those that are there is released. */
void ram_tier_keep_spares(struct ram_tier *ram, bool keeps_spares);

/* True if the next place that is taken needs no further memory. */
static inline bool ram_tier_has_spare(const struct ram_tier *ram)
{
	return atomic_load(&ram->spares_n) > 0;
}

/* Release the place's memory beyond used_bytes: nothing is stored there, and nothing will be. What is shorter
 * than RAM_TRIMMED_BYTES_MIN stays: so a full segment leaves a spare. */
void ram_tier_trim(struct ram_tier *ram, uint32_t place_idx, uint64_t used_bytes);

/* As the kernel counts; spares included. */
uint64_t ram_tier_bytes(const struct ram_tier *ram);

#endif
