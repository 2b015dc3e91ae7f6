/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What each page must hold, as a function of (seed, page, version): nothing about it is stored in guest
 * memory.
 *
 * A version counts writes. One step forward rewrites the header and one eighth of the page, eight steps
 * forward rewrite all of it, so a page that came back one version too old is wrong somewhere, whatever was
 * written. */
#ifndef GUEST_CONTENT_H
#define GUEST_CONTENT_H

#include "common.h"

enum page_class {
	CLASS_RANDOM,	 /* does not compress */
	CLASS_TEXT,	 /* compresses about 3:1 */
	CLASS_SAME,	 /* one 64-bit word repeated */
	CLASS_ZERO,	 /* zeros after fill, random after the next write, zeros after the next, ... */
	CLASS_UNTOUCHED, /* left alone by fill; random once something else writes it */
	CLASS_COUNT,
};

extern const char *const class_names[CLASS_COUNT];

struct content {
	uint64_t seed;
	unsigned percent[CLASS_COUNT]; /* share of each class; sum 100 */
};

enum write_how {
	WRITE_PART,  /* the header and one eighth of the page */
	WRITE_WHOLE, /* every word */
	WRITE_FILL,  /* every word; CLASS_ZERO pages become zeros */
};

enum page_class content_class(const struct content *content, uint64_t page_idx);

/* The version that follows `version` (0: never written) when the page is written in this way. */
uint32_t content_next_version(enum page_class class, uint32_t version, enum write_how how);

/* True if a page of this class can be written in part at this version. */
bool content_allows_part(enum page_class class, uint32_t version);

/* words[0..511] as they must be at this version (at least 8). */
void content_expect(const struct content *content, uint64_t page_idx, uint32_t version, uint64_t *words);

/* True if a part write to `version` rewrites this word. */
bool content_part_covers(uint32_t version, unsigned word_idx);

/* The version that a page's header claims, 0 if it has no header of this page: to say what a wrong page
 * is. */
uint32_t content_claimed_version(const struct content *content, uint64_t page_idx, const uint64_t *words);

/* "random=40,text=30,..."; true and *content filled if the shares are known and their sum is 100. */
bool content_parse_mix(struct content *content, const char *text);

/* A good 64-bit hash step, also the workers' random numbers. */
uint64_t content_mix(uint64_t value);

#endif
