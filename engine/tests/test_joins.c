/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Processes that join, mappings and files that change: each case lost a byte, or hung, in some version of the
 * engine. */
#include "inode_lock.h"

#define PAGES 1024

static const struct layout layout = {
	.memfd_pages = { PAGES }, .regions = { { 0, 0, PAGES } }, .full = 1, .stranger = 1
};

/* A page of the file is beyond guest memory. */
static const struct layout with_room = {
	.memfd_pages = { PAGES + 1 }, .regions = { { 0, 0, PAGES } }, .full = 1, .stranger = 1
};

static void stranger_writes(struct rig *rig, uint64_t page)
{
	puppet_do(rig, PUPPET_STRANGER, 0,
		  (struct puppet_order){ .kind = ORDER_WRITE, .page = page, .half = 1 });
}

/* What came back unchanged is write-protected in the processes of then. One that joins later writes without
 * an event: no copy that was kept before may be used after that, dropped or not. */
TEST(kept_copies_end_when_a_process_joins)
{
	struct error err = { 0 };
	struct rig rig;

	rig_start(&rig, &layout);
	rig_run_job(&rig, JOB_SWAP_OUT);
	puppet_check_all(&rig, 0);
	CHECK(rig_stats(&rig).kept_pages > 0);
	stranger_writes(
		&rig,
		5); /* from here on it has the page mapped for writing, and later writes raise no event */
	CHECK_OK(rig_add_process(&rig, PUPPET_STRANGER, &err));
	stranger_writes(&rig, 5);
	rig_run_job(&rig, JOB_SWAP_OUT);
	CHECK(rig_stats(&rig).swap_pages > 0);
	CHECK_EQ(rig.odd, 0); /* so not by comparing the bytes, which is for writes that break the rules */
	puppet_check_all(&rig, 0);
	rig_stop(&rig);
}

/* Dropping them takes the longer the more there are, and a join holds up all page faults: it is done later,
 * aside. */
TEST(stale_copies_are_dropped_when_there_is_time)
{
	struct error err = { 0 };
	struct rig rig;

	rig_start(&rig, &layout);
	rig_run_job(&rig, JOB_SWAP_OUT);
	puppet_check_all(&rig, 0);
	CHECK_OK(rig_add_process(&rig, PUPPET_STRANGER, &err));
	CHECK(rig_stats(&rig).kept_pages > 0);
	while (engine_housekeep(rig.engine))
		continue;
	CHECK_EQ(rig_stats(&rig).kept_pages, 0);
	CHECK_EQ(rig_stats(&rig).stored_disk_bytes, 0);
	puppet_check_all(&rig, 0);
	rig_stop(&rig);
}

/* A swap-out has found the copies good, and is about to use them. */
TEST(kept_copies_end_when_a_process_joins_a_pass)
{
	struct error err = { 0 };
	struct rig rig;

	rig_start(&rig, &layout);
	rig_run_job(&rig, JOB_SWAP_OUT);
	puppet_check_all(&rig, 0);
	rig_start_job_until(&rig, JOB_SWAP_OUT, "evict.stored");
	CHECK(rig_stats(&rig).kept_pages > 0);
	for (uint64_t page = 0; page < 64; page++)
		stranger_writes(&rig, page);
	CHECK_OK(rig_add_process(&rig, PUPPET_STRANGER, &err));
	for (uint64_t page = 0; page < 64; page++)
		stranger_writes(&rig, page);
	rig_disarm("evict.stored");
	CHECK_EQ(rig_await_job(&rig).code, 0);
	puppet_check_all(&rig, 0);
	rig_stop(&rig);
}

/* All bytes are right, and nothing but what was written meanwhile is left. */
static void all_but_the_written_went_out(struct rig *rig, struct notice done)
{
	struct engine_stats stats = rig_stats(rig);

	CHECK_EQ(done.code, 0);
	if (stats.swap_pages + 8 < stats.total_pages)
		FAIL("of %llu pages only %llu are out", (unsigned long long)stats.total_pages,
		     (unsigned long long)stats.swap_pages);
	puppet_check_all(rig, 0);
}

/* The pass that it joins in evicts nothing more; what that pass had protected is protected anew, in all, by
 * the one that follows. */
