/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What is slow, or stands still, holds up nobody else: nothing waits inside the gate, for everybody would
 * wait with it. */
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
	rig_arm(&rig, "fault.reading", "stall");
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
	rig_disarm("fault.reading");
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

/* Whether it came where the guest's memory is has to be found out when it reads as zeros, while the file's
 * lock is held. */
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
	rig_arm(&rig, "fault.reading", "stall");
	puppet_tell(&rig, 0, 2, (struct puppet_order){ .kind = ORDER_WRITE, .page = 10 });
	await_wchan(tid, "userfault");
	rig_disarm("evict.stored");
	rig_end_job(&rig);
	CHECK_EQ(pwrite(rig.memfds[0], bytes, sizeof bytes, 10 * PAGE_BYTES), sizeof bytes);
	inode_lock_take(&lock, rig.memfds[0], 500);
	rig_disarm("fault.reading");
	puppet_tell(&rig, 0, 1, other);
	CHECK(puppet_done_in(&rig, 0, 1, DEADLINE_MS));
	CHECK(puppet_done_in(&rig, 0, 2, DEADLINE_MS));
	inode_lock_release(&lock);
	rig_stop(&rig);
}

/* A swap-in waits for a process that is in the middle of changing its mappings. Who needs the page does not
 * wait with it. */
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

/* --- a swap-out, and who has the lock of the memfd's inode */

#define FIRST_RUN 1   /* pages 0 to 6, as page 7 is a hole */
#define LATER_RUN 100 /* not marked yet while the second one is punched */

/* The kernel zeroed a part of a large folio in place: its bytes are put back, without that lock. */
TEST(inode_is_locked_when_a_page_is_there_after_its_punch)
{
	struct puppet_order read_run = { .kind = ORDER_CHECK, .page = FIRST_RUN };
	_Alignas(8) char zeros[PAGE_BYTES] = { 0 }, bytes[PAGE_BYTES] = "from outside";
	struct inode_lock lock;
	struct rig rig;

	rig_start(&rig, &layout);
	rig_start_job_until(&rig, JOB_SWAP_OUT, "evict.punched");
	CHECK_EQ(pwrite(rig.memfds[0], zeros, sizeof zeros, FIRST_RUN * PAGE_BYTES), sizeof zeros);
	CHECK_EQ(pwrite(rig.memfds[0], bytes, sizeof bytes, (FIRST_RUN + 1) * PAGE_BYTES), sizeof bytes);
	rig_arm(&rig, "evict.marked", "stall"); /* of the next run */
	inode_lock_take(&lock, rig.memfds[0], 500);
	rig_disarm("evict.punched");
	while (rig.odd < 2)
		rig_await_notice(&rig, NOTICE_ODD);
	puppet_tell(&rig, 0, 0, read_run);
	CHECK(puppet_done_in(&rig, 0, 0, DEADLINE_MS));
	CHECK_EQ(rig.shared->hands[0][0].value, 0);
	inode_lock_release(&lock);
	rig_disarm("evict.marked");
	rig_end_job(&rig);
	CHECK_EQ(puppet_do(&rig, 0, 0, read_run), 0);
	CHECK_EQ(puppet_do(&rig, 0, 0, (struct puppet_order){ .kind = ORDER_TOUCH, .page = FIRST_RUN + 1 }),
		 *(uint64_t *)bytes);
	CHECK_EQ(rig.odd, 2);
	rig_stop(&rig);
}

static long touch_many(void *addr, long pages)
{
	uint64_t sum = 0;

	for (long page = 0; page < pages; page++)
		sum += *(_Atomic uint64_t *)((char *)addr + page * (long)PAGE_BYTES);
	return sum != 0;
}

/* The VMM's thread faults on a hole that was punched just now, while it has the lock. */
TEST(the_vmm_writes_to_its_memfd_from_a_page_that_is_punched)
{
	struct puppet_order write = { .kind = ORDER_CALL, .page = FIRST_RUN, .run = write_from_guest_memory };
	struct puppet_order who = { .kind = ORDER_CALL, .run = tell_tid };
	struct rig rig;
	pid_t tid;

	rig_start(&rig, &layout);
	tid = (pid_t)puppet_do(&rig, 0, 1, who);
	rig_start_job_until(&rig, JOB_SWAP_OUT, "evict.punched");
	write.argument = rig.memfds[0];
	puppet_tell(&rig, 0, 1, write);
	await_wchan(tid, "userfault");
	rig_disarm("evict.punched");
	CHECK(puppet_done_in(&rig, 0, 1, DEADLINE_MS));
	CHECK_EQ(rig.shared->hands[0][1].value, PAGE_BYTES);
	rig_end_job(&rig);
	rig_stop(&rig);
}

/* Somebody has the lock, and the punch of the second run waits for it: all that can be asked of memory but a
 * write to that very run is answered, in every process, and the whole of it reads right. */
