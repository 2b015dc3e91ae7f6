/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "content.h"

#include <stdlib.h>
#include <string.h>

#define HEADER_WORDS 4u
#define BLOCKS 8u
#define BLOCK_WORDS (PAGE_WORDS / BLOCKS)
#define HEADER_MAGIC UINT64_C(0x7473657567776d76)
#define GOLDEN UINT64_C(0x9e3779b97f4a7c15)

const char *const class_names[CLASS_COUNT] = { "random", "text", "same", "zero", "untouched" };

uint64_t content_mix(uint64_t value)
{
	value ^= value >> 30;
	value *= UINT64_C(0xbf58476d1ce4e5b9);
	value ^= value >> 27;
	value *= UINT64_C(0x94d049bb133111eb);
	return value ^ (value >> 31);
}

static uint64_t key_of(const struct content *content, uint64_t page_idx, uint32_t version)
{
	return content_mix(content_mix(content->seed + GOLDEN) ^ content_mix(page_idx * GOLDEN + version));
}

enum page_class content_class(const struct content *content, uint64_t page_idx)
{
	unsigned at = (unsigned)(content_mix(content->seed ^ content_mix(page_idx + GOLDEN)) % 100);

	for (unsigned class = 0; class < CLASS_COUNT; class ++) {
		if (at < content->percent[class])
			return class;
		at -= content->percent[class];
	}
	return CLASS_RANDOM;
}

static bool is_zero_version(enum page_class class, uint32_t version)
{
	return class == CLASS_ZERO && (version / BLOCKS) % 2 == 0;
}

bool content_allows_part(enum page_class class, uint32_t version)
{
	return version >= BLOCKS && class != CLASS_SAME && class != CLASS_ZERO;
}

uint32_t content_next_version(enum page_class class, uint32_t version, enum write_how how)
{
	uint32_t whole = version + BLOCKS;

	if (whole < version) /* wrapped after 2^29 writes of the page: versions below 8 mean nothing */
		whole = 2 * BLOCKS;
	if (how == WRITE_PART && content_allows_part(class, version) && version + 1 >= BLOCKS)
		return version + 1;
	if (how == WRITE_FILL && class == CLASS_ZERO && !is_zero_version(class, whole))
		whole += BLOCKS;
	return whole;
}

bool content_part_covers(uint32_t version, unsigned word_idx)
{
	return word_idx < HEADER_WORDS || word_idx / BLOCK_WORDS == version % BLOCKS;
}

/* Block b was last written at the newest version that is b modulo 8. */
static uint32_t block_version(uint32_t version, unsigned block_idx)
{
	return version - (version + BLOCKS - block_idx) % BLOCKS;
}

static void expect_random(uint64_t key, uint64_t *words)
{
	for (unsigned i = 0; i < BLOCK_WORDS; i++)
		words[i] = content_mix(key + i * GOLDEN);
}

/* One word in eight is random; the others are one of sixteen, chosen by four random bits. */
static void expect_text(uint64_t key, uint64_t *words)
{
	uint64_t choices = key;

	for (unsigned i = 0; i < BLOCK_WORDS; i++) {
		if (i % 8 == 0)
			choices = words[i] = content_mix(key + i * GOLDEN);
		else
			words[i] = UINT64_C(0x2065687420646e61) + ((choices >> (4 * (i % 8))) & 15);
	}
}

void content_expect(const struct content *content, uint64_t page_idx, uint32_t version, uint64_t *words)
{
	enum page_class class = content_class(content, page_idx);

	if (is_zero_version(class, version)) {
		memset(words, 0, PAGE_BYTES);
		return;
	}
	if (class == CLASS_SAME) {
		uint64_t word = key_of(content, page_idx, version) | 1;

		for (unsigned i = 0; i < PAGE_WORDS; i++)
			words[i] = word;
		return;
	}
	for (unsigned block_idx = 0; block_idx < BLOCKS; block_idx++) {
		uint64_t key = key_of(content, page_idx, block_version(version, block_idx));

		if (class == CLASS_TEXT)
			expect_text(key, words + block_idx * BLOCK_WORDS);
		else
			expect_random(key, words + block_idx * BLOCK_WORDS);
	}
	words[0] = HEADER_MAGIC;
	words[1] = page_idx;
	words[2] = version;
	words[3] = content->seed;
}

uint32_t content_claimed_version(const struct content *content, uint64_t page_idx, const uint64_t *words)
{
	if (words[0] != HEADER_MAGIC || words[1] != page_idx || words[3] != content->seed)
		return 0;
	return (uint32_t)words[2];
}

static int class_by_name(const char *name, size_t length)
{
	for (int class = 0; class < CLASS_COUNT; class ++)
		if (strlen(class_names[class]) == length && !strncmp(class_names[class], name, length))
			return class;
	return -1;
}

bool content_parse_mix(struct content *content, const char *text)
{
	unsigned percent[CLASS_COUNT] = { 0 };
	unsigned long sum = 0;

	for (;;) {
		size_t length = strcspn(text, "=");
		int class = class_by_name(text, length);
		char *end;

		if (class < 0 || text[length] != '=')
			return false;
		text += length + 1;
		if (*text < '0' || *text > '9')
			return false;
		unsigned long share = strtoul(text, &end, 10);
		if (share > 100)
			return false;
		percent[class] = (unsigned)share;
		sum += share;
		text = end;
		if (*text == '\0')
			break;
		if (*text++ != ',')
			return false;
	}
	if (sum != 100)
		return false;
	memcpy(content->percent, percent, sizeof(percent));
	return true;
}