TEST(what_a_pass_left_is_protected_anew)
{
	struct error err = { 0 };
	struct rig rig;

	rig_start(&rig, &layout);
	rig_start_job_until(&rig, JOB_SWAP_OUT, "evict.read");
	CHECK_OK(rig_add_process(&rig, PUPPET_STRANGER, &err));
	rig_arm(&rig, "evict.protected", "stall");
	rig_disarm("evict.read");
	rig_await_point(&rig, "evict.protected");
	rig_arm(&rig, "evict.read", "stall");
	rig_disarm("evict.protected");
	rig_await_point(&rig, "evict.read");
	stranger_writes(&rig, 5);
	rig_disarm("evict.read");
	all_but_the_written_went_out(&rig, rig_await_job(&rig));
	rig_stop(&rig);
}

/* It joins when nothing is out yet: the pass begins anew, also if it is the only one that is allowed. */
TEST(a_process_that_joins_early)
{
	struct error err = { 0 };
	struct rig rig;

	rig_start(&rig, &layout);
	rig_start_job_until(&rig, JOB_SWAP_OUT, "evict.checked");
	CHECK_OK(rig_add_process(&rig, PUPPET_STRANGER, &err));
	rig_disarm("evict.checked");
	all_but_the_written_went_out(&rig, rig_await_job(&rig));
	rig_stop(&rig);
}

/* What nobody else may write while all stand still: who joins then has not been frozen. */
TEST(a_process_that_joins_while_the_others_are_frozen)
{
	struct error err = { 0 };
	struct rig rig;

	rig_start(&rig, &layout);
	rig.options.mode = MODE_FREEZE;
	rig_start_job_until(&rig, JOB_SWAP_OUT, "evict.checked");
	CHECK_OK(rig_add_process(&rig, PUPPET_STRANGER, &err));
	rig_arm(&rig, "evict.protected", "stall");
	rig_disarm("evict.checked");
	rig_await_point(&rig, "evict.protected");
	rig_disarm("evict.protected");
	all_but_the_written_went_out(&rig, rig_await_job(&rig));
	puppet_check_all(&rig, PUPPET_STRANGER);
	rig_stop(&rig);
}

/* Somebody joins each time that a pass has begun: the job ends, and says why. */
TEST(processes_that_join_without_end)
{
	struct error err = { 0 };
	struct notice done = { 0 };
	struct rig rig;
	int joins = 0;

	rig_start(&rig, &layout);
	rig_arm(&rig, "evict.checked", "stall");
	rig_start_job(&rig, JOB_SWAP_OUT);
	for (rig_await_point(&rig, "evict.checked"); done.kind != NOTICE_JOB_DONE; joins++) {
		if (rig.process_ids[PUPPET_STRANGER])
			CHECK_OK(engine_remove_process(rig.engine, rig.process_ids[PUPPET_STRANGER], &err));
		CHECK_OK(rig_add_process(&rig, PUPPET_STRANGER, &err));
		rig_arm(&rig, "evict.protected", "stall");
		rig_disarm("evict.checked");
		while (failpoint_hits("evict.protected") == rig.hits && done.kind != NOTICE_JOB_DONE)
			engine_take_notice(rig.engine, &done);
		if (done.kind == NOTICE_JOB_DONE)
			break;
		rig_arm(&rig, "evict.checked", "stall");
		rig_disarm("evict.protected");
		rig_await_point(&rig, "evict.checked");
	}
	CHECK_EQ(done.code, EAGAIN);
	CHECK_CONTAINS(done.message, "join");
	CHECK(joins >= 10);
	CHECK_EQ(rig_stats(&rig).swap_pages, 0);
	puppet_check_all(&rig, 0);
	rig_stop(&rig);
}

static long keep_from_children(void *addr, long pages)
{
	return madvise(addr, (size_t)bytes_of_pages((uint64_t)pages), MADV_DONTFORK);
}

/* QEMU keeps guest memory from its children. Such a child takes nothing from a swap-out, nor its kept
 * copies. */
