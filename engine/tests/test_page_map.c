/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The numbers of pages: each has one owner, and all of them can be had again. */
#include "vm/page_map.h"

#include "harness.h"

#define GIB_PAGES ((uint64_t)1 << 18)

static struct page_map *map;

static uint64_t add(uint64_t pages)
{
	struct error err = { 0 };
	uint64_t page_idx;

	if (page_map_add_pages(map, pages, &page_idx, &err))
		test_fail(__FILE__, __LINE__, "%s", err.message);
	return page_idx;
}

TEST(memory_is_plugged_for_as_long_as_one_likes)
{
	struct error err;
	uint64_t boot_idx, last_idx = 0, same = 0;

	CHECK_OK(page_map_create(&map, &err));
	boot_idx = add(8 * GIB_PAGES);
	for (int i = 0; i < 1000; i++) {
		uint64_t page_idx = add(64 * GIB_PAGES);

		CHECK(page_idx >= boot_idx + 8 * GIB_PAGES &&
		      page_idx + 64 * GIB_PAGES <= PAGE_MAP_MAX_PAGES);
		atomic_store(page_map_word(map, page_idx), 1);
		same += page_idx == last_idx;
		last_idx = page_idx;
		page_map_forget(map, page_idx, 64 * GIB_PAGES);
		page_map_return_pages(map, page_idx);
		CHECK_EQ(atomic_load(page_map_word(map, page_idx)), 0);
	}
	/* Whoever has still an old number in mind finds nothing there, and not something else. */
	CHECK_EQ(same, 0);
	page_map_destroy(map);
}

#define BLOCKS 40

TEST(no_number_has_two_owners)
{
	uint64_t first[BLOCKS], pages[BLOCKS] = { 0 }, seed = 1;
	struct error err;

	CHECK_OK(page_map_create(&map, &err));
	for (int round = 0; round < 20000; round++) {
		size_t i;

		seed = seed * 6364136223846793005u + 1442695040888963407u;
		i = (seed >> 33) % BLOCKS;
		if (pages[i]) {
			page_map_return_pages(map, first[i]);
			pages[i] = 0;
			continue;
		}
		pages[i] = 1 + (seed >> 40) % (16 * GIB_PAGES);
		first[i] = add(pages[i]);
		for (size_t other = 0; other < BLOCKS; other++)
			CHECK(other == i || !pages[other] || first[i] >= first[other] + pages[other] ||
			      first[other] >= first[i] + pages[i]);
	}
	page_map_destroy(map);
}

static void check_walk(uint64_t page_idx, uint64_t end_idx)
{
	uint64_t next_idx = page_idx;

	/* What is passed over was never written. What is not may be 0 all the same. */
	for (struct used_pages at = used_pages(map, page_idx, end_idx); used_pages_next(&at); next_idx++) {
		for (; next_idx < at.page_idx; next_idx++)
			CHECK_EQ(atomic_load(page_map_word(map, next_idx)), 0);
		CHECK_EQ(at.page_idx, next_idx);
		CHECK(at.page_idx < end_idx);
	}
	for (; next_idx < end_idx; next_idx++)
		CHECK_EQ(atomic_load(page_map_word(map, next_idx)), 0);
}

TEST(a_walk_finds_all_that_was_written)
{
	static const uint64_t written[] = { 0, 511, 512, 1535, 5 * 512, 5 * 512 + 1, 9 * 512 - 1 };
	struct error err;

	CHECK_OK(page_map_create(&map, &err));
	add(GIB_PAGES);
	for (struct used_pages at = used_pages(map, 0, GIB_PAGES); used_pages_next(&at);)
		test_fail(__FILE__, __LINE__, "page %llu was never written", (unsigned long long)at.page_idx);
	for (size_t i = 0; i < sizeof written / sizeof *written; i++)
		atomic_store(page_map_word(map, written[i]), i + 1);
	for (size_t from = 0; from < sizeof written / sizeof *written; from++)
		for (uint64_t end_idx = written[from]; end_idx < 10 * 512; end_idx += 97)
			check_walk(written[from], end_idx);
	check_walk(0, GIB_PAGES);
	page_map_destroy(map);
}
