/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Replays of wake-ups: what they bring back, and each thing that can happen to a page while a replay is
 * bringing it back, or while it comes back as the neighbour of a page fault, made to happen: that is held at
 * a failpoint, the guest does its part, and it continues. */
#include "engine_inside.h"
#include "poison_marker.h"
#include "puppet.h"

#define PAGE 1	       /* the page that things happen to */
#define SET_PAGES 100  /* from page 0 on */
#define SET_DATA 88    /* that are no holes: every eighth is */
#define OTHER_PAGE 400 /* not in the set */
#define FAULT_PAGE 5   /* a neighbour of PAGE */

static const struct layout two_regions = { .memfd_pages = { 700, 300 },
					   .regions = { { 0, 0, 700 }, { 1, 0, 300 } },
					   .on_disk = 1 };

static struct puppet_order order(enum order_kind kind, uint64_t page, uint64_t pages)
{
	return (struct puppet_order){ .kind = kind, .page = page, .pages = pages };
}

static void start_replay(struct rig *rig)
{
	struct error err = { 0 };

	rig_settle(rig);
	rig->replayed = 0;
	if (engine_wake(rig->engine, true, &err))
		FAIL("engine_wake: %s", err.message);
}

/* Where pages are in tiers, what is out is on disk, and comes back with reads in flight. */
static void swap_out(struct rig *rig)
{
	struct error err;

	rig_run_job(rig, JOB_SWAP_OUT);
	while (TEST_TIERS && engine_flush_step(rig->engine, &err) == 1)
		;
}

static struct notice end_replay(struct rig *rig)
{
	return rig_await_notice(rig, NOTICE_REPLAY_DONE);
}

/* Swap all out and have the guest touch pages 0 to 99, so that the next swap-out learns them. */
static void wake_up(struct rig *rig, enum order_kind kind)
{
	rig_run_job(rig, JOB_SWAP_OUT);
	start_replay(rig);
	CHECK_EQ(end_replay(rig).code, 0);
	for (uint64_t i = 0; i < SET_PAGES; i++)
		puppet_do(rig, 0, 0, order(kind, i * 37 % SET_PAGES, 1));
	rig_settle(rig);
	engine_settle_wake(rig->engine);
}

/* All out, with a set of SET_PAGES pages. */
static void learn(struct rig *rig, const struct layout *layout)
{
	rig_start(rig, layout);
	wake_up(rig, ORDER_TOUCH);
	swap_out(rig);
	CHECK_EQ(rig_stats(rig).wake_set_pages, SET_PAGES);
}

static void check_all_and_stop(struct rig *rig)
{
	puppet_check_all(rig, 0);
	if (rig->forked)
		puppet_check_all(rig, 1);
	rig_run_job(rig, JOB_SWAP_OUT);
	rig_run_job(rig, JOB_SWAP_IN);
	CHECK_EQ(rig_stats(rig).swap_pages, 0);
	puppet_check_all(rig, 0);
	CHECK_EQ(rig->odd, 0);
	rig_stop(rig);
}

TEST(the_set_comes_back_and_nothing_else)
{
	struct rig rig;
	uint64_t faults;

	learn(&rig, &two_regions);
	CHECK_EQ(rig_resident_pages(&rig, 0, 1000), 0);
	start_replay(&rig);
	CHECK_EQ(end_replay(&rig).code, 0);
	CHECK_EQ(rig_resident_pages(&rig, 0, SET_PAGES), SET_PAGES);
	CHECK_EQ(rig_resident_pages(&rig, SET_PAGES, 900), 0);
	CHECK_EQ(rig_stats(&rig).prefetched_pages, SET_PAGES);
	CHECK_EQ(rig_stats(&rig).kept_pages, SET_DATA);
	faults = rig_stats(&rig).fault_count;
	for (uint64_t page = 0; page < 16; page++) /* two of them are zeros */
		puppet_do(&rig, 0, 0, order(ORDER_CHECK, page, 1));
	CHECK_EQ(rig_stats(&rig).fault_count, faults);
	check_all_and_stop(&rig);
}

