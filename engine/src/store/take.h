/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Takes memory for a further segment: within the RAM tier's limit, and only while the host and each cgroup
 * that we are charged to has some left. Older segments move to disk to make room. */
#ifndef VMMSWAP_TAKE_H
#define VMMSWAP_TAKE_H

#include <stdbool.h>
#include <stdint.h>

#include "store/log.h"

/* raw: for pages that are stored as they are. The segment is OPEN, and has all of its memory. On error *err
 * says what to do, and log->limited_by what stopped us. It may wait for the disk. */
int log_take_segment(struct log *log, bool raw, uint32_t *segment_idx, struct error *err);

/* The same for compaction, which soon gives back more than it takes: also above the RAM tier's limit. It
 * moves nothing to disk, and a shortage stops no swap-out: limited_by stays. */
int log_take_target(struct log *log, bool raw, uint32_t *segment_idx, struct error *err);

#endif
