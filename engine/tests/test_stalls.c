/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What is slow, or stands still, holds up nobody else: nothing waits inside the gate, for everybody would wait with it. */
#include "inode_lock.h"

static const struct layout layout = { .memfd_pages = { 512 }, .regions = { { 0, 0, 512 } } };

#define DEADLINE_MS 30000
#define OUT 1
#define OTHER 3
#define ZERO 7 /* out, and nowhere in the store */

/* Somebody has the lock of the memfd's inode, as our own SEEK_HOLE has it for a while at each pass. */
static void inode_is_locked_while_a_page_comes_back(uint32_t process)
{
	struct puppet_order touch = { .kind = ORDER_TOUCH, .page = OUT },
			    other = { .kind = ORDER_TOUCH, .page = ZERO };
	struct inode_lock lock;
	struct rig rig;

	rig_start(&rig, &layout);
	rig_fork(&rig, 1);
	rig_run_job(&rig, JOB_SWAP_OUT);
	inode_lock_take(&lock, rig.memfds[0], 500);
	puppet_tell(&rig, process, 0, touch);
	CHECK(puppet_done_in(&rig, process, 0, DEADLINE_MS));
	puppet_tell(&rig, 0, 1, other);
	CHECK(puppet_done_in(&rig, 0, 1, DEADLINE_MS));
	inode_lock_release(&lock);
	rig_stop(&rig);
}

TEST(the_vmms_page)
{
	inode_is_locked_while_a_page_comes_back(0);
}

TEST(a_childs_page)
{
	inode_is_locked_while_a_page_comes_back(1);
}

static long tell_tid(void *addr, long unused)
{
	(void)addr, (void)unused;
	return syscall(SYS_gettid);
}

static long write_from_guest_memory(void *addr, long memfd)
{
	return pwrite((int)memfd, addr, PAGE_BYTES, 500 * PAGE_BYTES);
}

/* The VMM writes to its memfd out of guest memory that is out: it faults while it has that lock. */
TEST(the_vmm_writes_to_its_memfd_while_a_childs_page_comes_back)
{
	struct puppet_order touch = { .kind = ORDER_TOUCH, .page = OUT };
	struct puppet_order write = { .kind = ORDER_CALL, .page = OTHER, .run = write_from_guest_memory };
	struct puppet_order who = { .kind = ORDER_CALL, .run = tell_tid };
	struct rig rig;
	pid_t tid;

	rig_start(&rig, &layout);
	rig_fork(&rig, 1);
	rig_run_job(&rig, JOB_SWAP_OUT);
	tid = (pid_t)puppet_do(&rig, 0, 1, who);
	rig_arm(&rig, "resolve.copied", "stall");
	puppet_tell(&rig, 1, 0, touch);
	rig_await_point(&rig, "resolve.copied");
	write.argument = rig.memfds[0];
	puppet_tell(&rig, 0, 1, write);
	await_wchan(tid, "userfault");
	rig_disarm("resolve.copied");
	CHECK(puppet_done_in(&rig, 0, 1, DEADLINE_MS));
	CHECK(puppet_done_in(&rig, 1, 0, DEADLINE_MS));
	rig_stop(&rig);
}

/* It was raised before the page went out, and is looked at when it is: the same, of the VMM's own page. */
TEST(a_wp_fault_of_a_page_that_went_out)
{
	struct puppet_order who = { .kind = ORDER_CALL, .run = tell_tid };
	struct rig rig;
	pid_t tid2, tid3;

	rig_start(&rig, &layout);
	rig_run_job(&rig, JOB_SWAP_OUT);
	puppet_do(&rig, 0, 0, (struct puppet_order){ .kind = ORDER_WRITE, .page = 10 });
	tid2 = (pid_t)puppet_do(&rig, 0, 2, who);
	tid3 = (pid_t)puppet_do(&rig, 0, 3, who);
	rig_start_job_until(&rig, JOB_SWAP_OUT, "evict.stored");
	rig_arm(&rig, "resolve.copied", "stall");
	puppet_tell(&rig, 0, 0, (struct puppet_order){ .kind = ORDER_TOUCH, .page = 1 });
	rig_await_point(&rig, "resolve.copied");
	puppet_tell(&rig, 0, 2, (struct puppet_order){ .kind = ORDER_WRITE, .page = 10 });
	await_wchan(tid2, "userfault");
	rig_disarm("evict.stored");
	rig_end_job(&rig);
	puppet_tell(&rig, 0, 3,
		    (struct puppet_order){ .kind = ORDER_CALL,
					   .page = 3,
					   .run = write_from_guest_memory,
					   .argument = rig.memfds[0] });
	await_wchan(tid3, "userfault");
	rig_disarm("resolve.copied");
	CHECK(puppet_done_in(&rig, 0, 3, DEADLINE_MS));
	CHECK(puppet_done_in(&rig, 0, 2, DEADLINE_MS));
	rig_stop(&rig);
}

TEST(a_swap_in_that_reads_a_page_again)
{
	struct puppet_order touch = { .kind = ORDER_TOUCH, .page = ZERO };
	struct rig rig;

	rig_start(&rig, &layout);
	rig_run_job(&rig, JOB_SWAP_OUT);
	CHECK_OK(failpoint_arm("store.read.corrupt=once:EIO"));
	rig_arm(&rig, "store.read", "stall@1"); /* after all of a chunk were read at once */
	rig_start_job(&rig, JOB_SWAP_IN);
	while (failpoint_hits("store.read") < rig.hits + 2)
		sched_yield();
	puppet_tell(&rig, 0, 0, touch);
	CHECK(puppet_done_in(&rig, 0, 0, DEADLINE_MS));
	rig_disarm("store.read");
	rig_end_job(&rig);
	rig_stop(&rig);
}

