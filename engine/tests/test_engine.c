/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The engine as a whole, on a real process whose threads check every byte. */
#include "engine.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/failpoint.h"
#include "harness.h"
#include "store/store.h"
#include "tiers.h"
#include "vmm.c" /* the one user of it; the harness links one file a test */

#define FAIL(...) test_fail(__FILE__, __LINE__, __VA_ARGS__)

#define PAGES_0 1500 /* not a multiple of the chunk: three and a bit */
#define PAGES_1 700

struct rig {
	struct vmm vmm;
	struct engine *engine;
	uint64_t first_idx[VMM_REGIONS];
	unsigned forked;
};

static void attach_engine(struct rig *rig, const struct engine_config *config)
{
	struct error err = { 0 };
	struct range ranges[VMM_REGIONS];
	uint32_t id;

	if (engine_create(config, &rig->engine, &err))
		FAIL("engine_create: %s", err.message);
	for (int i = 0; i < VMM_REGIONS; i++) {
		CHECK(engine_add_region(rig->engine, rig->vmm.memfds[i], 0, rig->vmm.pages[i] * 4096,
					&rig->first_idx[i], &err) == 0);
		ranges[i] =
			(struct range){ rig->vmm.shared->base_addr[i], rig->first_idx[i], rig->vmm.pages[i] };
	}
	CHECK(engine_add_process(rig->engine, rig->vmm.uffd, ranges, VMM_REGIONS, &id, &err) == 0);
	CHECK(engine_register_dummy(rig->engine, id, rig->vmm.shared->dummy_addr, &err) == 0);
	CHECK(engine_start(rig->engine, &err) == 0);
}

static const struct engine_config new_engine = {
	.swap_dir = "/tmp", .workers = 2, .fault_threads = 3, .page_map_fd = -1, .store_fd = -1
};

static void rig_start(struct rig *rig, uint32_t workers)
{
	int uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC);
	struct engine_config config;

	if (uffd < 0)
		test_skip("no userfaultfd here: %s", strerror(errno));
	close(uffd);
	memset(rig, 0, sizeof *rig);
	vmm_start(&rig->vmm, PAGES_0, PAGES_1, workers);
	config = new_engine;
	test_use_tiers(&config);
	attach_engine(rig, &config);
}

static void rig_stop(struct rig *rig)
{
	vmm_stop(&rig->vmm);
	engine_destroy(rig->engine);
}

/* A page is there a little before the engine has noted that; whoever changes the set of processes waits for
 * it. */
static void settle(struct rig *rig)
{
	struct error err = { 0 };

	CHECK(engine_remove_process(rig->engine, UINT32_MAX, &err) == -ESRCH);
}

/* Wait for the job's end, noting forks on the way. */
static struct notice wait_job(struct rig *rig)
{
	struct pollfd waiting = { .fd = engine_notices_fd(rig->engine), .events = POLLIN };
	struct notice notice;

	for (;;) {
		if (poll(&waiting, 1, 60000) != 1)
			FAIL("no end of the job within a minute");
		while (engine_take_notice(rig->engine, &notice)) {
			if (notice.kind == NOTICE_JOB_DONE)
				return notice;
			if (notice.kind == NOTICE_PROCESS_FORKED)
				rig->forked++;
			else if (notice.kind == NOTICE_ODD)
				FAIL("odd: page %llu: %s", (unsigned long long)notice.page_idx,
				     notice.message);
		}
	}
}

static void run_job(struct rig *rig, uint32_t job, enum swap_mode mode)
{
	struct swap_out_options options = { .mode = mode, .max_passes = 2, .freeze_timeout_ms = 10000 };
	struct error err = { 0 };
	struct notice done;

	settle(rig);
	if (engine_start_job(rig->engine, job, &options, &err))
		FAIL("engine_start_job: %s", err.message);
	done = wait_job(rig);
	if (done.code)
		FAIL("job %u: %s", job, done.message);
}

