/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Processes that join, mappings and files that change: each case lost a byte, or hung, in some version of the engine. */
#include "puppet.h"

#define PAGES 1024

static const struct layout layout = { .memfd_pages = { PAGES }, .regions = { { 0, 0, PAGES } }, .full = 1, .stranger = 1 };

static void stranger_writes(struct rig *rig, uint64_t page)
{
	puppet_do(rig, PUPPET_STRANGER, 0, (struct puppet_order){ .kind = ORDER_WRITE, .page = page, .half = 1 });
}

/* What came back unchanged is write-protected in the processes of then. One that joins later writes without an event: no kept
 * copy may be there any more when it does. */
TEST(kept_copies_end_when_a_process_joins)
{
	struct error err = { 0 };
	struct rig rig;

	rig_start(&rig, &layout);
	rig_run_job(&rig, JOB_SWAP_OUT);
	puppet_check_all(&rig, 0);
	CHECK(rig_stats(&rig).kept_pages > 0);
	CHECK_OK(rig_add_process(&rig, PUPPET_STRANGER, &err));
	CHECK_EQ(rig_stats(&rig).kept_pages, 0);
	stranger_writes(&rig, 5);
	rig_run_job(&rig, JOB_SWAP_OUT);
	puppet_check_all(&rig, 0);
	rig_stop(&rig);
}

/* The pass that it joins in evicts nothing more; what that pass had protected is protected anew, in all, by the next. */
TEST(what_a_pass_left_is_protected_anew)
{
	struct error err = { 0 };
	struct rig rig;

	rig_start(&rig, &layout);
	rig_start_job_until(&rig, JOB_SWAP_OUT, "evict.read");
	CHECK_OK(rig_add_process(&rig, PUPPET_STRANGER, &err));
	rig_disarm("evict.read");
	rig_end_job(&rig);
	rig_start_job_until(&rig, JOB_SWAP_OUT, "evict.read");
	stranger_writes(&rig, 5);
	rig_disarm("evict.read");
	rig_end_job(&rig);
	puppet_check_all(&rig, 0);
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

/* The kernel registers no mapping that could never be written to. What cannot be registered cannot be watched, so nothing goes
 * out; it is not a kernel without write-protection, for which freezing would do. */
TEST(a_mapping_that_cannot_be_registered_stops_the_swap_out)
{
	struct error err = { 0 };
	struct notice done;
	struct rig rig;

	rig_start(&rig, &layout);
	CHECK_EQ(puppet_do(&rig, PUPPET_STRANGER, 0,
			   (struct puppet_order){ .kind = ORDER_CALL, .run = map_read_only, .argument = rig.memfds[0] }),
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

/* read() gives page faults before events, and an unread event makes every COPY fail. So the list of faults to be served may be
 * full when the event is what must be read: more threads wait here than the one fault thread has room for. */
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
	puppet_do(&rig, 0, 2, (struct puppet_order){ .kind = ORDER_CALL, .page = 0, .run = touch_many, .argument = 100 });
	puppet_tell(&rig, 0, 3, (struct puppet_order){ .kind = ORDER_REMOVE, .page = 900 });
	CHECK(!puppet_done_in(&rig, 0, 3, 300)); /* it waits for its event to be read; meanwhile the others have faulted */
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
