/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A large REMOVE reaches the page map a piece at a time, and nothing that was given up comes back in
 * between. */
#include "puppet.h"
#include "vm/removal.h"

static const struct layout layout = { .memfd_pages = { 8192 }, .regions = { { 0, 0, 8192 } } };

#define REMOVED_PAGES 8000
#define REMOVED 7001 /* of the second piece */
#define OTHER 8101

static const struct puppet_order give_up = { .kind = ORDER_REMOVE, .pages = REMOVED_PAGES };

static void rig_all_out(struct rig *rig)
{
	rig_start(rig, &layout);
	rig_run_job(rig, JOB_SWAP_OUT);
}

static void await_hits(const char *point, uint64_t hits)
{
	for (int waited_ms = 0; failpoint_hits(point) < hits; waited_ms++) {
		if (waited_ms > PUPPET_PATIENCE_MS)
			FAIL("%s was reached %llu times, not %llu", point,
			     (unsigned long long)failpoint_hits(point), (unsigned long long)hits);
		poll(NULL, 0, 1);
	}
}

TEST(a_large_removal_comes_in_pieces)
{
	struct rig rig;
	uint64_t out_pages;

	rig_all_out(&rig);
	out_pages = rig_stats(&rig).swap_pages;
	rig_arm(&rig, "event.piece", "count");
	puppet_do(&rig, 0, 0, give_up);
	puppet_check_all(&rig, 0);
	CHECK(failpoint_hits("event.piece") >= rig.hits + REMOVED_PAGES / REMOVAL_PIECE_PAGES);
	CHECK(rig_stats(&rig).swap_pages < out_pages);
	rig_disarm("event.piece");
	rig_stop(&rig);
}

/* Its bytes were read from the store before the REMOVE was, and are there when the page is still to be struck
 * off. */
TEST(a_page_that_is_given_up_while_it_is_fetched)
{
	struct rig rig;
	uint64_t before;

	rig_all_out(&rig);
	rig_arm(&rig, "resolve.claimed", "stall");
	puppet_tell(&rig, 0, 0, (struct puppet_order){ .kind = ORDER_TOUCH, .page = REMOVED });
	rig_await_point(&rig, "resolve.claimed");
	rig_arm(&rig, "event.piece", "stall");
	puppet_do(&rig, 0, 1, give_up);
	rig_await_point(&rig, "event.piece");
	before = failpoint_hits("event.piece");
	rig_disarm("resolve.claimed");
	await_hits("event.piece", before + 1); /* the thread that fetched has come round */
	CHECK(!puppet_is_done(&rig, 0, 0));
	rig_disarm("event.piece");
	CHECK_EQ(puppet_await(&rig, 0, 0), 0);
	puppet_check_all(&rig, 0);
	rig_stop(&rig);
}

TEST(a_page_that_is_touched_before_it_is_struck_off)
{
	struct rig rig;

	rig_all_out(&rig);
	rig_arm(&rig, "event.piece", "sleep:100");
	puppet_do(&rig, 0, 0, give_up);
	CHECK_EQ(puppet_do(&rig, 0, 0, (struct puppet_order){ .kind = ORDER_TOUCH, .page = REMOVED }), 0);
	puppet_do(&rig, 0, 0, (struct puppet_order){ .kind = ORDER_TOUCH, .page = OTHER });
	puppet_check_all(&rig, 0);
	rig_disarm("event.piece");
	rig_stop(&rig);
}

TEST(a_swap_in_brings_nothing_back_that_is_to_be_struck_off)
{
	struct rig rig;

	rig_all_out(&rig);
	rig_arm(&rig, "event.piece", "stall");
	puppet_do(&rig, 0, 1, give_up);
	rig_await_point(&rig, "event.piece");
	rig_arm(&rig, "restore.awaits-removal", "count");
	rig_start_job(&rig, JOB_SWAP_IN);
	rig_await_point(&rig, "restore.awaits-removal");
	rig_disarm("event.piece");
	rig_disarm("restore.awaits-removal");
	rig_end_job(&rig);
	puppet_check_all(&rig, 0);
	rig_stop(&rig);
}

/* The guest has given the memory up, and its VMM writes to the file there, after the hole and before that is
 * struck off. */
static void write_and_swap_out(struct rig *rig)
{
	static const char bytes[PAGE_BYTES] = "written after the hole";

	rig_arm(rig, "event.piece", "stall");
	puppet_do(rig, 0, 1, give_up);
	rig_await_point(rig, "event.piece");
	CHECK_EQ(pwrite(rig->memfds[0], bytes, sizeof bytes, (off_t)bytes_of_pages(REMOVED)), sizeof bytes);
	rig_run_job(rig, JOB_SWAP_OUT);
	rig_disarm("event.piece");
	while (rig_stats(rig).swap_pages > rig->total_pages - REMOVED_PAGES) /* until it is */
		sched_yield();
	CHECK(rig_resident(rig, REMOVED));
	CHECK_EQ(puppet_do(rig, 0, 0, (struct puppet_order){ .kind = ORDER_TOUCH, .page = REMOVED }),
		 *(const long *)bytes);
	CHECK_EQ(rig_stats(rig).lost_pages, 0);
	rig_stop(rig);
}

TEST(a_resident_page_that_is_written_before_it_is_struck_off)
{
	struct rig rig;

	rig_all_out(&rig);
	puppet_do(&rig, 0, 0, (struct puppet_order){ .kind = ORDER_WRITE, .page = REMOVED });
	rig_settle(&rig);
	write_and_swap_out(&rig);
}

/* It is not lost: its copy was given up. */
TEST(a_page_that_is_out_and_written_before_it_is_struck_off)
{
	struct rig rig;

	rig_all_out(&rig);
	write_and_swap_out(&rig);
}

/* The engine ends with pieces still to come: they are struck off first. */
TEST(a_removal_is_finished_before_the_end)
{
	struct rig rig;
	uint64_t out_pages;

	rig_all_out(&rig);
	out_pages = rig_stats(&rig).swap_pages;
	rig_arm(&rig, "event.piece", "sleep:50");
	puppet_do(&rig, 0, 0, give_up);
	engine_stop(rig.engine);
	CHECK(rig_stats(&rig).swap_pages + REMOVED_PAGES / 2 < out_pages);
	engine_destroy(rig.engine);
}
