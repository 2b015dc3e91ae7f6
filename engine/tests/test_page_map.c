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
