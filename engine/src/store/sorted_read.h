/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Reads many slots of a page file with few system calls, in whatever order their pages are wanted. */
#ifndef VMMSWAP_SORTED_READ_H
#define VMMSWAP_SORTED_READ_H

#include "store/swap_file.h"

/* Read n slots, CHUNK_PAGES at most, into buf (page aligned): slot_idx[i] into page i. The reads are sorted,
 * and slots that lie near each other are read by one: what lies between is read too, and discarded. 0 or
 * -errno, as of the first read that failed; the contents of buf are then undefined. */
int sorted_read(struct swap_file *file, const uint64_t *slot_idx, size_t n, void *buf);

#endif
