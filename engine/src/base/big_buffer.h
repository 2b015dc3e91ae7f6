/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Buffers of 2 MiB for long jobs. */
#ifndef VMMSWAP_BIG_BUFFER_H
#define VMMSWAP_BIG_BUFFER_H

#include "base/units.h"

/* Allocate CHUNK_BYTES of zeros, aligned to that. One huge page if the kernel has one: it is cleared in a
 * fraction of the time, and a read or write with O_DIRECT looks up one page instead of 512. NULL: no
 * memory. */
void *big_buffer_new(void);
void big_buffer_free(void *buffer); /* NULL is allowed */

#endif
