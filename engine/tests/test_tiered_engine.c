/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What test_engine.c asks, with pages in the tiers; and a VM whose pages were put out before there were any. */
#define TEST_TIERS true
#include "test_engine.c"

static uint32_t version_of(int page_map_fd)
{
	uint32_t version = 0;

	CHECK_EQ(pread(page_map_fd, &version, sizeof version, 8), sizeof version);
	return version;
}

/* The engine is gone, and its successor serves what it left. */
static void succeed(struct rig *rig, struct engine_config *config)
{
	struct error err = { 0 };
	struct range ranges[VMM_REGIONS];
	uint64_t out_pages;
	uint32_t id, last_job;

	if (engine_create(config, &rig->engine, &err))
		FAIL("engine_create: %s", err.message);
	for (int i = 0; i < VMM_REGIONS; i++) {
		CHECK(engine_add_region(rig->engine, rig->vmm.memfds[i], 0, rig->vmm.pages[i] * 4096,
					&rig->first_idx[i], &err) == 0);
		ranges[i] =
			(struct range){ rig->vmm.shared->base_addr[i], rig->first_idx[i], rig->vmm.pages[i] };
	}
	CHECK(engine_add_process(rig->engine, rig->vmm.uffd, ranges, VMM_REGIONS, &id, &err) == 0);
	if (engine_recover(rig->engine, &out_pages, &last_job, &err))
		FAIL("engine_recover: %s", err.message);
	CHECK_OK(engine_start(rig->engine, &err));
}

static void write_some(struct rig *rig)
{
	uint64_t operations = rig->vmm.shared->operations;

	vmm_run(&rig->vmm);
	while (rig->vmm.shared->operations < operations + 300)
		sched_yield();
	vmm_idle(&rig->vmm);
}

static void flush(struct rig *rig)
{
	struct error err;
	int rc;

	while ((rc = engine_flush_step(rig->engine, &err)) == 1)
		;
	CHECK_OK(rc);
	while (engine_tend(rig->engine))
		;
}

TEST(what_was_put_out_before_there_were_tiers_comes_back_and_what_follows_goes_there)
{
	struct engine_config config = new_engine;
	struct rig rig = { 0 };

	vmm_start(&rig.vmm, PAGES_0, PAGES_1, 2);
	attach_engine(&rig, &config); /* without tiers */
	run_job(&rig, JOB_SWAP_OUT, MODE_LIVE);
	config.page_map_fd = (int)CHECK_SYS(dup(engine_page_map_fd(rig.engine)));
	config.store_fd = (int)CHECK_SYS(dup(engine_store_fd(rig.engine)));
	CHECK_EQ(version_of(config.page_map_fd), 1);
	engine_destroy(rig.engine);

	test_use_tiers(&config);
	succeed(&rig, &config);
	CHECK_EQ(version_of(config.page_map_fd), 2);
	write_some(&rig);
	run_job(&rig, JOB_SWAP_OUT, MODE_LIVE);
	CHECK(stats_of(&rig).stored_ram_bytes > 0);
	CHECK(stats_of(&rig).stored_disk_bytes > 0); /* what is in the file stays there */
	test_keep_tiers(&config, rig.engine);
	engine_destroy(rig.engine);

	succeed(&rig, &config);
	check_bytes(&rig);
	run_job(&rig, JOB_SWAP_OUT, MODE_LIVE);
	run_job(&rig, JOB_SWAP_IN, MODE_NONE);
	check_bytes(&rig);
	CHECK_EQ(stats_of(&rig).stored_ram_bytes, 0);
	CHECK_EQ(stats_of(&rig).stored_disk_bytes, 0);
	rig_stop(&rig);
}

TEST(all_that_is_out_goes_from_ram_to_disk_and_comes_back_from_there)
{
	struct rig rig;

	rig_start(&rig, 2);
	run_job(&rig, JOB_SWAP_OUT, MODE_LIVE);
	CHECK_EQ(stats_of(&rig).stored_disk_bytes, 0);
	flush(&rig);
	CHECK_EQ(stats_of(&rig).stored_ram_bytes, 0);
	CHECK(stats_of(&rig).stored_disk_bytes > 0);
	CHECK(stats_of(&rig).written_bytes > 0);
	check_bytes(&rig); /* all by demand faults */
	run_job(&rig, JOB_SWAP_OUT, MODE_LIVE);
	flush(&rig);
	run_job(&rig, JOB_SWAP_IN, MODE_NONE);
	check_bytes(&rig);
	rig_stop(&rig);
}

/* Most pages are written anew, so that what is left of the segments is sparse, and is compacted while the guest runs. */
TEST(sparse_segments_are_compacted_under_a_guest_that_runs)
{
	uint64_t before_bytes;
	struct rig rig;

	rig_start(&rig, 2);
	run_job(&rig, JOB_SWAP_OUT, MODE_LIVE);
	before_bytes = stats_of(&rig).stored_ram_bytes;
	vmm_run(&rig.vmm);
	while (stats_of(&rig).stored_ram_bytes >= before_bytes)
		engine_tend(rig.engine);
	vmm_idle(&rig.vmm);
	while (engine_tend(rig.engine))
		;
	check_bytes(&rig);
	run_job(&rig, JOB_SWAP_IN, MODE_NONE);
	check_bytes(&rig);
	rig_stop(&rig);
}

/* What is out stays served, what is not stays resident, and a later try works. */
TEST(no_memory_for_the_ram_tier_and_no_disk)
{
	struct swap_out_options options = { .mode = MODE_LIVE, .max_passes = 1 };
	struct error err = { 0 };
	struct notice done;
	struct rig rig;

	rig_start(&rig, 2);
	CHECK_OK(failpoint_arm("store.ram=ENOMEM"));
	CHECK_OK(engine_start_job(rig.engine, JOB_SWAP_OUT, &options, &err));
	done = wait_job(&rig);
	CHECK(done.code == ENOMEM && done.message[0]);
	check_bytes(&rig);
	CHECK_OK(failpoint_arm("store.ram=off"));
	run_job(&rig, JOB_SWAP_OUT, MODE_LIVE);
	CHECK_EQ(vmm_resident_pages(&rig.vmm), 0);
	check_bytes(&rig);
	rig_stop(&rig);
}

/* The write budget ends before all has moved: the rest stays in RAM and is served from there. */
TEST(a_spent_write_budget_leaves_pages_in_ram)
{
	struct error err = { 0 };
	struct rig rig;

	rig_start(&rig, 2);
	run_job(&rig, JOB_SWAP_OUT, MODE_LIVE);
	engine_set_write_budget(rig.engine, 0);
	CHECK_EQ(engine_flush_step(rig.engine, &err), -ENOSPC);
	CHECK_CONTAINS(err.message, "WriteBudgetPerDay=");
	CHECK_EQ(stats_of(&rig).limited_by, LIMITED_BY_WRITE_BUDGET);
	CHECK_EQ(stats_of(&rig).written_bytes, 0);
	check_bytes(&rig);
	rig_stop(&rig);
}
