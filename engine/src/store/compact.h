/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Records in use leave a sparse segment in RAM for an open one, so that its memory comes back. For idle moments. */
#ifndef VMMSWAP_COMPACT_H
#define VMMSWAP_COMPACT_H

#include <stdbool.h>
#include <stdint.h>

#include "store/log.h"

/* Says that the owner's page is at to_idx from now on: by one atomic change of what said from_idx. False: the page was not there any more, or
 * somebody has it in hands; nothing changed. The bytes at to_idx are in place when it is called. */
typedef bool (*relocate_page)(void *context, uint64_t owner, uint64_t from_idx, uint64_t to_idx);

/* One segment, if one has less than half of its granules in use and all that is worth it. False: nothing was done. */
bool log_compact_step(struct log *log, relocate_page relocate, void *context);

#endif
