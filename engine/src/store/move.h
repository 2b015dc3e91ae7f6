/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Moves segments from RAM to disk.
 *
 * The segment's image is built in a buffer: each record in use is sealed at its place, with zeros elsewhere.
 * The image is written in one write; then the segment's entry is set to its place on disk, and the memory is
 * released. Pages are read from memory until the entry changes, and from disk after that; nobody waits. If we
 * die in between, the entry decides: a place on disk that no entry names is free, and the memory of a segment
 * that is on disk is released. */
#ifndef VMMSWAP_MOVE_H
#define VMMSWAP_MOVE_H

#include <stdbool.h>
#include <stdint.h>

#include "store/log.h"

/* Move the oldest segment, if it was begun at born_before_s or earlier (CLOCK_BOOTTIME; UINT32_MAX: at any
 * time). 0; -ENOENT: there is none; -ENOSPC: log->limited_by says which limit; else an error of the disk: the
 * segment stays where it is. */
int log_move_oldest(struct log *log, uint32_t born_before_s, struct error *err);

#endif
