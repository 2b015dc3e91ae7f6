/* SPDX-License-Identifier: GPL-2.0-or-later */
/* One thread serves all faults, and storage does not answer: reads are in flight many at a time, and nothing
 * waits behind them that needs no storage. The failpoint in the reading threads is the storage. */
#include "puppet.h"
#include "uring.h"

static const struct layout layout = {
	.memfd_pages = { 512 }, .regions = { { 0, 0, 512 } }, .one_thread = 1, .no_uring = 1, .on_disk = 1
};

#define HOLE 7 /* out, and nowhere in the store */
#define FIRST 8
#define GIVEN_UP 100

static void tell_touch(struct rig *rig, uint32_t process, uint32_t hand, uint64_t page)
{
	puppet_tell(rig, process, hand, (struct puppet_order){ .kind = ORDER_TOUCH, .page = page });
}

static void await_reads(const struct rig *rig, uint64_t n)
{
	while (failpoint_hits("store.read") < rig->hits + n)
		sched_yield();
}

static void start_with(struct rig *rig, const struct layout *memory)
{
	rig_start(rig, memory);
	rig_fork(rig, 1);
	rig_fork(rig, 2);
	rig_run_job(rig, JOB_SWAP_OUT);
	rig_settle(rig);
	rig_arm(rig, "store.read", "stall");
}

static void start(struct rig *rig)
{
	start_with(rig, &layout);
}

/* The whole of what each hand got is right, too. */
static void stop(struct rig *rig)
{
	puppet_check_all(rig, 0);
	CHECK_EQ(rig->odd, 0);
	rig_stop(rig);
}

TEST(reads_are_in_flight_together_and_zeros_pass_them)
{
	struct rig rig;

	start(&rig);
	for (uint32_t hand = 0; hand < 3; hand++)
		tell_touch(&rig, 0, hand, FIRST + hand);
	tell_touch(&rig, 1, 0, FIRST + 3);
	await_reads(&rig, 4); /* all, of one thread */
	tell_touch(&rig, 2, 0, HOLE);
	CHECK_EQ(puppet_await(&rig, 2, 0), 0);
	for (uint32_t hand = 0; hand < 3; hand++)
		CHECK(!puppet_is_done(&rig, 0, hand));
	rig_disarm("store.read");
	for (uint32_t hand = 0; hand < 3; hand++)
		puppet_await(&rig, 0, hand);
	puppet_await(&rig, 1, 0);
	stop(&rig);
}

TEST(a_remove_and_a_fork_pass_reads)
{
	struct rig rig;

	start(&rig);
	for (uint32_t hand = 1; hand < PUPPET_HANDS; hand++)
		tell_touch(&rig, 0, hand, FIRST + hand);
	await_reads(&rig, PUPPET_HANDS - 1);
	puppet_do(&rig, 0, 0, (struct puppet_order){ .kind = ORDER_REMOVE, .page = GIVEN_UP });
	rig_fork(&rig, 3);
	CHECK_EQ(puppet_do(&rig, 3, 0, (struct puppet_order){ .kind = ORDER_TOUCH, .page = GIVEN_UP }), 0);
	rig_disarm("store.read");
	for (uint32_t hand = 1; hand < PUPPET_HANDS; hand++)
		puppet_await(&rig, 0, hand);
	stop(&rig);
}

/* The page that is read is given up, and written anew: what was read is not used. */
TEST(a_remove_of_the_page_that_is_read)
{
	struct rig rig;

	start(&rig);
	tell_touch(&rig, 1, 0, FIRST);
	await_reads(&rig, 1);
	puppet_do(&rig, 0, 0, (struct puppet_order){ .kind = ORDER_REMOVE, .page = FIRST });
	puppet_do(&rig, 0, 0, (struct puppet_order){ .kind = ORDER_WRITE, .page = FIRST });
	rig_disarm("store.read");
	puppet_await(&rig, 1, 0);
	stop(&rig);
}

TEST(a_page_that_many_want_is_read_once)
{
	struct rig rig;
	uint64_t faults;

	start(&rig);
	faults = rig_stats(&rig).fault_count;
	tell_touch(&rig, 0, 0, FIRST);
	await_reads(&rig, 1);
	for (uint32_t hand = 1; hand < PUPPET_HANDS; hand++)
		tell_touch(&rig, 0, hand, FIRST);
	tell_touch(&rig, 1, 0, FIRST);
	rig_await_fault(&rig, faults + PUPPET_HANDS - 1); /* the others have joined */
	rig_disarm("store.read");
	for (uint32_t hand = 0; hand < PUPPET_HANDS; hand++)
		puppet_await(&rig, 0, hand);
	puppet_await(&rig, 1, 0);
	CHECK_EQ(failpoint_hits("store.read"), rig.hits + 1);
	stop(&rig);
}

