/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What the engine computes over a page of 4 KiB. Any alignment; two threads may look at one page. */
#ifndef VMMSWAP_HASH_H
#define VMMSWAP_HASH_H

#include <stdbool.h>
#include <stdint.h>

/* The low 32 bits of XXH3_64bits (seed 0): finds damage, not malice. Equal hashes do not mean equal pages. */
uint32_t page_hash(const void *page);

/* The same on any processor, and on one with AVX2. */
uint32_t page_hash_anywhere(const void *page);
#if defined(__x86_64__)
uint32_t page_hash_avx2(const void *page);
#endif

/* Ends at the first cache lines that are not zero. */
bool page_is_zero(const void *page);

#endif