static void check_bytes(struct rig *rig)
{
	struct vmm_shared *shared = rig->vmm.shared;

	vmm_check(&rig->vmm);
	if (shared->wrong_pages)
		FAIL("%llu wrong pages, first %llu: %#llx instead of %#llx",
		     (unsigned long long)shared->wrong_pages, (unsigned long long)shared->first_wrong_page,
		     (unsigned long long)shared->first_wrong_value,
		     (unsigned long long)shared->first_wrong_wanted);
}

static struct engine_stats stats_of(struct rig *rig)
{
	struct engine_stats stats;

	settle(rig);
	engine_read_stats(rig->engine, &stats);
	return stats;
}

static void out_and_in(enum swap_mode mode)
{
	struct engine_stats stats;
	struct rig rig;

	rig_start(&rig, 2);
	run_job(&rig, JOB_SWAP_OUT, mode);
	CHECK(vmm_resident_pages(&rig.vmm) == 0);
	stats = stats_of(&rig);
	CHECK(stats.resident_pages == 0);
	CHECK(stats.total_pages == PAGES_0 + PAGES_1);
	CHECK(stats.swap_pages == (PAGES_0 + PAGES_1) - (PAGES_0 + PAGES_1) / 8);
	CHECK(stats.last_mode == mode && stats.tracking);
	check_bytes(&rig); /* all by demand faults */
	stats = stats_of(&rig);
	CHECK(stats.swap_pages == 0);
	CHECK(stats.copied_pages == (PAGES_0 + PAGES_1) - (PAGES_0 + PAGES_1) / 8);
	CHECK(stats.zeroed_pages == (PAGES_0 + PAGES_1) / 8);
	CHECK(stats.fault_count >= stats.copied_pages);
	run_job(&rig, JOB_SWAP_OUT, mode);
	CHECK(vmm_resident_pages(&rig.vmm) == 0);
	run_job(&rig, JOB_SWAP_IN, MODE_NONE);
	stats = stats_of(&rig);
	CHECK(stats.swap_pages == 0 && !stats.tracking && stats.stored_disk_bytes == 0);
	check_bytes(&rig);
	rig_stop(&rig);
}

/* What came back unchanged goes out again without being written; what the guest wrote since does not. */
TEST(kept_copies)
{
	uint64_t written_bytes;
	struct engine_stats stats;
	struct rig rig;

	rig_start(&rig, 2);
	run_job(&rig, JOB_SWAP_OUT, MODE_LIVE);
	while (engine_tend(rig.engine)) /* tiers: what does not compress goes to disk now */
		;
	written_bytes = stats_of(&rig).written_bytes;
	check_bytes(&rig); /* reads only */
	stats = stats_of(&rig);
	CHECK(stats.swap_pages == 0);
	CHECK_EQ(stats.kept_pages, PAGES_0 + PAGES_1 - (PAGES_0 + PAGES_1) / 8);
	run_job(&rig, JOB_TRIM, MODE_LIVE);
	stats = stats_of(&rig);
	CHECK_EQ(stats.resident_pages, 0);
	CHECK_EQ(stats.kept_pages, 0);
	CHECK_EQ(stats.written_bytes, written_bytes);
	vmm_run(&rig.vmm);
	while (rig.vmm.shared->operations < 3000)
		sched_yield();
	vmm_idle(&rig.vmm);
	run_job(&rig, JOB_SWAP_OUT, MODE_LIVE);
	CHECK(TEST_TIERS || stats_of(&rig).written_bytes > written_bytes);
	check_bytes(&rig);
	run_job(&rig, JOB_SWAP_IN, MODE_NONE);
	stats = stats_of(&rig);
	CHECK(stats.kept_pages == 0 && stats.stored_disk_bytes == 0);
	check_bytes(&rig);
	rig_stop(&rig);
}

TEST(out_and_in_live)
{
	out_and_in(MODE_LIVE);
}

TEST(out_and_in_frozen)
{
	out_and_in(MODE_FREEZE);
}

