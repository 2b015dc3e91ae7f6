/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What the log needs now and then, beside all else: release the memory and blocks of dropped pages, move
 * segments from RAM to disk, compact sparse ones.
 *
 * A segment moves when the RAM tier is over its limit, when it is older than the log's ram_age_s, or while
 * the host is short of memory. Segments of pages that do not compress move at once: on RAM they gain
 * nothing. Blocks on disk are given back half a minute after a segment has become sparse, or when a limit
 * would be reached. */
#ifndef VMMSWAP_TEND_H
#define VMMSWAP_TEND_H

#include <stdbool.h>
#include <stdint.h>

#include "store/log.h"

/* One step, of some milliseconds; it waits for the disk. False: there is nothing to do now. Any thread may
 * call it; threads that do so at once wait for each other. */
bool log_tend_step(struct log *log, relocate_page relocate, void *context);

/* How long there will be nothing to do, unless log->tend_fd becomes readable before; -1: until it does. */
int64_t log_tend_wait_ms(struct log *log);

/* See store_flush_step(). log_tend_step() waits meanwhile: no segment is on its way by another hand. */
int log_flush_step(struct log *log, struct error *err);

/* A segment has become sparse, or may be: see thin.h. */
void log_thin_later(struct log *log);

/* Make log->tend_fd readable: there may be something to do. Waits for nothing. */
void log_wake_tender(struct log *log);

/* The host is short of memory, or no longer. While it is, everything that can move goes to disk. */
void log_host_is_short(struct log *log, bool is_short);

#endif
