/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Pages that an idle guest touches again soon after each swap-out: which they are, and that they stay. */
#include "large_folios.h"
#include "puppet.h"
#include "wake/wake_layout.h"

#define NOISE 100 /* pages, from page 0 on, that the guest touches in each cycle */
#define ALL UINT64_MAX

/* --- the record, with guests that are made up */

static struct wake_record *new_record(void)
{
	struct wake_record *record;
	struct error err;

	test_await_uptime_s(90); /* age() */
	CHECK_OK(wake_record_create(&record, &err));
	record->seed = 88172645463325252u;
	return record;
}

static uint64_t idle_pages(const struct wake_record *record)
{
	struct wake_stats stats;

	wake_record_stats(record, &stats);
	return stats.idle_pages;
}

/* All that was noted of this cycle was so much earlier. */
static void age(struct wake_record *record, uint64_t ms)
{
	record->header->idle_from_ms -= ms;
	for (uint32_t i = 0; i < record->header->touches_n; i++)
		wake_touches(record)[i] -= ms << TOUCH_MS_SHIFT;
}

/* An idle guest touches these pages unless they stayed, and then for a while nothing more. Returns how many
 * faults it took. */
static uint64_t cycle(struct wake_record *record, uint32_t first, uint32_t n)
{
	uint64_t faults = 0;

	wake_record_begin_leaving(record);
	wake_record_begin(record);
	for (uint32_t page = first; page < first + n; page++) {
		if (wake_record_is_idle(record, page))
			continue;
		wake_record_touch(record, page, true, false);
		faults++;
	}
	age(record, 20000);
	wake_record_fold(record);
	return faults;
}

TEST(known_after_two_cycles)
{
	struct wake_record *record = new_record();

	CHECK_EQ(cycle(record, 0, NOISE), NOISE);
	wake_record_choose_idle(record, ALL);
	CHECK_EQ(idle_pages(record), 0);
	CHECK_EQ(cycle(record, 0, NOISE), NOISE);
	for (int i = 0; i < 20; i++) {
		wake_record_choose_idle(record, ALL);
		CHECK(idle_pages(record) > NOISE / 2);
		CHECK_EQ(cycle(record, 0, NOISE) + idle_pages(record), NOISE);
	}
	wake_record_destroy(record);
}

/* A page that is not touched any more is tried before long, and leaves. */
TEST(what_is_not_touched_any_more_leaves)
{
	struct wake_record *record = new_record();

	cycle(record, 0, NOISE);
	cycle(record, 0, NOISE);
	for (int i = 0; i < 60; i++) {
		wake_record_choose_idle(record, ALL);
		cycle(record, 0, NOISE / 2);
	}
	wake_record_choose_idle(record, ALL);
	for (uint32_t page = NOISE / 2; page < NOISE; page++)
		CHECK(!wake_record_is_idle(record, page));
	CHECK(idle_pages(record) > NOISE / 4);
	wake_record_destroy(record);
}

TEST(no_more_than_may_stay)
{
	struct wake_record *record = new_record();

	cycle(record, 0, NOISE);
	cycle(record, 0, NOISE);
	wake_record_choose_idle(record, 10);
	CHECK_EQ(idle_pages(record), 10);
	for (uint32_t page = NOISE / 2; page < NOISE; page++) /* the first ones stay */
		CHECK(!wake_record_is_idle(record, page));
	wake_record_choose_idle(record, 0);
	CHECK_EQ(idle_pages(record), 0);
	CHECK(!wake_record_is_idle(record, 0));
	wake_record_destroy(record);
}

/* The guest touches these pages, unless they stayed, so long after the swap-out; fast enough for a wake-up,
 * if they are many. Returns how many faults it took. */
