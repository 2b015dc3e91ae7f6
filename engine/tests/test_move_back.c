/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Private memory that was moved to scratch and comes back from there, whatever is in the way. */
#include "puppet.h"

static const struct layout private_memory = { .regions = { { 0, 212, 700 }, { 0, 0, 300 } }, .private = 1 };

static void start(struct rig *rig)
{
	if (!mover_can_move())
		test_skip("this kernel has no UFFDIO_MOVE, which is since Linux 6.8");
	rig_start(rig, &private_memory);
}

static void check_all_and_stop(struct rig *rig)
{
	puppet_check_all(rig, 0);
	CHECK_EQ(rig->odd + rig->incidents, 0);
	rig_stop(rig);
}

/* The kernel says EEXIST also while it frees a page table: only a page that is there is newer. */
TEST(a_page_that_is_there_and_is_not)
{
	struct rig rig;

	start(&rig);
	rig_arm(&rig, "store.write", "ENOSPC");
	CHECK_OK(failpoint_arm("uffd.copy=times:3:EEXIST"));
	rig_run_job(&rig, JOB_SWAP_OUT);
	rig_disarm("uffd.copy");
	rig_disarm("store.write");
	CHECK_EQ(rig_stats(&rig).swap_pages, 0);
	check_all_and_stop(&rig);
}

/* As the VMM would: its thread does that order, and ends. */
static void end_thread(struct rig *rig)
{
	struct vmmswap_mailbox *box =
		mmap(NULL, VMMSWAP_MAILBOX_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, rig->mailbox, 0);

	CHECK(box != MAP_FAILED);
	box->call = VMMSWAP_MAILBOX_LEAVE;
	__atomic_store_n(&box->state, VMMSWAP_MAILBOX_ASKED, __ATOMIC_RELEASE);
	syscall(SYS_futex, &box->state, 1 /* FUTEX_WAKE */, 1, NULL, NULL, 0);
	while (__atomic_load_n(&box->state, __ATOMIC_ACQUIRE) != VMMSWAP_MAILBOX_DONE)
		sched_yield();
	munmap(box, VMMSWAP_MAILBOX_BYTES);
}

/* Its thread ends while pages are in scratch: nobody can empty it, and yet all of memory comes back, and the
 * VM can be released. */
TEST(the_thread_is_gone)
{
	struct notice done;
	struct rig rig;

	start(&rig);
	rig_start_job_until(&rig, JOB_SWAP_OUT, "move.read");
	end_thread(&rig);
	rig_disarm("move.read");
	done = rig_await_job(&rig);
	CHECK_EQ(done.code, ESRCH);
	CHECK_CONTAINS(done.message, "has no thread any more");
	rig_run_job(&rig, JOB_SWAP_IN);
	CHECK_EQ(rig_stats(&rig).swap_pages, 0);
	CHECK(!rig_stats(&rig).tracking);
	check_all_and_stop(&rig);
}

/* Also if that is seen only while they are being put back. */
TEST(the_thread_is_gone_when_they_are_put_back)
{
	struct notice done;
	struct rig rig;

	start(&rig);
	rig_arm(&rig, "mover.read", "times:2:ENOMEM"); /* to store it, and to put it back */
	rig_start_job(&rig, JOB_SWAP_OUT);
	done = rig_await_job(&rig);
	CHECK_EQ(done.code, ENOMEM);
	rig_disarm("mover.read");
	end_thread(&rig);
	rig_run_job(&rig, JOB_SWAP_IN);
	CHECK_EQ(rig_stats(&rig).swap_pages, 0);
	check_all_and_stop(&rig);
}
