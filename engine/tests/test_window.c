/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Guest memory is walked over window by window: all of it, each page once, and never over a large folio's
 * bounds. */
#include "vm/window.h"

#include <sys/syscall.h>

#include "base/failpoint.h"
#include "harness.h"
#include "vm/backing.h"

#define FILE_PAGES (4 * CHUNK_PAGES)

static const struct {
	uint64_t offset_pages, page_idx, pages;
} regions[] = {
	{ 0, 10, 100 },					       /* ends inside of a chunk */
	{ 300, 200, CHUNK_PAGES },			       /* begins and ends inside of one */
	{ CHUNK_PAGES * 2, 2 * CHUNK_PAGES, 2 * CHUNK_PAGES }, /* whole ones, after a gap of page numbers */
};
#define REGIONS_N (sizeof regions / sizeof regions[0])
#define END_IDX (4 * CHUNK_PAGES)

static bool has_data[END_IDX];
static uint64_t mincore_calls;

/* In place of the C library's. */
int mincore(void *at, size_t bytes, unsigned char *found)
{
	mincore_calls++;
	return (int)syscall(SYS_mincore, at, bytes, found);
}

static void write_page(int memfd, size_t region, uint64_t page)
{
	char bytes[PAGE_BYTES] = "data";

	CHECK_EQ(pwrite(memfd, bytes, sizeof bytes,
			(off_t)bytes_of_pages(regions[region].offset_pages + page)),
		 sizeof bytes);
	for (size_t i = 0; i < REGIONS_N; i++) /* regions may share pages of the file */
		if (regions[region].offset_pages + page - regions[i].offset_pages < regions[i].pages)
			has_data[regions[i].page_idx + regions[region].offset_pages + page -
				 regions[i].offset_pages] = true;
}

static void make_memory(struct memory *memory)
{
	int memfd = (int)CHECK_SYS(memfd_create("guest", MFD_CLOEXEC));
	struct region region;
	struct error err;

	CHECK_SYS(ftruncate(memfd, (off_t)bytes_of_pages(FILE_PAGES)));
	memory_init(memory);
	for (size_t i = 0; i < REGIONS_N; i++) {
		CHECK_OK(region_of_memfd(&region, memfd, bytes_of_pages(regions[i].offset_pages),
					 regions[i].page_idx, regions[i].pages, &err));
		CHECK_OK(memory_add(memory, &region, &err));
	}
	write_page(memfd, 0, 0);
	write_page(memfd, 0, 99);
	for (uint64_t page = 150; page < 250; page++) /* over a boundary of the file */
		write_page(memfd, 1, page);
	for (uint64_t page = 0; page < 2 * CHUNK_PAGES; page += 1 + page % 7)
		write_page(memfd, 2, page);
	close(memfd);
}

static void check_window(const struct window *window)
{
	uint64_t first = pages_of_bytes(region_offset_of(&window->region, window->page_idx));

	CHECK(window->pages > 0 && window->page_idx >= window->region.page_idx);
	CHECK(window->page_idx + window->pages <= window->region.page_idx + window->region.pages);
	CHECK_EQ(first / CHUNK_PAGES, (first + window->pages - 1) / CHUNK_PAGES);
}

TEST(data_is_seen_once)
{
	static struct memory memory;
	struct window_cursor cursor = { 0 };
	bool seen[END_IDX] = { 0 };
	struct window window;

	make_memory(&memory);
	while (window_next_data(&memory, &cursor, &window)) {
		check_window(&window);
		for (uint64_t idx = window.page_idx; idx < window.page_idx + window.pages; idx++) {
			CHECK(!seen[idx]);
			seen[idx] = true;
			CHECK_EQ(window_has_data(&window, idx), has_data[idx]);
		}
	}
	CHECK_OK(cursor.error);
	for (uint64_t idx = 0; idx < END_IDX; idx++)
		CHECK(seen[idx] || !has_data[idx]);
	memory_destroy(&memory);
}

/* Else memory of which every second page is a hole takes longer to walk over than to read. */
TEST(a_window_with_many_holes_is_looked_at_once)
{
	static struct memory memory;
	struct window_cursor cursor = { 0 };
	uint64_t windows = 0;
	struct window window;

	make_memory(&memory);
	for (mincore_calls = 0; window_next_data(&memory, &cursor, &window);)
		windows++;
	CHECK(windows >= 4 && mincore_calls <= 2 * windows); /* with those that ask whether we may ask */
	memory_destroy(&memory);
}

/* Where mincore() says nothing, run by run. */
TEST(data_is_seen_without_mincore)
{
	static struct memory memory;
	struct window_cursor cursor = { 0 };
	struct window window;
	uint64_t pages = 0;

	make_memory(&memory);
	CHECK_OK(failpoint_arm("incore.find=EIO"));
	while (window_next_data(&memory, &cursor, &window))
		for (uint64_t idx = window.page_idx; idx < window.page_idx + window.pages; idx++) {
			CHECK_EQ(window_has_data(&window, idx), has_data[idx]);
			pages += has_data[idx];
		}
	for (uint64_t idx = 0; idx < END_IDX; idx++)
		pages -= has_data[idx];
	CHECK_EQ(pages, 0);
	memory_destroy(&memory);
}

/* An end for that reason is not taken for the end of the data. */
TEST(a_search_that_fails_is_told_from_the_end)
{
	static struct memory memory;
	struct window_cursor cursor = { 0 };
	struct window window;

	make_memory(&memory);
	CHECK_OK(failpoint_arm("memory.seek=EIO"));
	CHECK(!window_next_data(&memory, &cursor, &window));
	CHECK_EQ(cursor.error, -EIO);
	CHECK_OK(failpoint_arm("memory.seek=off"));
	memory_destroy(&memory);
}

TEST(a_page_is_in_the_window_around_it)
{
	static struct memory memory;
	struct window window;

	make_memory(&memory);
	for (size_t i = 0; i < REGIONS_N; i++)
		for (uint64_t idx = regions[i].page_idx; idx < regions[i].page_idx + regions[i].pages;
		     idx++) {
			window_around(memory_region_of(&memory, idx), idx, &window);
			check_window(&window);
			CHECK(idx >= window.page_idx && idx < window.page_idx + window.pages);
		}
	memory_destroy(&memory);
}