static uint64_t burst(struct wake_record *record, uint32_t first, uint32_t n, uint64_t after_ms,
		      bool is_ordered)
{
	uint64_t faults = 0;

	wake_record_begin_leaving(record);
	wake_record_begin(record);
	age(record, after_ms);
	if (is_ordered)
		CHECK(wake_record_wake(record));
	for (uint32_t page = first; page < first + n; page++) {
		if (wake_record_is_idle(record, page))
			continue;
		wake_record_touch(record, page, true, false);
		faults++;
	}
	wake_record_settle(record);
	age(record, 2 * WAKE_EARLY_MS);
	wake_record_fold(record);
	return faults;
}

/* Programs that wake up now and then touch a thousand pages at once after a swap-out. That is no less idle
 * for looking like a wake-up. */
TEST(a_burst_at_once_after_each_swap_out_stays)
{
	struct wake_record *record = new_record();
	uint64_t faults = 0;

	CHECK_EQ(burst(record, 0, 1000, 0, false), 1000);
	wake_record_choose_idle(record, ALL);
	CHECK_EQ(idle_pages(record), 0);
	CHECK_EQ(burst(record, 0, 1000, 0, false), 1000);
	for (int i = 0; i < 20; i++) {
		wake_record_choose_idle(record, ALL);
		faults += burst(record, 0, 1000, 0, false);
	}
	fprintf(stderr, "faults in a cycle: 1000 before, %llu after\n", (unsigned long long)faults / 20);
	CHECK(faults / 20 < 1000 / 16); /* those that are tried */
	wake_record_destroy(record);
}

/* What a replay brings back raises no page fault, so the second time the pages that may stay are left to
 * theirs. Others come back as always. */
TEST(a_replay_does_not_hide_them)
{
	struct wake_record *record = new_record();
	struct wake_page *pages;

	burst(record, 0, 1000, 0, false);
	wake_record_choose_idle(record, 600);
	wake_record_begin(record);
	CHECK_EQ(wake_record_offer(record, &pages), 400);
	CHECK_EQ(pages[0].page_idx, 600);
	free(pages);
	age(record, 2 * WAKE_EARLY_MS); /* this is no such burst */
	CHECK_EQ(wake_record_offer(record, &pages), 1000);
	free(pages);
	wake_record_begin(record);
	CHECK(wake_record_wake(record));
	CHECK_EQ(wake_record_offer(record, &pages), 1000);
	free(pages);
	wake_record_destroy(record);
}

/* A guest that wakes up a while after each swap-out, or because somebody says so, was not idle. */
TEST(a_burst_that_somebody_waits_for_goes_out)
{
	struct wake_record *record = new_record();

	for (int i = 0; i < 4; i++) {
		burst(record, 0, 1000, 2 * WAKE_EARLY_MS, false);
		wake_record_choose_idle(record, ALL);
		CHECK(idle_pages(record) <= WAKE_ANY_PAGES); /* on a busy machine it comes slowly at first */
	}
	wake_record_destroy(record);
	record = new_record();
	for (int i = 0; i < 4; i++) {
		burst(record, 0, 1000, 0, true);
		wake_record_choose_idle(record, ALL);
		CHECK_EQ(idle_pages(record), 0);
	}
	wake_record_destroy(record);
}

TEST(of_too_many_those_stay_that_were_touched_most_often)
{
	struct wake_record *record = new_record();

	for (int i = 0; i < IDLE_TIMES_MAX; i++)
		burst(record, i ? 0 : 1000, i ? 2000 : 1000, 0, false);
	wake_record_choose_idle(record, 900);
	CHECK_EQ(idle_pages(record), 900);
	for (uint32_t page = 0; page < 1000; page++)
		CHECK(!wake_record_is_idle(record, page));
	wake_record_destroy(record);
}

/* Touched in the second minute only: that saves no write, and hardly a fault. */
TEST(what_is_touched_late_goes_out)
{
	struct wake_record *record = new_record();

	for (int i = 0; i < 3; i++) {
		wake_record_begin(record);
		age(record, 61000);
		for (uint32_t page = 0; page < NOISE; page++)
			wake_record_touch(record, page, true, false);
		wake_record_fold(record);
	}
	wake_record_choose_idle(record, ALL);
	CHECK_EQ(idle_pages(record), 0);
	wake_record_destroy(record);
}

