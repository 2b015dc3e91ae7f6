/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A child is forked, and there is no memory for it in the engine, or no place in epoll's sets: it is served
 * all the same. */
#include "puppet.h"

static const struct layout layout = { .memfd_pages = { 512 }, .regions = { { 0, 0, 512 } }, .full = 1 };

static const struct puppet_order fork_one = { .kind = ORDER_FORK, .process = 1 };

static void all_out(struct rig *rig)
{
	rig_start(rig, &layout);
	rig_run_job(rig, JOB_SWAP_OUT);
}

/* For as long as there is none: the event stays unread. The fork, and other page faults of the process, wait
 * for that. */
TEST(memory_comes_later)
{
	struct rig rig;

	/* before any event was read: what was reserved once stays */
	CHECK_OK(failpoint_arm("spaces.reserve=ENOMEM"));
	rig_start(&rig, &layout);
	rig.hits = failpoint_hits("spaces.reserve");
	puppet_tell(&rig, 0, 0, fork_one);
	rig_await_point(&rig, "spaces.reserve");
	CHECK(!puppet_is_done(&rig, 0, 0));
	rig_disarm("spaces.reserve");
	puppet_await(&rig, 0, 0);
	rig.process_ids[1] = rig_await_notice(&rig, NOTICE_PROCESS_FORKED).process_id;
	CHECK(rig.odd > 0); /* reported, by each thread that has tried */
	rig_run_job(&rig, JOB_SWAP_OUT);
	puppet_check_all(&rig, 1);
	rig_stop(&rig);
}

TEST(no_place_in_epoll)
{
	struct rig rig;

	all_out(&rig);
	CHECK_OK(failpoint_arm("adopt.watch=ENOSPC"));
	rig_fork(&rig, 1);
	CHECK_EQ(puppet_do(&rig, 1, 0, (struct puppet_order){ .kind = ORDER_CHECK, .pages = 256 }), 0);
	CHECK_EQ(rig.odd, 1);
	rig_arm(&rig, "adopt.watch", "count");
	rig_await_point(&rig, "adopt.watch"); /* tried again */
	rig_disarm("adopt.watch");
	puppet_check_all(&rig, 1);
	puppet_check_all(&rig, 0);
	rig_run_job(&rig, JOB_SWAP_OUT);
	puppet_check_all(&rig, 1);
	rig_stop(&rig);
}

/* One that has ended holds nobody up. */
TEST(no_place_in_epoll_and_the_child_ends)
{
	struct rig rig;

	all_out(&rig);
	CHECK_OK(failpoint_arm("adopt.watch=ENOSPC"));
	rig_fork(&rig, 1);
	puppet_tell(&rig, 1, 0, (struct puppet_order){ .kind = ORDER_END });
	rig_run_job(&rig, JOB_SWAP_IN);
	puppet_check_all(&rig, 0);
	rig_stop(&rig);
}
