/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The replays of test_replay.c, with pages in the tiers. */
#define TEST_TIERS true
#include "test_replay.c"

/* It waits for no thread that brings back something else, too, and has the page before that. */
TEST(a_page_fault_takes_over_what_needs_no_disk)
{
	struct rig rig;
	uint64_t copied_pages;

	rig_start(&rig, &two_regions);
	wake_up(&rig, ORDER_TOUCH);
	rig_run_job(&rig, JOB_SWAP_OUT); /* and nothing is flushed to disk */
	rig_arm(&rig, "ahead.fetched", "stall");
	start_replay(&rig);
	rig_await_point(&rig, "ahead.fetched");
	copied_pages = rig_stats(&rig).copied_pages;
	for (uint64_t page = 0; page < SET_PAGES; page++)
		CHECK_EQ(puppet_do(&rig, 0, 0, order(ORDER_CHECK, page, 1)), 0);
	rig_settle(&rig);
	CHECK_EQ(rig_stats(&rig).copied_pages, copied_pages + SET_DATA);
	rig_disarm("ahead.fetched");
	CHECK_EQ(end_replay(&rig).code, 0);
	CHECK_EQ(rig_stats(&rig).prefetched_pages, 0);
	check_all_and_stop(&rig);
}