TEST(a_child_without_guest_memory)
{
	struct rig rig;

	rig_start(&rig, &layout);
	CHECK_EQ(puppet_do(&rig, 0, 0,
			   (struct puppet_order){
				   .kind = ORDER_CALL, .run = keep_from_children, .argument = PAGES }),
		 0);
	rig_run_job(&rig, JOB_SWAP_OUT);
	puppet_check_all(&rig, 0);
	CHECK(rig_stats(&rig).kept_pages > 0);
	puppet_do(&rig, 0, 1, (struct puppet_order){ .kind = ORDER_WRITE, .page = 700 });
	rig_start_job_until(&rig, JOB_SWAP_OUT, "evict.checked");
	puppet_do(&rig, 0, 0, (struct puppet_order){ .kind = ORDER_FORK, .process = 1 });
	rig_await_notice(&rig, NOTICE_PROCESS_FORKED);
	CHECK(rig_stats(&rig).kept_pages > 0);
	rig_arm(&rig, "evict.protected", "count");
	rig_disarm("evict.checked");
	all_but_the_written_went_out(&rig, rig_await_job(&rig));
	CHECK_EQ(failpoint_hits("evict.protected"), rig.hits); /* it was one pass */
	rig_stop(&rig);
}

/* Somebody has the lock of the memfd's inode, and a punch waits for it: who joins does not. */
TEST(a_process_joins_while_a_punch_waits)
{
	struct inode_lock lock;
	struct error err = { 0 };
	struct rig rig;

	rig_start(&rig, &with_room);
	rig_start_job_until(&rig, JOB_SWAP_OUT, "evict.marked");
	inode_lock_take(&lock, rig.memfds[0], PAGES);
	rig_disarm("evict.marked");
	CHECK_OK(rig_add_process(&rig, PUPPET_STRANGER, &err));
	puppet_tell(&rig, PUPPET_STRANGER, 1, (struct puppet_order){ .kind = ORDER_WRITE, .page = 5 });
	puppet_do(&rig, PUPPET_STRANGER, 0, (struct puppet_order){ .kind = ORDER_CHECK, .page = 6 });
	inode_lock_release(&lock);
	puppet_await(&rig, PUPPET_STRANGER, 1);
	all_but_the_written_went_out(&rig, rig_await_job(&rig));
	puppet_check_all(&rig, PUPPET_STRANGER);
	rig_stop(&rig);
}

static long map_read_only(void *addr, long memfd)
{
	char path[64];
	int fd;

	snprintf(path, sizeof path, "/proc/self/fd/%ld", memfd);
	fd = open(path, O_RDONLY);
	return mmap(addr, PAGES * 4096, PROT_READ, MAP_SHARED | MAP_FIXED, fd, 0) == MAP_FAILED ? errno : 0;
}

/* The kernel registers no mapping that could never be written to. What cannot be registered cannot be
 * watched, so nothing goes out; it is not a kernel without write-protection, for which freezing would do. */
TEST(a_mapping_that_cannot_be_registered_stops_the_swap_out)
{
	struct error err = { 0 };
	struct notice done;
	struct rig rig;

	rig_start(&rig, &layout);
	CHECK_EQ(puppet_do(&rig, PUPPET_STRANGER, 0,
			   (struct puppet_order){
				   .kind = ORDER_CALL, .run = map_read_only, .argument = rig.memfds[0] }),
		 0);
	CHECK_OK(rig_add_process(&rig, PUPPET_STRANGER, &err));
	rig.options.mode = MODE_AUTO;
	rig_start_job(&rig, JOB_SWAP_OUT);
	done = rig_await_job(&rig);
	CHECK_EQ(done.code, EINVAL);
	CHECK_CONTAINS(done.message, "cannot be registered");
	CHECK_EQ(rig_stats(&rig).swap_pages, 0);
	puppet_check_all(&rig, PUPPET_STRANGER);
	puppet_check_all(&rig, 0);
	rig_stop(&rig);
}

