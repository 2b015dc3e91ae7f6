/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A swap-out leaves behind what it cannot read, store or punch, goes on with all else, and says how many and
 * which. */
#include "puppet.h"

#define PAGES 1024 /* two windows */

static const struct layout layout = { .memfd_pages = { PAGES }, .regions = { { 0, 0, PAGES } }, .full = 1 };

/* The swap-out has taken all but these, and says so. */
static void check_left(struct rig *rig, uint64_t page_idx, uint64_t pages, const char *why)
{
	struct notice notice = rig_await_notice(rig, NOTICE_PAGES_LEFT);
	struct notice done = rig_await_job(rig);
	struct lost_incident left;

	CHECK_CONTAINS(notice.message, why);
	CHECK_EQ(done.code, 0);
	CHECK_EQ(rig_stats(rig).left_pages, pages);
	CHECK_EQ(rig_stats(rig).swap_pages + pages, rig->total_pages);
	CHECK_EQ(rig_resident_pages(rig, 0, rig->total_pages), pages);
	CHECK_EQ(engine_left_pages(rig->engine, &left), pages);
	CHECK_EQ(left.ranges_n, 1);
	CHECK_EQ(left.ranges[0].page_idx, page_idx);
	CHECK_EQ(left.ranges[0].pages, pages);
	puppet_check_all(rig, 0);
}

/* Nothing is left by the next one. */
static void check_next(struct rig *rig)
{
	rig_run_job(rig, JOB_SWAP_OUT);
	CHECK_EQ(rig_stats(rig).left_pages, 0);
	CHECK_EQ(rig_resident_pages(rig, 0, rig->total_pages), 0);
	puppet_check_all(rig, 0);
	rig_run_job(rig, JOB_SWAP_IN);
	CHECK_EQ(rig_stats(rig).swap_pages, 0);
	puppet_check_all(rig, 0);
}

/* The window cannot be read at once, nor its first two pages alone. */
TEST(a_page_that_cannot_be_read)
{
	struct rig rig;

	rig_start(&rig, &layout);
	CHECK_OK(failpoint_arm("memory.read=times:3:EIO"));
	rig_start_job(&rig, JOB_SWAP_OUT);
	check_left(&rig, 0, 2, "cannot read guest memory");
	check_next(&rig);
	rig_stop(&rig);
}

/* The disk has a bad place: what was to be put there goes elsewhere, and is not left. */
TEST(a_bad_place_of_the_disk)
{
	struct rig rig;

	rig_start(&rig, &layout);
	CHECK_OK(failpoint_arm("store.write=times:2:EIO"));
	rig_run_job(&rig, JOB_SWAP_OUT);
	CHECK_EQ(rig_stats(&rig).left_pages, 0);
	CHECK_EQ(rig_resident_pages(&rig, 0, PAGES), 0);
	puppet_check_all(&rig, 0);
	check_next(&rig);
	rig_stop(&rig);
}

/* All of the window at once, and its first two pages at two places each. */
TEST(pages_that_cannot_be_stored)
{
	struct rig rig;

	rig_start(&rig, &layout);
	CHECK_OK(failpoint_arm("store.write=times:5:EIO"));
	rig_start_job(&rig, JOB_SWAP_OUT);
	check_left(&rig, 0, 2, "write error");
	check_next(&rig);
	rig_stop(&rig);
}

TEST(pages_that_cannot_be_punched)
{
	struct rig rig;

	rig_start(&rig, &layout);
	CHECK_OK(failpoint_arm("memory.punch=once:EPERM"));
	rig_start_job(&rig, JOB_SWAP_OUT);
	check_left(&rig, 0, 512, "cannot punch");
	check_next(&rig);
	rig_stop(&rig);
}

/* A sealed memfd, say of a ROM, keeps nothing of the other from going out. Nothing of it is even read. */
TEST(a_memfd_that_is_sealed)
{
	static const struct layout two = { .memfd_pages = { 512, 512 },
					   .regions = { { 0, 0, 512 }, { 1, 0, 512 } },
					   .full = 1 };
	struct rig rig;

	rig_start(&rig, &two);
	CHECK_SYS(fcntl(rig.memfds[0], F_ADD_SEALS, F_SEAL_FUTURE_WRITE));
	rig_start_job(&rig, JOB_SWAP_OUT);
	check_left(&rig, 0, 512, "sealed");
	CHECK(rig_stats(&rig).written_bytes <= 512 * PAGE_BYTES);
	rig_stop(&rig);
}

/* If nothing at all can be taken, that is an error; so is a disk on which nothing works. */
TEST(nothing_that_can_be_taken)
{
	struct notice done;
	struct rig rig;

	rig_start(&rig, &layout);
	CHECK_SYS(fcntl(rig.memfds[0], F_ADD_SEALS, F_SEAL_FUTURE_WRITE));
	rig_start_job(&rig, JOB_SWAP_OUT);
	done = rig_await_job(&rig);
	CHECK_EQ(done.code, EPERM);
	CHECK_CONTAINS(done.message, "sealed");
	CHECK_EQ(rig_stats(&rig).left_pages, PAGES);
	rig_stop(&rig);
}

TEST(a_disk_on_which_nothing_works)
{
	struct notice done;
	struct rig rig;

	rig_start(&rig, &layout);
	rig_arm(&rig, "store.write", "EIO");
	rig_start_job(&rig, JOB_SWAP_OUT);
	done = rig_await_job(&rig);
	CHECK_EQ(done.code, EIO);
	CHECK(failpoint_hits("store.write") - rig.hits < 50); /* and it did not try with all pages */
	rig_disarm("store.write");
	CHECK_EQ(rig_stats(&rig).swap_pages, 0);
	check_next(&rig);
	rig_stop(&rig);
}