/* What nobody wrote need not be written again; what the guest writes to at wake-ups comes back writable. */
TEST(what_is_clean_is_not_written_again)
{
	struct engine_stats before, after;
	struct rig rig;

	learn(&rig, &two_regions);
	start_replay(&rig);
	end_replay(&rig);
	before = rig_stats(&rig);
	rig_run_job(&rig, JOB_SWAP_OUT);
	after = rig_stats(&rig);
	CHECK_EQ(after.written_bytes + after.stored_ram_bytes,
		 before.written_bytes + before.stored_ram_bytes);
	check_all_and_stop(&rig);
}

static struct puppet_order write_half(uint64_t page)
{
	return (struct puppet_order){ .kind = ORDER_WRITE, .page = page, .half = 1 };
}

TEST(what_is_written_to_comes_back_writable)
{
	struct rig rig;
	uint64_t faults;

	rig_start(&rig, &two_regions);
	rig_run_job(&rig, JOB_SWAP_OUT);
	start_replay(&rig);
	end_replay(&rig);
	puppet_do(&rig, 0, 0, write_half(PAGE));
	puppet_do(&rig, 0, 0, order(ORDER_TOUCH, PAGE + 1, 1));
	puppet_do(&rig, 0, 0, write_half(PAGE + 1)); /* it has a kept copy */
	puppet_do(&rig, 0, 0, order(ORDER_TOUCH, PAGE + 2, 1));
	rig_run_job(&rig, JOB_SWAP_OUT);
	start_replay(&rig);
	end_replay(&rig);
	CHECK_EQ(rig_stats(&rig).kept_pages, 1);
	faults = rig_stats(&rig).fault_count;
	puppet_do(&rig, 0, 0, write_half(PAGE));
	puppet_do(&rig, 0, 0, write_half(PAGE + 1));
	CHECK_EQ(rig_stats(&rig).fault_count, faults);
	puppet_do(&rig, 0, 0, write_half(PAGE + 2));
	rig_await_fault(&rig, faults);
	check_all_and_stop(&rig);
}

/* A burst of touches of the set starts nothing by itself in the engine: it is reported, once. */
TEST(a_wake_up_is_reported)
{
	struct rig rig;
	uint64_t page = 0;

	learn(&rig, &two_regions);
	while (!rig_stats(&rig).waking && page < SET_PAGES) /* a slow machine may not make it */
		puppet_do(&rig, 0, 0, order(ORDER_TOUCH, page++, 1));
	if (rig_stats(&rig).waking) {
		rig_await_notice(&rig, NOTICE_WAKING);
		CHECK(page > 32);
	}
	check_all_and_stop(&rig);
}

TEST(the_budget_is_kept)
{
	struct rig rig;

	learn(&rig, &two_regions);
	engine_set_wake_budget(rig.engine, 5);
	start_replay(&rig);
	while (rig_resident_pages(&rig, 0, SET_PAGES) < 5)
		sched_yield();
	CHECK_EQ(rig_resident_pages(&rig, 0, SET_PAGES), 5);
	engine_set_wake_budget(rig.engine, 1000);
	CHECK_EQ(end_replay(&rig).code, 0);
	CHECK_EQ(rig_resident_pages(&rig, 0, SET_PAGES), SET_PAGES);
	check_all_and_stop(&rig);
}

TEST(it_can_be_cancelled_while_it_waits_for_memory)
{
	struct rig rig;

	learn(&rig, &two_regions);
	engine_set_wake_budget(rig.engine, 0);
	start_replay(&rig);
	engine_cancel_wake(rig.engine);
	CHECK(end_replay(&rig).cancelled);
	CHECK_EQ(rig_resident_pages(&rig, 0, SET_PAGES), 0);
	check_all_and_stop(&rig);
}

TEST(no_memory_ends_it)
{
	struct notice done;
	struct rig rig;

	learn(&rig, &two_regions);
	CHECK_OK(failpoint_arm("uffd.copy=once:ENOMEM"));
	start_replay(&rig);
	done = end_replay(&rig);
	CHECK_EQ(done.code, ENOMEM);
	check_all_and_stop(&rig);
}