/* The same while a swap-out runs, which begins anew then: it must look anew, too, whether all are watched. */
TEST(a_mapping_that_cannot_be_registered_stops_a_swap_out_under_way)
{
	struct error err = { 0 };
	struct notice done;
	struct rig rig;

	rig_start(&rig, &layout);
	CHECK_OK(rig_add_process(&rig, PUPPET_STRANGER, &err));
	rig_start_job_until(&rig, JOB_SWAP_OUT, "evict.checked");
	CHECK_EQ(puppet_do(&rig, PUPPET_STRANGER, 0,
			   (struct puppet_order){
				   .kind = ORDER_CALL, .run = map_read_only, .argument = rig.memfds[0] }),
		 0);
	engine_register_again(rig.engine, rig.process_ids[PUPPET_STRANGER]);
	rig_disarm("evict.checked");
	done = rig_await_job(&rig);
	CHECK_EQ(done.code, EINVAL);
	CHECK_CONTAINS(done.message, "cannot be registered");
	CHECK_EQ(rig_stats(&rig).swap_pages, 0);
	puppet_check_all(&rig, PUPPET_STRANGER);
	puppet_check_all(&rig, 0);
	rig_stop(&rig);
}

TEST(a_shrunk_memfd_stays_shrunk)
{
	struct stat status;
	struct rig rig;

	rig_start(&rig, &layout);
	rig_run_job(&rig, JOB_SWAP_OUT);
	CHECK_SYS(ftruncate(rig.memfds[0], PAGES / 2 * 4096));
	rig_start_job(&rig, JOB_SWAP_IN);
	CHECK_EQ(rig_await_job(&rig).code, 0);
	CHECK_SYS(fstat(rig.memfds[0], &status));
	CHECK_EQ(status.st_size, PAGES / 2 * 4096);
	rig_stop(&rig);
}

static void *touch(void *page)
{
	(void)*(volatile char *)page;
	return NULL;
}

static long touch_many(void *addr, long n)
{
	for (long i = 1; i <= n; i++) {
		pthread_attr_t small;
		pthread_t thread;

		pthread_attr_init(&small);
		pthread_attr_setstacksize(&small, 65536);
		CHECK_OK(pthread_create(&thread, &small, touch, (char *)addr + i * 4096));
		pthread_attr_destroy(&small);
	}
	return 0;
}

/* read() gives page faults before events, and an unread event makes every COPY fail. So the list of faults to
 * be served may be full when the event is what must be read: more threads wait here than the one fault thread
 * has room for. */
TEST(an_event_behind_a_full_list_is_read)
{
	struct engine_config config = {
		.swap_dir = "/tmp", .workers = 1, .fault_threads = 1, .page_map_fd = -1, .store_fd = -1
	};
	struct error err = { 0 };
	struct rig rig;

	rig_start_guest(&rig, &layout);
	CHECK_OK(engine_create(&config, &rig.engine, &err));
	CHECK_OK(engine_add_region(rig.engine, rig.memfds[0], 0, PAGES * 4096, &rig.first_idx[0], &err));
	CHECK_OK(rig_add_process(&rig, 0, &err));
	CHECK_OK(engine_start(rig.engine, &err));
	rig_run_job(&rig, JOB_SWAP_OUT);
	rig_arm(&rig, "resolve.claimed", "stall");
	puppet_tell(&rig, 0, 1, (struct puppet_order){ .kind = ORDER_TOUCH, .page = 1000 });
	rig_await_point(&rig, "resolve.claimed");
	puppet_do(&rig, 0, 2,
		  (struct puppet_order){ .kind = ORDER_CALL, .page = 0, .run = touch_many, .argument = 100 });
	puppet_tell(&rig, 0, 3, (struct puppet_order){ .kind = ORDER_REMOVE, .page = 900 });
	/* it waits for its event to be read; meanwhile the others have faulted */
	CHECK(!puppet_done_in(&rig, 0, 3, 300));
	rig_disarm("resolve.claimed");
	CHECK(puppet_done_in(&rig, 0, 3, 20000));
	rig_stop(&rig);
}

/* The end of the data is ENXIO and nothing else (crosvm's b/307603892). */
TEST(an_error_of_seeking_is_not_the_end_of_the_data)
{
	struct notice done;
	struct rig rig;

	rig_start(&rig, &layout);
	rig_arm(&rig, "memory.seek", "EIO");
	rig_start_job(&rig, JOB_SWAP_OUT);
	done = rig_await_job(&rig);
	CHECK_EQ(done.code, EIO);
	CHECK_CONTAINS(done.message, "lseek");
	CHECK_EQ(rig_stats(&rig).swap_pages, 0);
	CHECK_EQ(failpoint_arm("memory.seek=off"), 0);
	rig_run_job(&rig, JOB_SWAP_OUT);
	puppet_check_all(&rig, 0);
	rig_stop(&rig);
}

