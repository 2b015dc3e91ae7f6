/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The second detector: MADV_COLLAPSE, which moves 2 MiB to a huge page only if nothing else holds any of it.
 * Private to pins. */
#ifndef VMMSWAP_PINS_COLLAPSE_H
#define VMMSWAP_PINS_COLLAPSE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"

struct pins_collapse;

/* Needs userfaultfd, page frame numbers in /proc/self/pagemap (CAP_SYS_ADMIN), and shared memory that may be
 * huge. */
int pins_collapse_create(struct pins_collapse **out, struct error *err);
void pins_collapse_destroy(struct pins_collapse *collapse);

/* *is_free: the 2 MiB of memfd at offset_bytes were just moved to one new huge page, so nothing else held
 * them. Otherwise nothing is known and nothing has changed: a page is held, or there is a hole, or it was one
 * huge page before. */
int pins_collapse_look(struct pins_collapse *collapse, int memfd, uint64_t offset_bytes, bool *is_free);

#endif