/* Events must be read first: it tries again, and the page comes. */
TEST(a_page_that_cannot_be_copied_now)
{
	struct rig rig;

	learn(&rig, &two_regions);
	CHECK_OK(failpoint_arm("uffd.copy=times:3:EAGAIN"));
	start_replay(&rig);
	CHECK_EQ(end_replay(&rig).code, 0);
	CHECK_EQ(rig_resident_pages(&rig, 0, SET_PAGES), SET_PAGES);
	check_all_and_stop(&rig);
}

/* It leaves the pages out; who needs them reads again. */
TEST(pages_that_read_wrong_are_left_out)
{
	struct rig rig;

	learn(&rig, &two_regions);
	CHECK_OK(failpoint_arm("store.read.corrupt=EIO"));
	start_replay(&rig);
	CHECK_EQ(end_replay(&rig).code, 0);
	CHECK(rig_stats(&rig).prefetched_pages < SET_PAGES);
	CHECK_EQ(rig_stats(&rig).poisoned_pages, 0);
	CHECK_OK(failpoint_arm("store.read.corrupt=off"));
	check_all_and_stop(&rig);
}

/* Zeros that the guest gave up are the host's memory, also if a wake-up touched them. */
TEST(what_was_given_up_stays_a_hole)
{
	struct rig rig;

	learn(&rig, &two_regions);
	puppet_do(&rig, 0, 0, order(ORDER_REMOVE, 7, 1)); /* a hole already */
	puppet_do(&rig, 0, 0, order(ORDER_REMOVE, 20, 4));
	start_replay(&rig);
	CHECK_EQ(end_replay(&rig).code, 0);
	CHECK_EQ(rig_resident_pages(&rig, 0, SET_PAGES), SET_PAGES - 5);
	CHECK(!rig_resident(&rig, 7));
	check_all_and_stop(&rig);
}

TEST(memory_that_nobody_maps_stays_out)
{
	struct rig rig;

	learn(&rig, &two_regions);
	CHECK_EQ(puppet_do(&rig, 0, 0,
			   (struct puppet_order){ .kind = ORDER_DISCARD, .page = 0, .pages = 10 }),
		 0);
	start_replay(&rig);
	CHECK_EQ(end_replay(&rig).code, 0);
	CHECK_EQ(rig_resident_pages(&rig, 0, 10), 0);
	check_all_and_stop(&rig);
}

static const struct layout one_region = { .memfd_pages = { 700 }, .regions = { { 0, 0, 700 } } };

/* Ends while a replay waits for memory; the next engine has its record, and does the replay again. */
TEST(a_successor_does_it_again)
{
	struct engine_config config = { .swap_dir = "/tmp", .workers = 1, .fault_threads = 3 };
	struct error err = { 0 };
	uint64_t out_pages;
	uint32_t last_job;
	struct rig rig;

	learn(&rig, &one_region);
	engine_set_wake_budget(rig.engine, 5);
	start_replay(&rig);
	while (rig_stats(&rig).prefetched_pages < 5)
		sched_yield();
	test_keep_tiers(&config, rig.engine);
	config.page_map_fd = (int)CHECK_SYS(dup(engine_page_map_fd(rig.engine)));
	config.store_fd = TEST_TIERS ? -1 : (int)CHECK_SYS(dup(engine_store_fd(rig.engine)));
	config.wake_fd = (int)CHECK_SYS(dup(engine_wake_fd(rig.engine)));
	engine_destroy(rig.engine);
	CHECK_OK(engine_create(&config, &rig.engine, &err));
	CHECK_OK(engine_add_region(rig.engine, rig.memfds[0], 0, 700 * PAGE_BYTES, &rig.first_idx[0], &err));
	CHECK_OK(rig_add_process(&rig, 0, &err));
	CHECK_OK(engine_recover(rig.engine, &out_pages, &last_job, &err));
	CHECK_OK(engine_start(rig.engine, &err));
	CHECK(engine_was_replaying(rig.engine));
	CHECK(engine_wake_is_ordered(rig.engine));
	CHECK_EQ(rig_stats(&rig).wake_set_pages, SET_PAGES);
	start_replay(&rig);
	CHECK_EQ(end_replay(&rig).code, 0);
	CHECK(!engine_was_replaying(rig.engine));
	CHECK_EQ(rig_resident_pages(&rig, 0, SET_PAGES), SET_PAGES);
	check_all_and_stop(&rig);
	close(config.page_map_fd);
	close(config.wake_fd);
}