static struct range stranger_range(const struct rig *rig, uint64_t addr)
{
	return (struct range){ addr ? addr : rig->shared->base_addr[PUPPET_STRANGER][0], rig->first_idx[0],
			       PAGES };
}

static long map_anew(void *addr, long memfd)
{
	if (munmap(addr, PAGES * 4096))
		return errno;
	return mmap(addr, PAGES * 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, (int)memfd, 0) ==
			       MAP_FAILED ?
		       errno :
		       0;
}

/* A vhost-user back-end does so when the VMM gives it its memory table again. The kernel knows nothing of the
 * new mapping, though it is where the old one was: said again, it is registered. */
TEST(memory_that_was_mapped_anew_at_its_place)
{
	struct error err = { 0 };
	struct rig rig;

	rig_start(&rig, &layout);
	CHECK_OK(rig_add_process(&rig, PUPPET_STRANGER, &err));
	rig_run_job(&rig, JOB_SWAP_OUT);
	CHECK_EQ(puppet_do(&rig, PUPPET_STRANGER, 0,
			   (struct puppet_order){
				   .kind = ORDER_CALL, .run = map_anew, .argument = rig.memfds[0] }),
		 0);
	engine_register_again(rig.engine, rig.process_ids[PUPPET_STRANGER]);
	puppet_check_all(&rig, PUPPET_STRANGER);
	rig_run_job(&rig, JOB_SWAP_OUT);
	stranger_writes(&rig, 5);
	rig_run_job(&rig, JOB_SWAP_OUT);
	puppet_check_all(&rig, 0);
	puppet_check_all(&rig, PUPPET_STRANGER);
	rig_stop(&rig);
}

static void refuse_ranges(struct rig *rig, struct range first, struct range second, const char *reason)
{
	struct range ranges[] = { first, second };
	struct error err = { 0 };

	CHECK_EQ(engine_set_ranges(rig->engine, rig->process_ids[PUPPET_STRANGER], ranges, 2, &err), -EINVAL);
	CHECK_CONTAINS(err.message, reason);
}

/* What was registered before stays so, also where it is a part of what was asked for, or the other way
 * round. */
TEST(ranges_that_cannot_be_are_refused_and_nothing_is_changed)
{
	struct error err = { 0 };
	struct range all, half, found[2];
	struct rig rig;
	uint64_t hits;
	uint32_t id;

	rig_start(&rig, &layout);
	CHECK_OK(rig_add_process(&rig, PUPPET_STRANGER, &err));
	id = rig.process_ids[PUPPET_STRANGER];
	rig_run_job(&rig, JOB_SWAP_OUT);
	all = half = stranger_range(&rig, 0);
	half.pages = PAGES / 2;
	refuse_ranges(&rig, all, (struct range){ 0x10000, all.page_idx + PAGES - 1, 1 }, "mapped twice, at ");
	refuse_ranges(&rig, half, (struct range){ half.addr + 4096, half.page_idx + PAGES / 2, 1 },
		      "overlap at ");
	refuse_ranges(&rig, half, (struct range){ 0x10000, PAGES, 1 }, "is not of one region");
	refuse_ranges(&rig, half, (struct range){ 0x10000, PAGES - 1, 2 }, "is not of one region");
	refuse_ranges(&rig, half, (struct range){ 0x10000, PAGES - 1, 1 }, "0x10000 cannot be registered");
	CHECK_EQ(engine_set_ranges(rig.engine, 1000, &all, 1, &err), -EINVAL);
	CHECK_EQ(engine_ranges_of(rig.engine, id, found, 2), 1);
	CHECK_EQ(found[0].addr, all.addr);
	CHECK_EQ(found[0].pages, PAGES);
	CHECK_EQ(engine_ranges_of(rig.engine, 1000, found, 2), 0);
	puppet_check_all(&rig, PUPPET_STRANGER);

	rig_run_job(&rig, JOB_SWAP_OUT);
	CHECK_OK(engine_set_ranges(rig.engine, id, &half, 1, &err));
	all.pages = PAGES - 1;
	CHECK_OK(failpoint_arm("uffd.minor=count"));
	hits = failpoint_hits("uffd.minor");
	refuse_ranges(&rig, all, (struct range){ 0x10000, PAGES - 1, 1 }, "0x10000 cannot be registered");
	/* nothing was registered for write-protection, which is what takes time to undo */
	CHECK_EQ(failpoint_hits("uffd.minor"), hits);
	for (uint64_t page = 0; page < PAGES / 2; page += 7)
		CHECK_EQ(puppet_do(&rig, PUPPET_STRANGER, 0,
				   (struct puppet_order){ .kind = ORDER_CHECK, .page = page }),
			 0);
	puppet_check_all(&rig, 0);
	rig_stop(&rig);
}

