/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Records in use leave a sparse segment in RAM for an open one, so that its memory comes back. For idle moments. */
#ifndef VMMSWAP_COMPACT_H
#define VMMSWAP_COMPACT_H

#include <stdbool.h>
#include <stdint.h>

#include "store/log.h"

/* One segment, if one has less than half of its granules in use and all that is worth it. False: no record was moved. */
bool log_compact_step(struct log *log, relocate_page relocate, void *context);

#endif