/* --- races */

struct point {
	const char *name;
	bool in_gate; /* no event can be read while the replay is held there */
	bool back;    /* the page is there */
};

static const struct point points[] = {
	{ .name = "replay.begins" },
	{ .name = "ahead.claimed" },
	{ .name = "ahead.fetched" },
	{ .name = "ahead.copied", .in_gate = true, .back = true },
	{ .name = "replay.step", .back = true },
};

static const struct point points_around[] = {
	{ .name = "around.chosen" },
	{ .name = "ahead.claimed" },
	{ .name = "ahead.fetched" },
	{ .name = "ahead.copied", .in_gate = true, .back = true },
	{ .name = "around.done", .back = true },
};

static bool by_fault; /* neighbours come back, else a replay brings PAGE back */

/* All out, and the guest wakes up. */
static void wake_with_neighbours(struct rig *rig)
{
	static const struct layout around = { .memfd_pages = { 700, 300 },
					      .regions = { { 0, 0, 700 }, { 1, 0, 300 } },
					      .around = 1,
					      .on_disk = 1 };

	rig_start(rig, &around);
	swap_out(rig);
	engine_set_wake_budget(rig->engine, UINT64_MAX);
	start_replay(rig);
	CHECK_EQ(end_replay(rig).code, 0); /* nothing is known yet */
	rig->engine->vm.nearby->window_pages = 16;
	rig->engine->vm.nearby->held_back_256 = 0;
}

/* The page fault is answered, whatever becomes of its neighbours. */
static void bring_neighbours(struct rig *rig)
{
	CHECK_EQ(puppet_do(rig, 0, 2, order(ORDER_CHECK, FAULT_PAGE, 1)), 0);
}

static void end_bringing(struct rig *rig)
{
	struct nearby *nearby = rig->engine->vm.nearby;

	if (by_fault)
		while (!nearby->sleeps || nearby->asked_n != nearby->taken_n)
			sched_yield();
	else if (!rig->replayed)
		CHECK_EQ(end_replay(rig).code, 0);
}

typedef void scene(struct rig *rig, const struct point *point);

static void at_point(const struct point *point, void (*prepare)(struct rig *rig), scene *play)
{
	struct rig rig;

	fprintf(stderr, "%s, at %s\n", by_fault ? "neighbours" : "replay", point->name);
	if (by_fault)
		wake_with_neighbours(&rig);
	else
		learn(&rig, &two_regions);
	if (prepare)
		prepare(&rig);
	rig_arm(&rig, point->name, "stall");
	if (by_fault)
		bring_neighbours(&rig);
	else
		start_replay(&rig);
	rig_await_point(&rig, point->name);
	play(&rig, point);
	rig_disarm(point->name);
	check_all_and_stop(&rig);
}

static void at_each_point(void (*prepare)(struct rig *rig), scene *play)
{
	by_fault = false;
	for (size_t i = 0; i < sizeof points / sizeof *points; i++)
		at_point(&points[i], prepare, play);
	by_fault = true;
	for (size_t i = 0; i < sizeof points_around / sizeof *points_around; i++)
		at_point(&points_around[i], prepare, play);
}

/* The hand's order is given; it ends now if nothing holds it up, else once the replay continues. */
static void told(struct rig *rig, const struct point *point, struct puppet_order order, bool waits)
{
	puppet_tell(rig, 0, 1, order);
	if (!waits)
		puppet_await(rig, 0, 1);
	rig_disarm(point->name);
	if (waits)
		puppet_await(rig, 0, 1);
	end_bringing(rig);
}