/* What comes back while the swap-out is under way is touched most of all. However much it is, it is no
 * wake-up. */
TEST(what_comes_back_during_the_swap_out_counts)
{
	struct wake_record *record = new_record();

	for (int i = 0; i < 2; i++) {
		wake_record_begin_leaving(record);
		for (uint32_t page = 0; page < 2000; page++)
			CHECK(!wake_record_touch(record, page, true, false));
		wake_record_begin(record);
		CHECK(!wake_record_touch(record, 5000, true, false));
		age(record, 20000);
		wake_record_fold(record);
	}
	wake_record_choose_idle(record, ALL);
	CHECK(idle_pages(record) > 1000);
	wake_record_destroy(record);
}

/* A cycle of a moment does not show what an idle guest touches, and Disable does not undo what was seen. */
TEST(what_a_short_or_spoiled_cycle_says)
{
	struct wake_record *record = new_record();

	cycle(record, 0, NOISE);
	cycle(record, 0, NOISE);
	for (int i = 0; i < 5; i++) {
		wake_record_choose_idle(record, 0); /* all go out */
		wake_record_begin(record);
		if (i % 2)
			wake_record_spoil(record);
		wake_record_fold(record);
	}
	wake_record_choose_idle(record, ALL);
	CHECK(idle_pages(record) > NOISE / 2);
	wake_record_spoil(record);
	CHECK_EQ(idle_pages(record), 0);
	wake_record_destroy(record);
}

/* What stayed is neither brought back by a replay nor held back. It is not known if a wake-up touched it, so
 * it does not leave. */
TEST(a_wake_up_in_between)
{
	struct wake_record *record = new_record();
	struct wake_page *pages;

	cycle(record, 0, NOISE);
	cycle(record, 0, NOISE);
	for (int i = 0; i < 4; i++) {
		size_t n;

		wake_record_choose_idle(record, ALL);
		wake_record_begin(record);
		age(record, 20000);
		CHECK(wake_record_wake(record));
		n = wake_record_offer(record, &pages);
		for (size_t k = 0; k < n; k++)
			CHECK(!wake_record_is_idle(record, pages[k].page_idx));
		free(pages);
		for (uint32_t page = 1000; page < 2000; page++)
			wake_record_touch(record, page, true, false);
		wake_record_settle(record);
		wake_record_fold(record);
	}
	wake_record_choose_idle(record, ALL);
	CHECK(idle_pages(record) > NOISE / 4); /* those that were not tried */
	wake_record_destroy(record);
}

TEST(a_successor_knows_them)
{
	struct wake_record *record = new_record(), *next;
	struct error err;

	cycle(record, 0, NOISE);
	cycle(record, 0, NOISE);
	wake_record_choose_idle(record, ALL);
	wake_record_begin_leaving(record);
	CHECK_OK(wake_record_adopt(wake_record_fd(record), &next, &err));
	CHECK_EQ(idle_pages(next), idle_pages(record));
	for (uint32_t page = 0; page < 2 * NOISE; page++)
		CHECK_EQ(wake_record_is_idle(next, page), wake_record_is_idle(record, page));
	CHECK(!wake_record_is_idle(next, UINT64_MAX)); /* there is no such page */
	wake_record_destroy(record);
	wake_record_destroy(next);
}

/* --- a guest and an engine */

static const struct layout two_regions = { .memfd_pages = { 700, 300 },
					   .regions = { { 0, 0, 700 }, { 1, 0, 300 } } };
static const struct layout private = { .regions = { { 0, 0, 700 } }, .private = 1 };

static struct puppet_order order(enum order_kind kind, uint64_t page, uint64_t pages)
{
	return (struct puppet_order){ .kind = kind, .page = page, .pages = pages };
}

/* Swap out; the guest reads some of its noise and writes to the rest. Returns how many faults that took: all
 * that are counted by the time that `least` are. The last one is counted after the guest has its page. */
