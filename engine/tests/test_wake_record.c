/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What is learned from the touches of cycles, with guests that are made up. */
#include "wake/wake_record.h"

#include "base/failpoint.h"
#include "base/units.h"
#include "harness.h"
#include "wake/wake_layout.h"

#define GUEST_PAGES 100000

static struct wake_record *new_record(void)
{
	struct wake_record *record;
	struct error err;

	test_await_uptime_s(30); /* age() */
	CHECK_OK(wake_record_create(&record, &err));
	record->seed = 88172645463325252u; /* the same pages are held back in each run */
	return record;
}

static struct wake_stats stats_of(const struct wake_record *record)
{
	struct wake_stats stats;

	wake_record_stats(record, &stats);
	return stats;
}

/* The pages from first on, in an order that differs by `salt`. */
static void touch_all(struct wake_record *record, uint32_t first, uint32_t n, uint32_t salt, const bool *back)
{
	for (uint32_t i = 0; i < n; i++) {
		uint32_t page = first + (uint32_t)((i * 7919ull + salt * 31ull) % n);

		if (!back || !back[page])
			wake_record_touch(record, page, true, false);
	}
}

static bool back[GUEST_PAGES];

static uint64_t replay(struct wake_record *record)
{
	struct wake_page *pages;
	size_t n = wake_record_offer(record, &pages);

	memset(back, 0, sizeof back);
	for (size_t i = 0; i < n; i++)
		back[pages[i].page_idx] = true;
	free(pages);
	wake_record_prefetched(record, n);
	return n;
}

/* A cycle in which the guest wakes up and touches these pages. Returns how many were brought back in vain. */
static uint64_t cycle(struct wake_record *record, uint32_t first, uint32_t n, uint32_t salt)
{
	uint64_t wasted = 0;

	wake_record_begin(record);
	CHECK(wake_record_wake(record));
	replay(record);
	for (uint32_t page = 0; page < GUEST_PAGES; page++)
		wasted += back[page] && (page < first || page >= first + n);
	touch_all(record, first, n, salt, back);
	wake_record_settle(record);
	wake_record_fold(record);
	return wasted;
}

TEST(the_first_cycle_is_the_set_in_order)
{
	struct wake_record *record = new_record();
	struct wake_page *pages;
	size_t n;

	wake_record_begin(record);
	CHECK(wake_record_wake(record));
	CHECK(!wake_record_wake(record)); /* it is under way */
	for (uint32_t i = 0; i < 500; i++)
		wake_record_touch(record, 100 + i * 3 % 500, true, i % 2);
	wake_record_touch(record, 100, true, true); /* the first touch counts, and all writes */
	CHECK_EQ(wake_record_offer(record, &pages), 0);
	wake_record_settle(record);
	wake_record_touch(record, 5000, true, false); /* it has settled */
	wake_record_fold(record);
	n = wake_record_offer(record, &pages);
	CHECK_EQ(n, 500);
	for (uint32_t i = 0; i < n; i++) {
		CHECK_EQ(pages[i].page_idx, 100 + i * 3 % 500);
		CHECK_EQ(pages[i].is_written, i == 0 || i % 2);
	}
	free(pages);
	wake_record_destroy(record);
}

TEST(a_page_that_is_not_touched_at_two_wake_ups_leaves)
{
	struct wake_record *record = new_record();

	cycle(record, 0, 500, 1);
	for (int i = 0; i < 2; i++) { /* no replay */
		CHECK_EQ(stats_of(record).set_pages, 500);
		wake_record_begin(record);
		CHECK(wake_record_wake(record));
		touch_all(record, 100, 400, 1, NULL);
		wake_record_settle(record);
		wake_record_fold(record);
	}
	CHECK_EQ(stats_of(record).set_pages, 400);
	wake_record_destroy(record);
}

/* The same set again and again: little is held back, all that is held back is needed, and nothing is lost. */
TEST(a_set_that_stays_is_kept)
{
	struct wake_record *record = new_record();

	for (uint32_t i = 0; i < 20; i++)
		CHECK_EQ(cycle(record, 1000, 5000, i), 0);
	CHECK_EQ(stats_of(record).set_pages, 5000);
	CHECK_EQ(stats_of(record).wasted_pages, 0);
	CHECK(stats_of(record).prefetched_pages > 18ull * 5000 * 9 / 10);
	wake_record_destroy(record);
}