/* Ten rounds with writers, forked devices and pages given up in every way. */
static void rounds(enum swap_mode mode, bool give_up)
{
	struct rig rig;

	rig_start(&rig, 3);
	rig.vmm.shared->give_up = give_up;
	vmm_run(&rig.vmm);
	for (unsigned round = 0; round < 10; round++) {
		uint64_t before = rig.vmm.shared->operations;

		if (round == 3)
			rig.vmm.shared->forks = 1;
		run_job(&rig, JOB_SWAP_OUT, mode);
		if (round == 5)
			rig.vmm.shared->forks = 2;
		while (rig.vmm.shared->operations < before + 200)
			sched_yield();
		if (round % 2)
			run_job(&rig, JOB_SWAP_IN, MODE_NONE);
	}
	vmm_idle(&rig.vmm);
	check_bytes(&rig);
	run_job(&rig, JOB_SWAP_OUT, mode);
	run_job(&rig, JOB_TRIM, mode);
	check_bytes(&rig);
	CHECK(rig.forked == 2);
	rig_stop(&rig);
}

TEST(rounds_live)
{
	rounds(MODE_LIVE, false);
}

TEST(rounds_frozen)
{
	rounds(MODE_FREEZE, false);
}

TEST(rounds_giving_pages_up)
{
	rounds(MODE_LIVE, true);
}

/* The guest writes everywhere, so it would be waited for as long as may be. */
TEST(the_wait_for_hot_pages_has_a_bound)
{
	uint64_t max = swapper_hot_looks_max(PAGES_0 + PAGES_1);
	struct rig rig;

	CHECK(swapper_hot_looks_max((uint64_t)1 << 30) * 2 <= 1000); /* of 4 TiB: a look is 2 ms */
	rig_start(&rig, 4);
	CHECK_OK(failpoint_arm("swapper.looked=count"));
	vmm_run(&rig.vmm);
	run_job(&rig, JOB_SWAP_OUT, MODE_LIVE);
	CHECK(failpoint_hits("swapper.looked") >= 1 &&
	      failpoint_hits("swapper.looked") <= 2 * max); /* of two passes */
	vmm_idle(&rig.vmm);
	rig_stop(&rig);
}

/* Every eighth page is zeros, and is not written. What lies between them goes out in one write a window. */
TEST(a_window_of_mixed_memory_takes_one_write)
{
	const uint64_t windows =
		(PAGES_0 + CHUNK_PAGES - 1) / CHUNK_PAGES + (PAGES_1 + CHUNK_PAGES - 1) / CHUNK_PAGES;
	struct rig rig;

	rig_start(&rig, 2);
	CHECK_OK(failpoint_arm("store.write=count;store.read=count"));
	run_job(&rig, JOB_SWAP_OUT, MODE_LIVE);
	CHECK(failpoint_hits("store.write") <= windows);
	run_job(&rig, JOB_SWAP_IN, MODE_NONE);
	/* where a window's records began in one segment of the tiers and ended in the next, both are read */
	CHECK(failpoint_hits("store.read") <= (TEST_TIERS ? 2 : 1) * windows);
	check_bytes(&rig);
	rig_stop(&rig);
}

TEST(turn_round)
{
	struct swap_out_options options = { .mode = MODE_LIVE, .max_passes = 1 };
	struct error err = { 0 };
	struct rig rig;

	rig_start(&rig, 2);
	vmm_run(&rig.vmm);
	CHECK(failpoint_arm("evict.stored=stall@2") == 0);
	CHECK(engine_start_job(rig.engine, JOB_SWAP_OUT, &options, &err) == 0);
	while (failpoint_hits("evict.stored") < 3)
		sched_yield();
	CHECK(engine_start_job(rig.engine, JOB_SWAP_IN, &options, &err) == -EBUSY);
	engine_cancel_job(rig.engine);
	CHECK(failpoint_arm("evict.stored=off") == 0);
	CHECK(wait_job(&rig).cancelled);
	run_job(&rig, JOB_SWAP_IN, MODE_NONE);
	CHECK(stats_of(&rig).swap_pages == 0);
	vmm_idle(&rig.vmm);
	check_bytes(&rig);
	rig_stop(&rig);
}