static uint64_t idle_for_a_while(struct rig *rig, uint64_t least)
{
	uint64_t faults;

	rig_run_job(rig, JOB_SWAP_OUT);
	faults = rig_stats(rig).fault_count;
	for (uint64_t page = 0; page < NOISE; page++) {
		if (page % 2)
			puppet_do(rig, 0, 0, order(ORDER_CHECK, page, 1));
		else
			puppet_do(rig, 0, 0,
				  (struct puppet_order){ .kind = ORDER_WRITE, .page = page, .half = 1 });
	}
	if (least)
		rig_await_fault(rig, faults + least - 1);
	return rig_stats(rig).fault_count - faults;
}

static uint64_t resident_noise(struct rig *rig)
{
	return rig->layout.private ? rig_stats(rig).resident_pages : rig_resident_pages(rig, 0, 1000);
}

static void check_noise_stays(const struct layout *layout)
{
	struct rig rig;
	uint64_t before, after = 0;

	rig_start(&rig, layout);
	rig.options.idle_pages_max = 1000;
	idle_for_a_while(&rig, NOISE);
	CHECK_EQ(rig_stats(&rig).idle_set_pages, 0);
	before = idle_for_a_while(&rig, 0);
	for (int i = 0; i < 8; i++)
		after += idle_for_a_while(&rig, 0);
	fprintf(stderr, "faults in a cycle: %llu before, %llu after\n", (unsigned long long)before,
		(unsigned long long)after / 8);
	CHECK(after / 8 < before / 2);
	rig_run_job(&rig, JOB_SWAP_OUT);
	CHECK_EQ(resident_noise(&rig), rig_stats(&rig).idle_set_pages);
	if (!layout->private) {
		rig_run_job(&rig, JOB_TRIM); /* takes nothing of it either */
		CHECK_EQ(resident_noise(&rig), rig_stats(&rig).idle_set_pages);
	}
	rig.options.idle_pages_max = 0;
	rig_run_job(&rig, JOB_SWAP_OUT);
	CHECK_EQ(resident_noise(&rig), 0);
	puppet_check_all(&rig, 0);
	rig_run_job(&rig, JOB_SWAP_IN);
	CHECK_EQ(rig_stats(&rig).idle_set_pages, 0);
	puppet_check_all(&rig, 0);
	CHECK_EQ(rig.odd, 0);
	rig_stop(&rig);
}

TEST(noise_of_shared_memory)
{
	check_noise_stays(&two_regions);
}

TEST(noise_of_private_memory)
{
	check_noise_stays(&private);
}

/* One page that stays would keep 2 MiB. */
TEST(noise_in_large_folios_goes_out)
{
	static const struct layout huge = {
		.memfd_pages = { 1024 }, .regions = { { 0, 0, 1024 } }, .full = 1, .huge = 1
	};
	struct rig rig;

	use_large_folios("always");
	rig_start(&rig, &huge);
	rig.options.idle_pages_max = 1000;
	for (int i = 0; i < 4; i++) {
		idle_for_a_while(&rig, 0);
		CHECK_EQ(rig_stats(&rig).idle_set_pages, 0);
	}
	puppet_check_all(&rig, 0);
	rig_stop(&rig);
}

/* What the guest has given up while it stayed is gone. */
TEST(given_up_while_it_stayed)
{
	struct rig rig;

	rig_start(&rig, &two_regions);
	rig.options.idle_pages_max = 1000;
	for (int i = 0; i < 3; i++)
		idle_for_a_while(&rig, 0);
	rig_run_job(&rig, JOB_SWAP_OUT);
	CHECK(rig_stats(&rig).idle_set_pages > 0);
	puppet_do(&rig, 0, 0, order(ORDER_REMOVE, 0, NOISE / 2));
	puppet_do(&rig, 0, 0, order(ORDER_DISCARD, NOISE / 2, NOISE / 2));
	rig_run_job(&rig, JOB_SWAP_OUT);
	puppet_check_all(&rig, 0);
	rig_run_job(&rig, JOB_SWAP_IN);
	puppet_check_all(&rig, 0);
	rig_stop(&rig);
}