/* Each page that is held back costs the guest a page fault. */
TEST(of_a_large_set_few_pages_are_held_back)
{
	struct wake_record *record = new_record();

	for (uint32_t i = 0; i < 4; i++)
		CHECK_EQ(cycle(record, 1000, 50000, i), 0);
	wake_record_begin(record);
	replay(record);
	CHECK(record->header->held_n > 50000 / 90 && record->header->held_n < 50000 / 50);
	wake_record_destroy(record);
}

static void move_by_half(uint32_t set_pages)
{
	struct wake_record *record = new_record();
	uint64_t wasted = 0, before;

	for (uint32_t i = 0; i < 5; i++)
		cycle(record, 0, set_pages, i);
	for (uint32_t i = 0; i < 4; i++) {
		before = stats_of(record).prefetched_pages;
		wasted = cycle(record, set_pages / 2, set_pages, i);
		before = stats_of(record).prefetched_pages - before;
		fprintf(stderr, "cycle %u: %llu of %llu wasted\n", i, (unsigned long long)wasted,
			(unsigned long long)before);
	}
	CHECK(wasted * 100 <= before * 15);
	CHECK(stats_of(record).set_pages < set_pages + set_pages / 8);
	wake_record_destroy(record);
}

TEST(a_set_that_has_moved_by_half)
{
	move_by_half(4000);
}

TEST(a_large_set_that_has_moved_by_half)
{
	move_by_half(40000);
}

/* A guest that never touches the same twice. */
TEST(a_set_that_moves_all_the_time_does_not_grow)
{
	struct wake_record *record = new_record();
	uint64_t wasted = 0;

	for (uint32_t i = 0; i < 60; i++)
		wasted += cycle(record, i * 1000, 1000, i);
	CHECK(stats_of(record).set_pages < 4000);
	CHECK(stats_of(record).wasted_pages * 4 > wasted * 3); /* the estimate is near what was so */
	CHECK(stats_of(record).wasted_pages * 4 < wasted * 5);
	wake_record_destroy(record);
}

TEST(a_replay_for_nothing_is_all_waste)
{
	struct wake_record *record = new_record();

	cycle(record, 0, 500, 1);
	wake_record_begin(record);
	replay(record);
	wake_record_fold(record);
	CHECK_EQ(stats_of(record).wasted_pages, 500);
	CHECK_EQ(stats_of(record).set_pages, 500);
	wake_record_destroy(record);
}

/* Disable has brought all back: nobody knows what the guest would have touched. */
TEST(a_spoiled_cycle_forgets_nothing)
{
	struct wake_record *record = new_record();

	cycle(record, 0, 500, 1);
	for (int i = 0; i < 3; i++) {
		wake_record_begin(record);
		CHECK(wake_record_wake(record));
		touch_all(record, 500, 100, 1, NULL);
		wake_record_spoil(record);
		wake_record_touch(record, 9000, true, false);
		wake_record_fold(record);
	}
	CHECK_EQ(stats_of(record).set_pages, 600);
	wake_record_destroy(record);
}

/* --- noise and wake-ups */

/* Touches of the same pages until they are a wake-up: on a busy machine they may come too slowly at first. */
static void touch_until_it_wakes(struct wake_record *record, uint32_t first, uint32_t n)
{
	for (uint32_t i = 0; !wake_record_touch(record, first + i % n, true, false); i++)
		;
}

TEST(pages_of_an_idle_guest_are_no_wake_up)
{
	struct wake_record *record = new_record();

	cycle(record, 0, 5000, 1);
	for (int i = 0; i < 3; i++) {
		wake_record_begin(record);
		for (uint32_t page = 0; page < 100; page++)
			if (wake_record_touch(record, page, true, false))
				CHECK(i < IDLE_TIMES_KNOWN); /* they are in the set, and not known yet */
		CHECK_EQ(stats_of(record).is_waking, i < IDLE_TIMES_KNOWN);
		wake_record_settle(record);
		wake_record_fold(record);
	}
	wake_record_begin(record);
	touch_until_it_wakes(record, 2000, 30);
	CHECK(stats_of(record).is_waking);
	wake_record_destroy(record);
}

