/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "base/hash.h"
#include "base/units.h"

#include <string.h>

/* Header only: compiled in here with the vector width that our flags allow, and no library to load. */
#define XXH_INLINE_ALL
#include <xxhash.h>

#define STEP_BYTES 128

uint32_t page_hash(const void *page)
{
#if defined(__x86_64__)
	if (__builtin_cpu_supports("avx2"))
		return page_hash_avx2(page);
#endif
	return page_hash_anywhere(page);
}

uint32_t page_hash_anywhere(const void *page)
{
	return (uint32_t)XXH3_64bits(page, PAGE_BYTES);
}

/* Written so that compilers make vector code of it. */
static bool is_step_zero(const unsigned char *bytes)
{
	uint64_t words[STEP_BYTES / sizeof(uint64_t)];
	uint64_t any = 0;

	memcpy(words, bytes, sizeof words);
	for (size_t i = 0; i < sizeof words / sizeof *words; i++)
		any |= words[i];
	return any == 0;
}

bool page_is_zero(const void *page)
{
	const unsigned char *bytes = page;

	for (size_t at = 0; at < PAGE_BYTES; at += STEP_BYTES)
		if (!is_step_zero(bytes + at))
			return false;
	return true;
}