/* No space: what is out stays served, what is not stays resident, and a later try works. */
TEST(no_space)
{
	struct swap_out_options options = { .mode = MODE_LIVE, .max_passes = 1 };
	struct error err = { 0 };
	struct notice done;
	struct rig rig;

	if (TEST_TIERS)
		return;	    /* test_tiers.c asks that of them */
	rig_start(&rig, 2); /* idle: if it wrote to most pages meanwhile there would be no second write */
	CHECK(failpoint_arm("store.write=ENOSPC@2") == 0);
	CHECK(engine_start_job(rig.engine, JOB_SWAP_OUT, &options, &err) == 0);
	done = wait_job(&rig);
	CHECK(done.code == 0 && done.limited_by == LIMITED_BY_NO_SPACE && done.message[0]);
	CHECK_EQ(stats_of(&rig).limited_by, LIMITED_BY_NO_SPACE);
	CHECK(stats_of(&rig).swap_pages > 0 && vmm_resident_pages(&rig.vmm) > 0);
	CHECK(failpoint_arm("store.write=off") == 0);
	vmm_run(&rig.vmm);
	vmm_idle(&rig.vmm);
	check_bytes(&rig);
	run_job(&rig, JOB_SWAP_OUT, MODE_LIVE);
	CHECK_EQ(stats_of(&rig).limited_by, LIMITED_BY_NOTHING);
	CHECK(vmm_resident_pages(&rig.vmm) == 0);
	check_bytes(&rig);
	rig_stop(&rig);
}

/* The engine goes away with everything out; a successor takes over from the same fds. */
TEST(successor)
{
	struct engine_config config = new_engine;
	struct error err = { 0 };
	struct range ranges[VMM_REGIONS];
	uint64_t out_pages, written_bytes;
	uint32_t id, last_job;
	struct rig rig;

	rig_start(&rig, 2);
	run_job(&rig, JOB_SWAP_OUT, MODE_LIVE);
	written_bytes = stats_of(&rig).written_bytes;
	CHECK(TEST_TIERS || written_bytes > 0);
	config.page_map_fd = dup(engine_page_map_fd(rig.engine));
	config.store_fd = dup(engine_store_fd(rig.engine));
	test_keep_tiers(&config, rig.engine);
	engine_destroy(rig.engine);
	vmm_run(&rig.vmm); /* its threads run into holes, and wait */
	CHECK(engine_create(&config, &rig.engine, &err) == 0);
	for (int i = 0; i < VMM_REGIONS; i++) {
		CHECK(engine_add_region(rig.engine, rig.vmm.memfds[i], 0, rig.vmm.pages[i] * 4096,
					&rig.first_idx[i], &err) == 0);
		ranges[i] =
			(struct range){ rig.vmm.shared->base_addr[i], rig.first_idx[i], rig.vmm.pages[i] };
	}
	CHECK(engine_add_process(rig.engine, rig.vmm.uffd, ranges, VMM_REGIONS, &id, &err) == 0);
	if (engine_recover(rig.engine, &out_pages, &last_job, &err))
		FAIL("engine_recover: %s", err.message);
	CHECK(out_pages == (PAGES_0 + PAGES_1) - (PAGES_0 + PAGES_1) / 8);
	CHECK(last_job == JOB_NONE);
	/* Since the VM registered; pages in RAM may have gone to disk since we looked. */
	if (TEST_TIERS)
		CHECK(stats_of(&rig).written_bytes >= written_bytes);
	else
		CHECK_EQ(stats_of(&rig).written_bytes, written_bytes);
	CHECK(engine_start(rig.engine, &err) == 0);
	vmm_idle(&rig.vmm);
	check_bytes(&rig);
	run_job(&rig, JOB_SWAP_IN, MODE_NONE);
	close(config.page_map_fd);
	close(config.store_fd);
	rig_stop(&rig);
}