static void *touch_one(void *addr)
{
	return (void *)(uintptr_t)atomic_load((_Atomic uint64_t *)addr);
}

/* By a thread each. */
static long touch_at_once(void *addr, long pages)
{
	pthread_t threads[400];
	pthread_attr_t attr;

	pthread_attr_init(&attr);
	pthread_attr_setstacksize(&attr, (size_t)256 << 10);
	for (long page = 0; page < pages; page++)
		CHECK_OK(pthread_create(&threads[page], &attr, touch_one,
					(char *)addr + page * (long)PAGE_BYTES));
	for (long page = 0; page < pages; page++)
		pthread_join(threads[page], NULL);
	return 0;
}

/* More than can be read at once: they are read as places get free, and zeros pass them all. */
TEST(more_faults_than_reads)
{
	struct puppet_order touch = {
		.kind = ORDER_CALL, .page = FIRST, .run = touch_at_once, .argument = 300
	};
	struct rig rig;

	start(&rig);
	puppet_tell(&rig, 0, 0, touch);
	await_reads(&rig, 32);
	tell_touch(&rig, 2, 0, HOLE);
	CHECK_EQ(puppet_await(&rig, 2, 0), 0);
	CHECK(!puppet_is_done(&rig, 0, 0));
	rig_disarm("store.read");
	puppet_await(&rig, 0, 0);
	stop(&rig);
}

/* The device is asked for the last time, and answers: the threads' end waits for that. */
static void *let_go(void *argument)
{
	while (failpoint_hits("store.read") < ((struct rig *)argument)->hits + 3)
		sched_yield();
	rig_disarm("store.read");
	return NULL;
}

TEST(an_engine_stops_while_reads_are_in_flight)
{
	struct rig rig;
	pthread_t thread;

	start(&rig);
	for (uint32_t hand = 0; hand < 3; hand++)
		tell_touch(&rig, 0, hand, FIRST + hand);
	await_reads(&rig, 3);
	CHECK_OK(pthread_create(&thread, NULL, let_go, &rig));
	engine_stop(rig.engine);
	pthread_join(thread, NULL);
	for (uint32_t hand = 0; hand < 3; hand++)
		puppet_await(&rig, 0, hand);
	rig_stop(&rig);
}

/* Page faults that nobody has read. */
static unsigned long pending_faults(const struct rig *rig)
{
	char path[64], line[256];
	unsigned long pending = 0;
	FILE *info;

	snprintf(path, sizeof path, "/proc/self/fdinfo/%d", rig->uffds[0]);
	info = fopen(path, "re");
	CHECK(info);
	while (fgets(line, sizeof line, info))
		sscanf(line, "pending: %lu", &pending);
	fclose(info);
	return pending;
}

/* They are read at once, and each thread takes one: also those threads that sleep while there are few. */
TEST(faults_that_were_read_together_are_taken_by_all_threads)
{
	static const struct layout six = { .memfd_pages = { 512 },
					   .regions = { { 0, 0, 512 } },
					   .six_threads = 1 };
	struct puppet_order touch = {
		.kind = ORDER_CALL, .page = FIRST, .run = touch_at_once, .argument = 12
	};
	struct rig rig;

	rig_start(&rig, &six);
	rig_run_job(&rig, JOB_SWAP_OUT);
	rig_arm(&rig, "fault.reading", "stall");
	puppet_tell(&rig, 0, 0, touch);
	while (pending_faults(&rig) < 12)
		sched_yield();
	rig_arm(&rig, "resolve.claimed", "stall");
	rig_disarm("fault.reading");
	while (failpoint_hits("resolve.claimed") < rig.hits + 6)
		sched_yield();
	rig_disarm("resolve.claimed");
	puppet_await(&rig, 0, 0);
	stop(&rig);
}

/* A copy fails until an event was read of which epoll need not tell this thread again, and the page is read
 * anew each time. */
TEST(events_are_read_before_a_page_is_tried_again)
{
	static const struct layout one = { .memfd_pages = { 512 },
					   .regions = { { 0, 0, 512 } },
					   .one_thread = 1 };
	uint64_t before;
	struct rig rig;

	rig_start(&rig, &one);
	rig_run_job(&rig, JOB_SWAP_OUT);
	rig_arm(&rig, "uffd.copy", "EAGAIN");
	tell_touch(&rig, 0, 0, FIRST);
	rig_await_point(&rig, "uffd.copy"); /* its fault was read */
	before = failpoint_hits("fault.reading");
	while (failpoint_hits("fault.reading") < before + 3)
		sched_yield();
	puppet_do(&rig, 0, 1, (struct puppet_order){ .kind = ORDER_REMOVE, .page = GIVEN_UP });
	rig_disarm("uffd.copy");
	puppet_await(&rig, 0, 0);
	stop(&rig);
}