static bool is_held(const struct point *point)
{
	return !strncmp(point->name, "ahead.", 6);
}

/* A demand fault waits for the read that is under way, and reads nothing itself. */
static void play_touch(struct rig *rig, const struct point *point)
{
	uint64_t copied = rig_stats(rig).copied_pages;

	if (is_held(point) && !point->back) {
		struct engine_stats before = rig_stats(rig);

		puppet_tell(rig, 0, 1, order(ORDER_CHECK, PAGE, 1));
		rig_await_fault(rig, before.fault_count);
		CHECK(!puppet_is_done(rig, 0, 1));
		puppet_do(rig, 0, 0, order(ORDER_CHECK, OTHER_PAGE, 1)); /* others do not wait */
		rig_disarm(point->name);
		CHECK_EQ(puppet_await(rig, 0, 1), 0);
		end_bringing(rig);
		rig_settle(rig);
		CHECK_EQ(rig_stats(rig).copied_pages, copied + 1); /* the other page */
		return;
	}
	told(rig, point, order(ORDER_CHECK, PAGE, 1), false);
}

TEST(touch)
{
	at_each_point(NULL, play_touch);
}

static void play_write(struct rig *rig, const struct point *point)
{
	told(rig, point, write_half(PAGE), is_held(point));
}

TEST(write)
{
	at_each_point(NULL, play_write);
}

static void play_remove(struct rig *rig, const struct point *point)
{
	told(rig, point, order(ORDER_REMOVE, PAGE, 3), point->in_gate);
}

TEST(remove)
{
	at_each_point(NULL, play_remove);
}

static void play_discard(struct rig *rig, const struct point *point)
{
	told(rig, point, order(ORDER_DISCARD, PAGE, 3), point->in_gate);
}

TEST(discard)
{
	at_each_point(NULL, play_discard);
}

static void play_remove_and_write(struct rig *rig, const struct point *point)
{
	if (point->in_gate)
		return play_remove(rig, point);
	puppet_do(rig, 0, 1, order(ORDER_REMOVE, PAGE, 3));
	told(rig, point, write_half(PAGE), false);
}

TEST(remove_and_write)
{
	at_each_point(NULL, play_remove_and_write);
}

static void play_fork(struct rig *rig, const struct point *point)
{
	puppet_tell(rig, 0, 1, (struct puppet_order){ .kind = ORDER_FORK, .process = 1 });
	if (point->in_gate)
		rig_disarm(point->name);
	puppet_await(rig, 0, 1);
	rig->process_ids[1] = rig_await_fork(rig).process_id;
	rig_disarm(point->name);
	end_bringing(rig);
	puppet_do(rig, 1, 0, write_half(PAGE));
}

TEST(fork)
{
	at_each_point(NULL, play_fork);
}

/* Pages that a child shares keep their copies only if both are protected. */
static void prepare_fork(struct rig *rig)
{
	rig_fork(rig, 1);
}

static void play_write_in_child(struct rig *rig, const struct point *point)
{
	puppet_tell(rig, 1, 0, write_half(PAGE));
	rig_disarm(point->name);
	puppet_await(rig, 1, 0);
	end_bringing(rig);
}

TEST(write_in_child)
{
	at_each_point(prepare_fork, play_write_in_child);
}

static void play_job(struct rig *rig, const struct point *point, uint32_t job)
{
	struct error err = { 0 };

	/* not rig_start_job(): that waits for the gate */
	if (engine_start_job(rig->engine, job, &rig->options, &err))
		FAIL("engine_start_job: %s", err.message);
	rig_disarm(point->name);
	rig_end_job(rig); /* the replay may end before the job or after it */
	end_bringing(rig);
}

static void play_enable(struct rig *rig, const struct point *point)
{
	play_job(rig, point, JOB_SWAP_OUT);
}

TEST(enable)
{
	at_each_point(NULL, play_enable);
}

static void play_disable(struct rig *rig, const struct point *point)
{
	play_job(rig, point, JOB_SWAP_IN);
	CHECK_EQ(rig_resident_pages(rig, 0, 7), 7);
}

