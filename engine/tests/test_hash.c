/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "base/hash.h"
#include "harness.h"

#include <xxhash.h>

/* The values go into page maps that outlive the program: they may not depend on compiler or CPU. */
TEST(hash_values_are_fixed)
{
	unsigned char *page = test_pages(1);

	CHECK_EQ(page_hash(page), (uint32_t)XXH3_64bits(page, 4096)); /* the shared library's own */
	CHECK_EQ(page_hash(page), 0x48c689bau);
	test_fill_page(page, 7);
	CHECK_EQ(page_hash(page), (uint32_t)XXH3_64bits(page, 4096));
}

TEST(hash_sees_every_bit)
{
	unsigned char *page = test_pages(1);
	uint32_t whole;

	test_fill_page(page, 1);
	whole = page_hash(page);
	for (size_t bit = 0; bit < 4096 * 8; bit += 7) {
		page[bit / 8] ^= (unsigned char)(1 << bit % 8);
		CHECK(page_hash(page) != whole);
		page[bit / 8] ^= (unsigned char)(1 << bit % 8);
	}
	CHECK_EQ(page_hash(page), whole);
}

TEST(every_processor_has_the_same_hash)
{
	unsigned char *page = test_pages(1);

	for (uint64_t seed = 0; seed < 100; seed++) {
		test_fill_page(page, seed);
		CHECK_EQ(page_hash_anywhere(page), page_hash(page));
	}
}

TEST(zero_sees_every_byte)
{
	unsigned char *page = test_pages(1);

	CHECK(page_is_zero(page));
	for (size_t at = 0; at < 4096; at++) {
		page[at] = at % 2 ? 1 : 0x80;
		CHECK(!page_is_zero(page));
		page[at] = 0;
	}
	CHECK(page_is_zero(page));
}

TEST(any_alignment_and_not_one_byte_more)
{
	unsigned char *pages = test_pages(3);

	pages[4096 + 12] = 1;
	pages[2 * 4096 + 13] = 1;
	CHECK(!page_is_zero(pages + 12 + 1));
	CHECK(page_is_zero(pages + 4096 + 13));
	CHECK(!page_is_zero(pages + 4096 + 12));
	CHECK(!page_is_zero(pages + 4096 + 14));
	test_fill_page(pages, 3);
	memcpy(pages + 4096 + 5, pages, 4096);
	CHECK_EQ(page_hash(pages + 4096 + 5), page_hash(pages));
}
