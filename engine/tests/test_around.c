/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Neighbours of page faults: when they come back, and how many. What happens to a page meanwhile is in
 * test_replay.c. */
#include "engine_inside.h"
#include "puppet.h"

#define WINDOW 16
#define PAGES 4096

static const struct layout shared_memory = {
	.memfd_pages = { PAGES }, .regions = { { 0, 0, PAGES } }, .full = 1, .around = 1
};
static const struct layout private_memory = {
	.regions = { { 0, 0, PAGES } }, .full = 1, .around = 1, .private = 1
};

static struct puppet_order order(enum order_kind kind, uint64_t page, uint64_t pages)
{
	return (struct puppet_order){ .kind = kind, .page = page, .pages = pages };
}

static struct nearby *nearby_of(struct rig *rig)
{
	return rig->engine->vm.nearby;
}

static void start_out(struct rig *rig, const struct layout *layout)
{
	rig_start(rig, layout);
	rig_run_job(rig, JOB_SWAP_OUT);
}

static void wake(struct rig *rig)
{
	struct error err = { 0 };

	rig_settle(rig);
	if (engine_wake(rig->engine, true, &err))
		FAIL("engine_wake: %s", err.message);
	CHECK_EQ(rig_await_notice(rig, NOTICE_REPLAY_DONE).code, 0);
}

/* All out; the guest wakes up, and memory is there for all of it. */
static void start_awake(struct rig *rig, const struct layout *layout)
{
	start_out(rig, layout);
	engine_set_wake_budget(rig->engine, UINT64_MAX);
	wake(rig);
}

static void await_neighbours(struct rig *rig)
{
	rig_settle(rig);
	while (!nearby_of(rig)->sleeps || nearby_of(rig)->asked_n != nearby_of(rig)->taken_n)
		sched_yield();
}

static void touch(struct rig *rig, uint64_t page)
{
	CHECK_EQ(puppet_do(rig, 0, 0, order(ORDER_CHECK, page, 1)), 0);
	await_neighbours(rig);
}

static uint64_t brought(struct rig *rig)
{
	return rig_stats(rig).prefetched_pages;
}

static void check_and_stop(struct rig *rig)
{
	puppet_check_all(rig, 0);
	rig_run_job(rig, JOB_SWAP_OUT);
	rig_run_job(rig, JOB_SWAP_IN);
	puppet_check_all(rig, 0);
	CHECK_EQ(rig->odd, 0);
	rig_stop(rig);
}

static void scan(const struct layout *layout)
{
	struct rig rig;
	uint64_t faults;

	start_awake(&rig, layout);
	CHECK_EQ(nearby_of(&rig)->window_pages, 1);
	faults = rig_stats(&rig).fault_count;
	for (uint64_t page = 0; page < PAGES; page++)
		touch(&rig, page);
	faults = rig_stats(&rig).fault_count - faults;
	fprintf(stderr, "%llu page faults for %d pages, %llu brought back ahead\n",
		(unsigned long long)faults, PAGES, (unsigned long long)brought(&rig));
	CHECK_EQ(nearby_of(&rig)->window_pages, WINDOW);
	CHECK(faults < PAGES / 2);
	CHECK(brought(&rig) > PAGES / 2);
	CHECK(rig_stats(&rig).wasted_pages < brought(&rig) / 4);
	/* what came back as a neighbour is known at the next wake-up */
	rig_run_job(&rig, JOB_SWAP_OUT);
	CHECK(rig_stats(&rig).wake_set_pages > PAGES / 2);
	check_and_stop(&rig);
}

TEST(the_window_grows_with_a_scan)
{
	scan(&shared_memory);
}

TEST(so_it_does_in_private_memory)
{
	scan(&private_memory);
}