/* What only leaves, or is as it was, disturbs no swap-out and no kept copy. */
TEST(ranges_that_shrink_cost_nothing)
{
	struct error err = { 0 };
	struct range range;
	struct rig rig;

	rig_start(&rig, &layout);
	CHECK_OK(rig_add_process(&rig, PUPPET_STRANGER, &err));
	rig_run_job(&rig, JOB_SWAP_OUT);
	rig_run_job(&rig, JOB_SWAP_IN);
	rig_run_job(&rig, JOB_SWAP_OUT);
	puppet_check_all(&rig, 0);
	CHECK(rig_stats(&rig).kept_pages > 0);
	range = stranger_range(&rig, 0);
	CHECK_OK(engine_set_ranges(rig.engine, rig.process_ids[PUPPET_STRANGER], &range, 1, &err));
	refuse_ranges(&rig, range, range, "mapped twice");
	CHECK_OK(engine_set_ranges(rig.engine, rig.process_ids[PUPPET_STRANGER], NULL, 0, &err));
	CHECK(rig_stats(&rig).kept_pages > 0);
	CHECK_OK(engine_set_ranges(rig.engine, rig.process_ids[PUPPET_STRANGER], &range, 1, &err));
	engine_housekeep(rig.engine);
	CHECK_EQ(rig_stats(&rig).kept_pages, 0);
	CHECK(!engine_is_out(rig.engine, 0, PAGES));
	rig_run_job(&rig, JOB_SWAP_OUT);
	CHECK(engine_is_out(rig.engine, 5, 1));
	puppet_check_all(&rig, PUPPET_STRANGER);
	rig_stop(&rig);
}

static long unmap(void *addr, long pages)
{
	return munmap(addr, (size_t)pages * 4096) ? errno : 0;
}

/* What is not mapped cannot be registered in any way; that says nothing of write-protection. */
TEST(an_unmapped_range_costs_nobody_write_protection)
{
	struct error err = { 0 };
	struct notice done;
	struct rig rig;

	rig_start(&rig, &layout);
	CHECK_OK(rig_add_process(&rig, PUPPET_STRANGER, &err));
	CHECK_EQ(puppet_do(&rig, PUPPET_STRANGER, 0,
			   (struct puppet_order){ .kind = ORDER_CALL, .run = unmap, .argument = PAGES }),
		 0);
	rig_start_job(&rig, JOB_SWAP_OUT);
	done = rig_await_job(&rig);
	CHECK_EQ(done.code, EINVAL);
	CHECK_CONTAINS(done.message, "cannot be registered");
	CHECK_OK(engine_set_ranges(rig.engine, rig.process_ids[PUPPET_STRANGER], NULL, 0, &err));
	rig.options.mode = MODE_LIVE;
	rig_run_job(&rig, JOB_SWAP_OUT);
	puppet_check_all(&rig, 0);
	rig_stop(&rig);
}

/* A process that is given up while memory is out does not wait for ever. */
TEST(a_process_that_is_removed_and_lives)
{
	struct error err = { 0 };
	struct rig rig;

	rig_start(&rig, &layout);
	CHECK_OK(rig_add_process(&rig, PUPPET_STRANGER, &err));
	rig_run_job(&rig, JOB_SWAP_OUT);
	CHECK_OK(engine_remove_process(rig.engine, rig.process_ids[PUPPET_STRANGER], &err));
	puppet_check_all(&rig, 0); /* first: what comes back is there for all */
	puppet_check_all(&rig, PUPPET_STRANGER);
	rig_stop(&rig);
}