static long unmap(void *addr, long pages)
{
	return munmap(addr, (size_t)bytes_of_pages((uint64_t)pages));
}

/* What no process maps goes back to the file: nobody waits for the file meanwhile, nor with it. */
TEST(inode_is_locked_while_unmapped_pages_come_back)
{
	struct puppet_order order = { .kind = ORDER_CALL, .run = unmap, .page = 0, .argument = 400 };
	struct inode_lock lock;
	struct rig rig;

	rig_start(&rig, &layout);
	rig_run_job(&rig, JOB_SWAP_OUT);
	CHECK_EQ(puppet_do(&rig, 0, 0, order), 0);
	inode_lock_take(&lock, rig.memfds[0], ZERO + 8 * 60);
	rig_run_job(&rig, JOB_SWAP_IN);
	inode_lock_release(&lock);
	CHECK_EQ(rig_stats(&rig).swap_pages, 0);
	CHECK_EQ(rig_resident_pages(&rig, 0, 7), 7);
	rig_stop(&rig);
}

/* Whether it came where the guest's memory is has to be found out when it reads as zeros, while the file's lock is held. */
TEST(inode_is_locked_when_a_childs_page_is_looked_for)
{
	struct puppet_order touch = { .kind = ORDER_TOUCH, .page = OUT },
			    other = { .kind = ORDER_TOUCH, .page = OTHER },
			    punch = { .kind = ORDER_PUNCH, .page = OUT };
	struct inode_lock lock;
	struct rig rig;

	rig_start(&rig, &layout);
	rig_fork(&rig, 1);
	rig_run_job(&rig, JOB_SWAP_OUT);
	rig_arm(&rig, "resolve.copied", "stall");
	puppet_tell(&rig, 1, 0, touch);
	rig_await_point(&rig, "resolve.copied");
	puppet_do(&rig, 0, 0, punch);
	inode_lock_take(&lock, rig.memfds[0], 500);
	rig_disarm("resolve.copied");
	puppet_tell(&rig, 0, 1, other);
	CHECK(puppet_done_in(&rig, 0, 1, DEADLINE_MS));
	CHECK(puppet_done_in(&rig, 1, 0, DEADLINE_MS));
	inode_lock_release(&lock);
	rig_stop(&rig);
}

/* The page went out, and somebody wrote it to the file: that it is there has to be found out, too. */
TEST(inode_is_locked_when_a_page_is_found_after_a_wp_fault)
{
	struct puppet_order who = { .kind = ORDER_CALL, .run = tell_tid },
			    other = { .kind = ORDER_TOUCH, .page = OTHER };
	char bytes[PAGE_BYTES] = "from outside";
	struct inode_lock lock;
	struct rig rig;
	pid_t tid;

	rig_start(&rig, &layout);
	rig_run_job(&rig, JOB_SWAP_OUT);
	puppet_do(&rig, 0, 0, (struct puppet_order){ .kind = ORDER_WRITE, .page = 10 });
	tid = (pid_t)puppet_do(&rig, 0, 2, who);
	rig_start_job_until(&rig, JOB_SWAP_OUT, "evict.stored");
	rig_arm(&rig, "resolve.copied", "stall");
	puppet_tell(&rig, 0, 0, (struct puppet_order){ .kind = ORDER_TOUCH, .page = 1 });
	rig_await_point(&rig, "resolve.copied");
	puppet_tell(&rig, 0, 2, (struct puppet_order){ .kind = ORDER_WRITE, .page = 10 });
	await_wchan(tid, "userfault");
	rig_disarm("evict.stored");
	rig_end_job(&rig);
	CHECK_EQ(pwrite(rig.memfds[0], bytes, sizeof bytes, 10 * PAGE_BYTES), sizeof bytes);
	inode_lock_take(&lock, rig.memfds[0], 500);
	rig_disarm("resolve.copied");
	puppet_tell(&rig, 0, 1, other);
	CHECK(puppet_done_in(&rig, 0, 1, DEADLINE_MS));
	CHECK(puppet_done_in(&rig, 0, 2, DEADLINE_MS));
	inode_lock_release(&lock);
	rig_stop(&rig);
}

/* A swap-in waits for a process that is in the middle of changing its mappings. Who needs the page does not wait with it. */
TEST(a_swap_in_that_cannot_copy_holds_no_page)
{
	struct rig rig;

	rig_start(&rig, &layout);
	rig_run_job(&rig, JOB_SWAP_OUT);
	CHECK_OK(failpoint_arm("uffd.copy=EAGAIN"));
	rig_start_job_until(&rig, JOB_SWAP_IN, "restore.copied");
	rig_disarm("uffd.copy");
	puppet_tell(&rig, 0, 0, (struct puppet_order){ .kind = ORDER_TOUCH, .page = OUT });
	CHECK(puppet_done_in(&rig, 0, 0, DEADLINE_MS));
	rig_disarm("restore.copied");
	rig_end_job(&rig);
	rig_stop(&rig);
}
