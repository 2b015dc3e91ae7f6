/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Gives back the blocks of a segment on disk that have no record in use any more. A segment is given back as
 * a whole only with its last record, and guests have pages that they never write to again, among others that
 * they write to all the time: without this, a VM that goes out again and again would take more and more of
 * the disk. A segment is looked at when half of what has blocks is no longer in use, and then again, so what
 * is on disk is at most some times what is in use, and each record is looked at a few times only. */
#ifndef VMMSWAP_THIN_H
#define VMMSWAP_THIN_H

#include <stdbool.h>

#include "store/log.h"

/* Do that for one segment. False: there is none. Any thread may call this. */
bool log_thin_step(struct log *log);

#endif
