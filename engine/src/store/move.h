/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Segments on their way from RAM to disk.
 *
 * The image of the segment is made in a buffer: each record in use sealed at its place, zeros elsewhere. It is written in one go; then the
 * segment's entry says where it is, and the memory is given back. Until then pages are read from memory, from then on from disk; nobody waits.
 * If we die in between, the entry decides: a place on disk that no entry names is free, and memory of a segment that is on disk is given back. */
#ifndef VMMSWAP_MOVE_H
#define VMMSWAP_MOVE_H

#include <stdbool.h>
#include <stdint.h>

#include "store/log.h"

/* Move the oldest segment that was begun no later than that (CLOCK_BOOTTIME; UINT32_MAX: any). 0; -ENOENT: there is none; -ENOSPC: log->limited_by
 * says which limit; else an error of the disk: the segment stays where it is. */
int log_move_oldest(struct log *log, uint32_t born_before_s, struct error *err);

#endif