TEST(many_unknown_pages_are_a_wake_up)
{
	struct wake_record *record = new_record();

	wake_record_begin(record);
	for (uint32_t page = 0; page < WAKE_ANY_PAGES; page++)
		CHECK(!wake_record_touch(record, page, true, false));
	touch_until_it_wakes(record, 1000, 1000);
	wake_record_destroy(record);
}

/* It is noted further, so that the wake-up that is to come is not missed. */
TEST(what_looked_like_a_wake_up_and_was_none)
{
	struct wake_record *record = new_record();

	cycle(record, 0, 5000, 1);
	cycle(record, 0, 5000, 2); /* from the next on, some are held back */
	wake_record_begin(record);
	touch_until_it_wakes(record, 0, 40);
	CHECK(!wake_record_settle(record));
	CHECK(!stats_of(record).is_waking);
	touch_until_it_wakes(record, 0, 40);
	replay(record);
	CHECK(!wake_record_settle(record));
	touch_until_it_wakes(record, 0, 40);
	CHECK(stats_of(record).is_waking);
	touch_all(record, 0, 5000, 1, back);
	record->header->idle_from_ms -= 2 * WAKE_EARLY_MS; /* it did not begin at once */
	CHECK(wake_record_settle(record));
	CHECK(!wake_record_touch(record, 0, true, false));
	CHECK(!wake_record_wake(record)); /* until the next swap-out */
	wake_record_destroy(record);
}

/* All that was noted of this cycle was so much earlier. */
static void age(struct wake_record *record, uint64_t ms)
{
	record->header->idle_from_ms -= ms;
	for (uint32_t i = 0; i < record->header->touches_n; i++)
		wake_touches(record)[i] -= ms << TOUCH_MS_SHIFT;
}

/* What an idle guest does at once after a swap-out may look like a wake-up. The one that somebody waits for
 * is not missed for that, and neither is what the guest touches while it is idle in between. */
TEST(a_wake_up_at_once_is_not_the_last_one)
{
	struct wake_record *record = new_record();

	for (int i = 0; i < 2; i++) {
		wake_record_begin(record);
		touch_until_it_wakes(record, 0, 1000);
		touch_all(record, 0, 1000, 1, NULL);
		CHECK(wake_record_settle(record));
		age(record, WAKE_EARLY_MS / 5);
		for (uint32_t page = 5000; page < 5020; page++)
			CHECK(!wake_record_touch(record, page, true, false));
		age(record, 2 * WAKE_EARLY_MS);
		touch_until_it_wakes(record, 7000, 1000);
		touch_all(record, 7000, 1000, 1, NULL);
		CHECK(wake_record_settle(record));
		CHECK(!wake_record_touch(record, 9000, true, false)); /* this was it */
		wake_record_fold(record);
	}
	CHECK_EQ(stats_of(record).set_pages, 2020);
	wake_record_choose_idle(record, UINT64_MAX);
	CHECK(stats_of(record).idle_pages > 900 && stats_of(record).idle_pages < 1500);
	for (uint32_t page = 7500; page < 8000; page++) /* the first ones were not known to be a wake-up */
		CHECK(!wake_record_is_idle(record, page));
	wake_record_destroy(record);
}

/* --- a successor */

static struct wake_record *successor(struct wake_record *record)
{
	struct wake_record *next;
	struct error err;

	CHECK_OK(wake_record_adopt(wake_record_fd(record), &next, &err));
	wake_record_destroy(record);
	return next;
}

TEST(a_successor_continues)
{
	struct wake_record *record = new_record();

	cycle(record, 0, 500, 1);
	wake_record_begin(record);
	CHECK(wake_record_wake(record));
	touch_all(record, 500, 100, 1, NULL);
	wake_record_set_replaying(record, true);
	record = successor(record);
	CHECK(stats_of(record).is_waking && stats_of(record).is_replaying);
	touch_all(record, 600, 100, 1, NULL);
	wake_record_fold(record);
	CHECK_EQ(stats_of(record).set_pages, 700);
	wake_record_begin(record);
	touch_until_it_wakes(record, 600, 100);
	wake_record_destroy(record);
}