/* One page of each block, and nothing near it. */
TEST(the_window_shrinks_to_nothing)
{
	static const struct layout large = {
		.memfd_pages = { 2 * PAGES }, .regions = { { 0, 0, 2 * PAGES } }, .full = 1, .around = 1
	};
	struct rig rig;
	uint64_t before;
	uint64_t page = 0;

	start_awake(&rig, &large);
	nearby_of(&rig)->window_pages = WINDOW;
	for (; page < PAGES / 2 * 3; page += WINDOW)
		touch(&rig, page);
	CHECK_EQ(nearby_of(&rig)->window_pages, 1);
	before = brought(&rig);
	CHECK(before > 0);
	for (; page < 2 * PAGES; page += WINDOW)
		touch(&rig, page);
	CHECK_EQ(brought(&rig), before);
	check_and_stop(&rig);
}

/* Nobody waits for them: the page faults of an idle guest bring back only their own pages. */
TEST(not_while_the_guest_is_idle)
{
	struct rig rig;

	start_out(&rig, &shared_memory);
	engine_set_wake_budget(rig.engine, UINT64_MAX);
	nearby_of(&rig)->window_pages = WINDOW;
	for (uint64_t page = 0; page < 10 * WINDOW; page += WINDOW)
		touch(&rig, page);
	CHECK_EQ(rig_resident_pages(&rig, 0, PAGES), 10);
	check_and_stop(&rig);
}

TEST(within_the_budget)
{
	struct rig rig;

	start_out(&rig, &shared_memory);
	wake(&rig); /* no memory was granted yet */
	nearby_of(&rig)->window_pages = WINDOW;
	nearby_of(&rig)->held_back_256 = 0;
	touch(&rig, 0);
	CHECK_EQ(rig_resident_pages(&rig, 0, PAGES), 1);
	engine_set_wake_budget(rig.engine, 5);
	touch(&rig, 2 * WINDOW);
	CHECK_EQ(rig_resident_pages(&rig, 0, PAGES), 7);
	touch(&rig, 4 * WINDOW);
	CHECK_EQ(rig_resident_pages(&rig, 0, PAGES), 8);
	engine_set_wake_budget(rig.engine, 1000);
	touch(&rig, 6 * WINDOW);
	CHECK_EQ(rig_resident_pages(&rig, 0, PAGES), 8 + WINDOW);
	check_and_stop(&rig);
}

/* The page itself is in place by then. */
TEST(no_memory_for_neighbours)
{
	struct rig rig;

	start_awake(&rig, &shared_memory);
	nearby_of(&rig)->window_pages = WINDOW;
	CHECK_OK(failpoint_arm("uffd.copy=times:1:ENOMEM@1"));
	touch(&rig, 0);
	CHECK(rig_resident(&rig, 0));
	touch(&rig, 2 * WINDOW);
	CHECK(rig_resident_pages(&rig, 2 * WINDOW, WINDOW) > 1);
	check_and_stop(&rig);
}

/* Pages of zeros are no neighbours: nothing is stored for them. */
TEST(holes_stay_holes)
{
	static const struct layout with_holes = { .memfd_pages = { 700, 300 },
						  .regions = { { 0, 0, 700 }, { 1, 0, 300 } },
						  .around = 1 };
	struct rig rig;

	start_awake(&rig, &with_holes);
	nearby_of(&rig)->window_pages = WINDOW;
	nearby_of(&rig)->held_back_256 = 0;
	touch(&rig, 0);
	CHECK_EQ(rig_resident_pages(&rig, 0, WINDOW), WINDOW - 2);
	touch(&rig, 703); /* its block is in two regions */
	CHECK_EQ(rig_resident_pages(&rig, 690, 10), 0);
	check_and_stop(&rig);
}

TEST(it_is_off_unless_asked_for)
{
	static const struct layout off = { .memfd_pages = { 64 }, .regions = { { 0, 0, 64 } }, .full = 1 };
	struct rig rig;

	start_awake(&rig, &off);
	CHECK(!nearby_of(&rig));
	for (uint64_t page = 0; page < 64; page += 2)
		CHECK_EQ(puppet_do(&rig, 0, 0, order(ORDER_CHECK, page, 1)), 0);
	rig_settle(&rig);
	CHECK_EQ(rig_resident_pages(&rig, 0, 64), 32);
	check_and_stop(&rig);
}