/* Of each `every` pages of these, one is in the set. */
static void learn_a_wake_up_of(struct rig *rig, uint64_t pages, uint64_t every)
{
	struct error err = { 0 };

	rig_disarm("store.read");
	for (uint64_t page = FIRST; page < FIRST + pages; page += every)
		puppet_do(rig, 0, 0, (struct puppet_order){ .kind = ORDER_TOUCH, .page = page });
	rig_settle(rig);
	CHECK_OK(engine_wake(rig->engine, true, &err));
	rig_await_notice(rig, NOTICE_REPLAY_DONE);
	engine_settle_wake(rig->engine);
	rig_run_job(rig, JOB_SWAP_OUT);
	rig_settle(rig);
	rig->replayed = 0;
}

/* Beside the window that is copied, one is read. */
TEST(a_swap_in_has_two_reads_in_flight_for_each_worker)
{
	static const struct layout windows = {
		.memfd_pages = { 2048 }, .regions = { { 0, 0, 2048 } }, .full = 1, .no_uring = 1, .on_disk = 1
	};
	struct rig rig;

	start_with(&rig, &windows);
	rig_start_job(&rig, JOB_SWAP_IN);
	await_reads(&rig, 2); /* of one worker that was asked for */
	rig_disarm("store.read");
	rig_end_job(&rig);
	stop(&rig);
}

static void learn_a_wake_up(struct rig *rig)
{
	learn_a_wake_up_of(rig, 100, 1);
}

/* Sixteen pages that are no neighbours have been read together: the one that a page fault waits for is put in
 * place first. */
TEST(what_a_page_fault_waits_for_goes_first)
{
	static const struct layout all = { .memfd_pages = { 512 },
					   .regions = { { 0, 0, 512 } },
					   .full = 1,
					   .one_thread = 1,
					   .no_uring = 1,
					   .on_disk = 1 };
	struct error err = { 0 };
	struct rig rig;

	start_with(&rig, &all);
	learn_a_wake_up_of(&rig, 32, 2); /* one batch */
	rig_arm(&rig, "store.read", "stall");
	CHECK_OK(engine_wake(rig.engine, true, &err));
	await_reads(&rig, 1);
	tell_touch(&rig, 0, 1, FIRST + 30); /* the last one: it joins the read */
	while (rig_stats(&rig).touched_pages < 1)
		sched_yield();
	rig_arm(&rig, "ahead.copied", "stall");
	rig_disarm("store.read");
	rig_await_point(&rig, "ahead.copied");
	puppet_await(&rig, 0, 1);
	CHECK_EQ(rig_resident_pages(&rig, FIRST, 32), 1);
	rig_disarm("ahead.copied");
	CHECK_EQ(rig_await_notice(&rig, NOTICE_REPLAY_DONE).code, 0);
	stop(&rig);
}

/* One worker has some batches of pages in flight, and page faults pass them. */
TEST(a_replay_has_reads_in_flight_together)
{
	struct error err = { 0 };
	struct rig rig;

	start(&rig);
	learn_a_wake_up(&rig);
	rig_arm(&rig, "store.read", "stall");
	CHECK_OK(engine_wake(rig.engine, true, &err));
	await_reads(&rig, 4);
	CHECK_EQ(puppet_do(&rig, 0, 0, (struct puppet_order){ .kind = ORDER_CHECK, .page = HOLE }), 0);
	tell_touch(&rig, 0, 1, FIRST); /* it joins a read */
	rig_disarm("store.read");
	puppet_await(&rig, 0, 1);
	CHECK_EQ(rig_await_notice(&rig, NOTICE_REPLAY_DONE).code, 0);
	stop(&rig);
}

/* A device may give less than was asked for. Nothing else is in flight that would wake up who waits for the
 * rest. */
TEST(a_replay_reads_the_rest_of_what_was_cut_short)
{
	static const struct layout ring = {
		.memfd_pages = { 512 }, .regions = { { 0, 0, 512 } }, .one_thread = 1, .on_disk = 1
	};
	struct error err = { 0 };
	struct rig rig;

	close(uring_open());
	start_with(&rig, &ring);
	learn_a_wake_up(&rig);
	rig_arm(&rig, "reads.cut", "EIO");
	CHECK_OK(engine_wake(rig.engine, true, &err));
	CHECK_EQ(rig_await_notice(&rig, NOTICE_REPLAY_DONE).code, 0);
	CHECK(failpoint_hits("reads.cut") > rig.hits);
	rig_disarm("reads.cut");
	stop(&rig);
}
