/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The page's hash once more, for processors with AVX2: a third of the time. xxhash.h chooses the width of its
 * vectors where it is compiled, so it is compiled in here for another processor than the rest of the
 * engine. */
#include "base/hash.h"

#if defined(__x86_64__)
#include <immintrin.h>

#include "base/units.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2"))), apply_to = function)
#else
#pragma GCC target("avx2")
#endif
#define XXH_VECTOR XXH_AVX2
#define XXH_INLINE_ALL
#include <xxhash.h>

uint32_t page_hash_avx2(const void *page)
{
	return (uint32_t)XXH3_64bits(page, PAGE_BYTES);
}

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