static void inode_is_locked_while_a_run_is_punched(uint32_t process)
{
	struct puppet_order read_all = { .kind = ORDER_CHECK, .pages = 490 };
	struct inode_lock lock;
	struct rig rig;

	rig_start(&rig, &layout);
	rig_fork(&rig, 1);
	rig_arm(&rig, "evict.marked", "stall@1");
	rig_start_job(&rig, JOB_SWAP_OUT);
	while (failpoint_hits("evict.marked") < rig.hits + 2)
		sched_yield();
	inode_lock_take(&lock, rig.memfds[0], 500);
	rig_disarm("evict.marked");
	puppet_tell(&rig, process, 0, read_all);
	CHECK(puppet_done_in(&rig, process, 0, DEADLINE_MS));
	CHECK_EQ(rig.shared->hands[process][0].value, 0);
	puppet_tell(&rig, process, 0, (struct puppet_order){ .kind = ORDER_WRITE, .page = LATER_RUN });
	CHECK(puppet_done_in(&rig, process, 0, DEADLINE_MS));
	puppet_tell(&rig, process, 0, (struct puppet_order){ .kind = ORDER_WRITE, .page = FIRST_RUN });
	CHECK(puppet_done_in(&rig, process, 0, DEADLINE_MS));
	inode_lock_release(&lock);
	rig_end_job(&rig);
	/* page 500 is the lock's */
	CHECK_EQ(puppet_do(&rig, 0, 0, read_all), 0);
	CHECK_EQ(rig.odd, 0);
	rig_stop(&rig);
}

TEST(inode_is_locked_while_a_run_is_punched_and_the_vmm_reads)
{
	inode_is_locked_while_a_run_is_punched(0);
}

TEST(inode_is_locked_while_a_run_is_punched_and_a_child_reads)
{
	inode_is_locked_while_a_run_is_punched(1);
}

/* A child that was forked while its parent's memory was being registered asks for each page that it has not
 * mapped yet. */
static void inode_is_locked_while_a_child_asks(void)
{
	struct puppet_order fork_one = { .kind = ORDER_FORK, .process = 1 };
	struct puppet_order touch = { .kind = ORDER_CALL,
				      .page = 8,
				      .run = touch_many,
				      .argument = 7 /* the second run */ };
	struct inode_lock lock;
	struct rig rig;

	rig_start(&rig, &layout);
	rig_arm(&rig, "uffd.minor", "stall");
	rig_start_job(&rig, JOB_SWAP_OUT);
	rig_await_point(&rig, "uffd.minor");
	puppet_tell(&rig, 0, 0, fork_one);
	rig_arm(&rig, "evict.marked", "stall@1");
	rig_disarm("uffd.minor");
	rig_await_notice(&rig, NOTICE_PROCESS_FORKED);
	CHECK(puppet_done_in(&rig, 0, 0, DEADLINE_MS));
	while (failpoint_hits("evict.marked") < rig.hits + 2)
		sched_yield();
	inode_lock_take(&lock, rig.memfds[0], 500);
	rig_disarm("evict.marked");
	puppet_tell(&rig, 1, 0, touch);
	CHECK(puppet_done_in(&rig, 1, 0, DEADLINE_MS));
	/* until the punch, a write by the child waits as everybody's does */
	puppet_tell(&rig, 1, 0, (struct puppet_order){ .kind = ORDER_WRITE, .page = 8 });
	inode_lock_release(&lock);
	CHECK(puppet_done_in(&rig, 1, 0, DEADLINE_MS));
	rig_end_job(&rig);
	/* page 500 is the lock's */
	CHECK_EQ(puppet_do(&rig, 0, 0, (struct puppet_order){ .kind = ORDER_CHECK, .pages = 490 }), 0);
	CHECK_EQ(rig.odd, 0);
	rig_stop(&rig);
}

TEST(inode_is_locked_while_a_child_asks_for_pages_that_are_there)
{
	inode_is_locked_while_a_child_asks();
}

/* The kernel cannot map a page write-protected: before 6.4. */
TEST(inode_is_locked_while_a_child_asks_for_pages_of_an_old_kernel)
{
	CHECK_OK(failpoint_arm("uffd.continue-protected=EINVAL"));
	inode_is_locked_while_a_child_asks();
}

#define BUSY_PAGES 4096

/* In memory that all share. */
static _Atomic bool *busy;

static long write_and_write(void *addr, long memfd)
{
	uint64_t at = 88172645463325252u;
	int wrong = 0;

	while (*busy) {
		at ^= at << 13;
		at ^= at >> 7;
		at ^= at << 17;
		wrong += pwrite((int)memfd, (char *)addr + at % (BUSY_PAGES - 4) * PAGE_BYTES, 4 * PAGE_BYTES,
				(off_t)((BUSY_PAGES + at % 64) * PAGE_BYTES)) != 4 * PAGE_BYTES;
	}
	return wrong;
}

/* The same without being held anywhere: a thread that copies guest memory to another part of the file, during
 * swap-outs and -ins. */
TEST(the_vmm_writes_to_its_memfd_all_the_time)
{
	static const struct layout beside = { .memfd_pages = { BUSY_PAGES + 68 },
					      .regions = { { 0, 0, BUSY_PAGES } } };
	struct puppet_order write = { .kind = ORDER_CALL, .run = write_and_write };
	struct rig rig;

	busy = mmap(NULL, PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	CHECK(busy != MAP_FAILED);
	*busy = true;
	rig_start(&rig, &beside);
	write.argument = rig.memfds[0];
	puppet_tell(&rig, 0, 1, write);
	for (int round = 0; round < 10; round++) {
		rig_run_job(&rig, JOB_SWAP_OUT);
		rig_run_job(&rig, JOB_SWAP_IN);
	}
	*busy = false;
	CHECK_EQ(puppet_await(&rig, 0, 1), 0);
	puppet_check_all(&rig, 0);
	CHECK_EQ(rig.odd, 0);
	rig_stop(&rig);
}
