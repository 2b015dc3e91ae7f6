/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Reads of some pages at once: which are one read, and what becomes of each page. */
#include "store/near_reads.h"

#include <poll.h>

#include "base/failpoint.h"
#include "base/units.h"
#include "harness.h"
#include "page_cache.h"

#define STORED_PAGES 512

struct many {
	struct store *store;
	struct readers *readers;
	struct reads *reads; /* NULL: each is waited for as it begins */
	uint64_t slots[STORED_PAGES];
	struct near_reads near;
};

static void put_pages(struct many *many)
{
	char *pages = test_pages(STORED_PAGES);
	const void *page[STORED_PAGES];
	struct error err = { 0 };

	for (size_t i = 0; i < STORED_PAGES; i++) {
		page[i] = pages + bytes_of_pages(i);
		memset(pages + bytes_of_pages(i), (int)(i % 251 + 1), PAGE_BYTES);
		memcpy(pages + bytes_of_pages(i), &i, sizeof i);
	}
	CHECK_OK(store_put(many->store, page, NULL, STORED_PAGES, many->slots, &err));
}

/* In a file on disk; pages that went out together lie one after the other. */
static struct many *open_many(bool in_flight)
{
	struct many *many = calloc(1, sizeof *many);
	struct error err = { 0 };

	CHECK_OK(store_create("/var/tmp", &many->store, &err));
	put_pages(many);
	CHECK_OK(readers_create(&many->readers));
	if (in_flight)
		CHECK_OK(reads_create(many->readers, 64, true, &many->reads));
	many->near.store = many->store;
	many->near.pages = test_pages(NEAR_PAGES_MAX);
	many->near.raw = test_pages(NEAR_RAW_BYTES / PAGE_BYTES);
	return many;
}

static void close_many(struct many *many)
{
	reads_destroy(many->reads);
	readers_destroy(many->readers);
	store_destroy(many->store);
	free(many);
}

static void read_only(struct many *many, const size_t *page, size_t n)
{
	uint64_t slots[NEAR_PAGES_MAX];
	struct file_read *file;

	for (size_t i = 0; i < n; i++)
		slots[i] = many->slots[page[i]];
	near_reads_find(&many->near, slots, n);
	near_reads_begin(&many->near, many->reads);
	while (many->near.pending_n) {
		CHECK(reads_submit(many->reads));
		while ((file = reads_take(many->reads)))
			near_reads_run_ended(file);
		if (many->near.pending_n)
			CHECK_EQ(poll(&(struct pollfd){ .fd = reads_fd(many->reads), .events = POLLIN }, 1,
				      60000),
				 1);
	}
}

static void read_pages(struct many *many, const size_t *page, size_t n)
{
	read_only(many, page, n);
	for (size_t i = 0; i < n; i++)
		near_reads_end(&many->near, i);
}

static void check_page(const struct many *many, size_t i, size_t page)
{
	const char *found = many->near.pages + bytes_of_pages(i);
	char wanted[PAGE_BYTES];

	memset(wanted, (int)(page % 251 + 1), PAGE_BYTES);
	memcpy(wanted, &page, sizeof page);
	CHECK_EQ(many->near.result[i], 0);
	CHECK(!memcmp(found, wanted, PAGE_BYTES));
}

static void both_ways(void (*play)(struct many *many))
{
	for (int in_flight = 0; in_flight < 2; in_flight++) {
		struct many *many = open_many(in_flight);

		play(many);
		close_many(many);
	}
}

/* In any order; what lies between is read, too. */
static void play_neighbours(struct many *many)
{
	const size_t pages[] = { 107, 100, 101, 102, 110 };

	read_pages(many, pages, 5);
	CHECK_EQ(many->near.runs_n, 1);
	CHECK_EQ(many->near.runs[0].file.size_bytes, bytes_of_pages(11));
	for (size_t i = 0; i < 5; i++)
		check_page(many, i, pages[i]);
}

TEST(neighbours_are_one_read)
{
	both_ways(play_neighbours);
}

static void play_far(struct many *many)
{
	const size_t pages[] = { 10, 300, 12, 150 };

	read_pages(many, pages, 4);
	CHECK_EQ(many->near.runs_n, 3);
	for (size_t i = 0; i < 4; i++)
		check_page(many, i, pages[i]);
}

TEST(what_is_far_is_a_read_of_its_own)
{
	both_ways(play_far);
}

/* Sixteen pages with the widest gaps would need more memory than there is. */
static void play_gaps(struct many *many)
{
	uint64_t bytes = 0;
	size_t pages[NEAR_PAGES_MAX];

	for (size_t i = 0; i < NEAR_PAGES_MAX; i++)
		pages[i] = i * 9;
	read_pages(many, pages, NEAR_PAGES_MAX);
	CHECK(many->near.runs_n > 1 && many->near.runs_n < NEAR_PAGES_MAX);
	for (size_t i = 0; i < many->near.runs_n; i++)
		bytes += many->near.runs[i].file.size_bytes;
	CHECK(bytes <= NEAR_RAW_BYTES);
	for (size_t i = 0; i < NEAR_PAGES_MAX; i++)
		check_page(many, i, pages[i]);
}

TEST(wide_gaps_do_not_overflow)
{
	both_ways(play_gaps);
}

/* A read that fails fails its own pages only. */
static void play_bad_block(struct many *many)
{
	const size_t pages[] = { 200, 10, 201, 400 };

	CHECK_OK(failpoint_arm("store.read=once:EIO")); /* the read that comes first: page 10 */
	read_pages(many, pages, 4);
	CHECK_EQ(many->near.result[1], -EIO);
	check_page(many, 0, 200);
	check_page(many, 2, 201);
	check_page(many, 3, 400);
}

TEST(a_read_that_fails)
{
	both_ways(play_bad_block);
}

/* The same page twice: a damaged record of wake-ups may say so. */
static void play_twice(struct many *many)
{
	const size_t pages[] = { 5, 5 };

	read_pages(many, pages, 2);
	check_page(many, 0, 5);
	check_page(many, 1, 5);
}

TEST(the_same_page_twice)
{
	both_ways(play_twice);
}

/* Page faults or the guest may have taken all pages over meanwhile. */
static void play_unwanted(struct many *many)
{
	const size_t pages[] = { 10, 12, 300 };

	read_only(many, pages, 3);
	CHECK_EQ(many->near.runs_n, 2);
	CHECK_EQ(cached_pages(store_fd(many->store)), 0);
}

TEST(what_nobody_wants_any_more_does_not_stay_in_the_page_cache)
{
	CHECK_OK(failpoint_arm("store.direct=EINVAL"));
	both_ways(play_unwanted);
}