/* Memory that was added and cannot be kept is taken back at once, whatever else is going on. */
TEST(an_added_region_is_undone_during_a_job)
{
	struct error err = { 0 };
	struct rig rig;
	int memfd = memfd_create("further", MFD_CLOEXEC);
	uint64_t page_idx;

	CHECK_SYS(ftruncate(memfd, 16 * 4096));
	rig_start(&rig, &layout);
	rig_start_job_until(&rig, JOB_SWAP_OUT, "evict.read");
	CHECK_OK(engine_add_region(rig.engine, memfd, 0, 16 * 4096, &page_idx, &err));
	CHECK_EQ(engine_remove_region(rig.engine, page_idx, &err), -EBUSY);
	CHECK_OK(engine_undo_add_region(rig.engine, page_idx, &err));
	CHECK_EQ(rig_stats(&rig).total_pages, PAGES);
	rig_disarm("evict.read");
	rig_end_job(&rig);
	puppet_check_all(&rig, 0);
	rig_stop(&rig);
}

/* Two for each call: neighbours with other rights are not joined. */
static long exhaust_mappings(void *unused, long n_max)
{
	(void)unused;
	for (long n = 0; n < n_max; n++) {
		void *at =
			mmap(NULL, 2 * 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

		if (at == MAP_FAILED || mprotect(at, 4096, PROT_READ))
			return 0;
	}
	return -1;
}

/* The kernel cannot split a mapping of it, and says so with the errno that else stands for its end. */
TEST(a_process_with_all_the_mappings_that_it_may_have_lives)
{
	struct error err = { 0 };
	struct range range;
	struct rig rig;

	rig_start(&rig, &layout);
	CHECK_OK(engine_add_process(rig.engine, rig.uffds[PUPPET_STRANGER], NULL, 0,
				    &rig.process_ids[PUPPET_STRANGER], &err));
	rig_run_job(&rig, JOB_SWAP_OUT);
	CHECK_EQ(puppet_do(&rig, PUPPET_STRANGER, 0,
			   (struct puppet_order){
				   .kind = ORDER_CALL, .run = exhaust_mappings, .argument = 1000000 }),
		 0);
	range = stranger_range(&rig, 0);
	range.pages = PAGES / 2;
	CHECK_EQ(engine_set_ranges(rig.engine, rig.process_ids[PUPPET_STRANGER], &range, 1, &err), -EINVAL);
	range.pages = PAGES;
	CHECK_OK(engine_set_ranges(rig.engine, rig.process_ids[PUPPET_STRANGER], &range, 1, &err));
	CHECK_EQ(rig.gone, 0);
	puppet_check_all(&rig, PUPPET_STRANGER);
	rig_stop(&rig);
}

static const struct layout moving = {
	.memfd_pages = { PAGES }, .regions = { { 0, 0, PAGES } }, .full = 1, .moves = 1
};

/* Its new address. */
static long move_all(void *addr, long unused)
{
	(void)unused;
	return (long)mremap(addr, PAGES * 4096, PAGES * 4096, MREMAP_MAYMOVE | MREMAP_FIXED,
			    mmap(NULL, PAGES * 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
}

static long unmap_half(void *addr, long unused)
{
	(void)unused;
	return munmap((char *)addr + PAGES / 2 * 4096, PAGES / 2 * 4096) ? errno : 0;
}

static void check_half(struct rig *rig)
{
	CHECK_EQ(puppet_do(rig, 0, 0, (struct puppet_order){ .kind = ORDER_CHECK, .pages = PAGES / 2 }), 0);
}

static void check_told(struct rig *rig, uint64_t addr, uint64_t pages)
{
	struct range range;

	rig_await_notice(rig, NOTICE_PROCESS_MOVED);
	CHECK_EQ(engine_ranges_of(rig->engine, rig->process_ids[0], &range, 1), 1);
	CHECK_EQ(range.addr, addr);
	CHECK_EQ(range.page_idx, rig->first_idx[0]);
	CHECK_EQ(range.pages, pages);
}

/* All of it while it is out: served at its new place, and told of each time. */
TEST(memory_that_is_moved_and_unmapped_is_followed)
{
	struct puppet_order move = { .kind = ORDER_CALL, .run = move_all };
	struct rig rig;
	uint64_t addr;

	rig_start(&rig, &moving);
	for (unsigned round = 0; round < 2; round++) {
		rig_run_job(&rig, JOB_SWAP_OUT);
		addr = puppet_do(&rig, 0, 0, move);
		rig.shared->base_addr[0][0] = addr;
		puppet_check_all(&rig, 0);
		check_told(&rig, addr, PAGES);
	}
	rig_run_job(&rig, JOB_SWAP_OUT);
	CHECK_EQ(puppet_do(&rig, 0, 0, (struct puppet_order){ .kind = ORDER_CALL, .run = unmap_half }), 0);
	check_told(&rig, addr, PAGES / 2);
	check_half(&rig);
	rig_run_job(&rig, JOB_SWAP_OUT);
	rig_run_job(&rig, JOB_SWAP_IN);
	check_half(&rig);
	CHECK_EQ(rig.odd, 0);
	rig_stop(&rig);
}

/* Who maps the memory is found before the freeze. A process that comes after that must stand still too: all
 * again. */
TEST(a_process_that_comes_before_the_freeze_is_frozen_too)
{
	static const struct layout alone = { .memfd_pages = { PAGES },
					     .regions = { { 0, 0, PAGES } },
					     .full = 1 };
	uint64_t before;
	struct rig rig;

	rig_start(&rig, &alone);
	rig.options.mode = MODE_FREEZE;
	CHECK_OK(failpoint_arm("mappers.read=count"));
	before = failpoint_hits("swapper.listed");
	rig_start_job_until(&rig, JOB_SWAP_OUT, "swapper.listed");
	rig_fork(&rig, 1);
	rig_disarm("swapper.listed");
	rig_end_job(&rig);
	CHECK_EQ(failpoint_hits("swapper.listed") - before, 2);
	CHECK_OK(failpoint_arm("mappers.read=off"));
	CHECK_EQ(rig_resident_pages(&rig, 0, PAGES), 0);
	puppet_check_all(&rig, 0);
	puppet_check_all(&rig, 1);
	rig_stop(&rig);
}

/* A slow disk, say: the guest runs again, and what was out by then is served. */
TEST(a_freeze_that_takes_too_long_is_called_off)
{
	static const struct layout alone = { .memfd_pages = { PAGES },
					     .regions = { { 0, 0, PAGES } },
					     .full = 1 };
	struct notice done;
	struct rig rig;

	rig_start(&rig, &alone);
	rig.options.mode = MODE_FREEZE;
	rig.options.freeze_limit_ms = 20;
	rig_arm(&rig, "evict.stored", "sleep:20");
	rig_start_job(&rig, JOB_SWAP_OUT);
	done = rig_await_job(&rig);
	CHECK_EQ(done.code, ETIMEDOUT);
	CHECK(strstr(done.message, "FreezeLimitSec"));
	CHECK(rig_resident_pages(&rig, 0, PAGES) > 0);
	rig_disarm("evict.stored");
	puppet_check_all(&rig, 0);
	rig.options.freeze_limit_ms = 0;
	rig_run_job(&rig, JOB_SWAP_OUT);
	CHECK_EQ(rig_resident_pages(&rig, 0, PAGES), 0);
	puppet_check_all(&rig, 0);
	rig_stop(&rig);
}

static uint64_t map_bytes(const struct rig *rig)
{
	struct stat status;

	CHECK_SYS(fstat(engine_page_map_fd(rig->engine), &status));
	return (uint64_t)status.st_blocks * 512;
}

/* Whoever plugs memory asks whether anything is out, of all that there is. */
TEST(asking_whether_anything_is_out_costs_no_memory)
{
	static const struct layout sparse = { .memfd_pages = { 8192 },
					      .regions = { { 0, 0, 8192 } },
					      .empty = 1 };
	struct puppet_order write = { .kind = ORDER_WRITE, .page = 3 };
	struct rig rig;
	uint64_t before;

	rig_start(&rig, &sparse);
	puppet_do(&rig, 0, 0, write);
	rig_run_job(&rig, JOB_SWAP_OUT);
	rig_run_job(&rig, JOB_SWAP_IN);
	before = map_bytes(&rig);
	CHECK(!engine_is_out(rig.engine, 0, 8192));
	CHECK_EQ(map_bytes(&rig), before);
	rig_stop(&rig);
}