/* Killed while the new set was being written: the old one is whole. */
TEST(killed_in_the_middle_of_a_fold)
{
	struct wake_record *record = new_record();
	int status;
	pid_t pid;

	cycle(record, 0, 500, 1);
	wake_record_begin(record);
	CHECK(wake_record_wake(record));
	touch_all(record, 500, 100, 1, NULL);
	pid = (pid_t)CHECK_SYS(fork());
	if (pid == 0) {
		failpoint_arm("wake.folded=kill");
		wake_record_fold(record);
		_exit(1);
	}
	CHECK_SYS(waitpid(pid, &status, 0));
	CHECK(WIFSIGNALED(status));
	record = successor(record);
	CHECK_EQ(stats_of(record).set_pages, 500);
	cycle(record, 0, 500, 1);
	wake_record_destroy(record);
}

static void spoil_header(struct wake_header *header, unsigned i)
{
	switch (i) {
	case 0:
		header->magic[0] ^= 1;
		break;
	case 1:
		header->version++;
		break;
	case 2:
		header->current = 2;
		break;
	case 3:
		header->phase = 77;
		break;
	case 4:
		header->set_n[header->current] = UINT32_MAX;
		break;
	}
}

TEST(nothing_of_it_is_trusted)
{
	for (unsigned i = 0; i < 6; i++) {
		struct wake_record *record = new_record();

		cycle(record, 0, 500, 1);
		spoil_header(record->header, i);
		if (i == 5)
			wake_set(record, record->header->current)[17].page_idx = UINT32_MAX;
		record = successor(record);
		CHECK_EQ(stats_of(record).set_pages, 0);
		cycle(record, 0, 500, 1);
		CHECK_EQ(stats_of(record).set_pages, 500);
		wake_record_destroy(record);
	}
}

TEST(random_bytes_are_survived)
{
	uint64_t seed = 42;

	for (unsigned round = 0; round < 20; round++) {
		struct wake_record *record = new_record();
		uint64_t *words = (uint64_t *)record->base;

		for (uint64_t i = 2; i < WAKE_FILE_BYTES / 8; i++) {
			seed = seed * 6364136223846793005u + 1442695040888963407u;
			words[i] = seed >> (round % 4 * 16);
		}
		record->header->phase = round % 4;
		record->header->current = round % 2;
		record->header->set_n[round % 2] = 1000;
		record = successor(record);
		CHECK(stats_of(record).set_pages <= WAKE_PAGES_MAX);
		wake_record_fold(record);
		replay(record);
		CHECK(stats_of(record).set_pages <= WAKE_PAGES_MAX);
		wake_record_destroy(record);
	}
}

TEST(other_files_are_no_record)
{
	int pipe_fds[2], memfd = (int)CHECK_SYS(memfd_create("small", MFD_CLOEXEC | MFD_ALLOW_SEALING));
	struct wake_record *record;
	struct error err;

	CHECK_SYS(pipe(pipe_fds));
	CHECK_OK(wake_record_adopt(pipe_fds[0], &record, &err));
	wake_record_destroy(record);
	CHECK_OK(wake_record_adopt(memfd, &record, &err));
	CHECK_EQ(stats_of(record).set_pages, 0);
	wake_record_destroy(record);
}

TEST(more_pages_than_there_is_room_for)
{
	struct wake_record *record = new_record();

	wake_record_begin(record);
	CHECK(wake_record_wake(record));
	for (uint32_t page = 0; page < WAKE_PAGES_MAX + 1000; page++)
		wake_record_touch(record, page, true, false);
	wake_record_touch(record, (uint64_t)1 << 40, true, false); /* there is no such page */
	wake_record_fold(record);
	CHECK_EQ(stats_of(record).set_pages, WAKE_PAGES_MAX);
	wake_record_destroy(record);
}