TEST(disable)
{
	at_each_point(NULL, play_disable);
}

static void play_trim(struct rig *rig, const struct point *point)
{
	play_job(rig, point, JOB_TRIM);
}

TEST(trim)
{
	at_each_point(NULL, play_trim);
}

static const struct layout copied_memory = { .regions = { { 0, 0, 700 } }, .private = 1, .inherited = 1 };

static long split_mapping(void *addr, long size_bytes)
{
	return madvise(addr, (size_t)size_bytes, MADV_DONTDUMP);
}

/* The VMM has split a mapping since it forked: there the kernel takes no run of pages, and in the child it
 * would. The child has a copy, and gets nothing of the VMM's. */
TEST(a_child_with_a_copy_gets_nothing)
{
	struct puppet_order split = {
		.kind = ORDER_CALL, .page = PAGE, .run = split_mapping, .argument = 2 * 4096
	};
	struct rig rig;

	if (!mover_can_move())
		test_skip("this kernel has no UFFDIO_MOVE, which is since Linux 6.8");
	learn(&rig, &copied_memory);
	rig_fork(&rig, 1);
	CHECK_EQ(puppet_do(&rig, 0, 0, split), 0);
	start_replay(&rig);
	CHECK_EQ(end_replay(&rig).code, 0);
	puppet_check_all(&rig, 0);
	rig_run_job(&rig, JOB_SWAP_IN);
	puppet_check_all(&rig, 0);
	CHECK_EQ(rig.odd + rig.incidents, 0);
	rig_stop(&rig);
}

/* Whoever needs the page reads it again until it reads right. */
static void play_wrong_bytes(struct rig *rig, const struct point *point)
{
	if (!point->back)
		CHECK_OK(failpoint_arm("store.read.corrupt=times:2:EIO"));
	puppet_tell(rig, 0, 1, order(ORDER_CHECK, PAGE, 1));
	rig_disarm(point->name);
	CHECK_EQ(puppet_await(rig, 0, 1), 0);
	end_bringing(rig);
	CHECK_OK(failpoint_arm("store.read.corrupt=off"));
	CHECK_EQ(rig_stats(rig).poisoned_pages, 0);
}

TEST(wrong_bytes)
{
	at_each_point(NULL, play_wrong_bytes);
}

static long populate(void *addr, long size_bytes)
{
	return madvise(addr, (size_t)size_bytes, MADV_POPULATE_READ);
}

/* It never reads right: the page is poisoned, whatever a replay does with it meanwhile. A later replay leaves
 * it alone, and a swap-in that reads it right heals it. */
static void play_poison(struct rig *rig, const struct point *point)
{
	struct puppet_order touch = { .kind = ORDER_CALL, .page = PAGE, .run = populate, .argument = 4096 };
	bool has_been_read = point->back || !strcmp(point->name, "ahead.fetched");
	struct error err = { 0 };

	if (!has_been_read)
		CHECK_OK(failpoint_arm("store.read.corrupt=EIO"));
	puppet_tell(rig, 0, 1, touch);
	rig_disarm(point->name);
	CHECK_EQ(puppet_await(rig, 0, 1), has_been_read ? 0 : (uint64_t)-1);
	end_bringing(rig);
	CHECK_EQ(rig_stats(rig).poisoned_pages, has_been_read ? 0 : 1);
	CHECK_OK(failpoint_arm("store.read.corrupt=off"));
	rig->replayed = 0;
	CHECK_OK(engine_wake(rig->engine, true, &err));
	CHECK_EQ(end_replay(rig).code, 0);
	CHECK_EQ(rig_stats(rig).poisoned_pages, has_been_read ? 0 : 1);
	CHECK_EQ(rig_resident(rig, PAGE), has_been_read);
	rig_run_job(rig, JOB_SWAP_IN);
	CHECK_EQ(rig_stats(rig).poisoned_pages, 0);
}

TEST(poison)
{
	if (!have_poison())
		test_skip("this kernel has no poison markers, which are since Linux 6.6");
	at_each_point(NULL, play_poison);
}
