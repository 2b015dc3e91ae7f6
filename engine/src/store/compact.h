/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Compaction: moves the records in use from a sparse segment in RAM to an open one, so that the sparse
 * segment's memory can be released. For idle moments. */
#ifndef VMMSWAP_COMPACT_H
#define VMMSWAP_COMPACT_H

#include <stdbool.h>
#include <stdint.h>

#include "store/log.h"

/* Compact one segment, if there is one whose compaction releases memory. False: no record could be moved.
 * Only one thread at a time may call this. */
bool log_compact_step(struct log *log, relocate_page relocate, void *context);

#endif
