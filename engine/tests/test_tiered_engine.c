/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What test_engine.c asks, with pages in the tiers; and a VM whose pages were put out before there were
 * any. */
#define TEST_TIERS true
#include "test_engine.c"

#include <stddef.h>

#include "store/segments_inside.h"

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
	CHECK(stats_of(&rig).record_bytes > 0);
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

/* Most pages are written anew, so that what is left of the segments is sparse, and is compacted while the
 * guest runs. */
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
	CHECK(done.code == 0 && done.limited_by == LIMITED_BY_NO_SPACE && done.message[0]);
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
	engine_limit_writes(rig.engine, 0);
	run_job(&rig, JOB_SWAP_OUT, MODE_LIVE);
	CHECK_EQ(engine_flush_step(rig.engine, &err), -ENOSPC);
	CHECK_CONTAINS(err.message, "WriteBudgetPerDay=");
	CHECK_EQ(stats_of(&rig).written_bytes, 0);
	check_bytes(&rig);
	rig_stop(&rig);
}

/* --- beside all jobs: the tender */

/* Pages are not compressed, so that all of them stay in RAM until something moves them. */
static void start_uncompressed(struct rig *rig, uint32_t ram_age_s)
{
	struct engine_config config = new_engine;

	memset(rig, 0, sizeof *rig);
	vmm_start(&rig->vmm, PAGES_0, PAGES_1, 2);
	test_use_tiers(&config);
	config.compress = false;
	config.ram_age_s = ram_age_s;
	attach_engine(rig, &config);
}

static void wait_until_all_is_on_disk(struct rig *rig)
{
	uint64_t until_ns = monotonic_ns() + 60000000000u;

	while (stats_of(rig).stored_ram_bytes) {
		if (monotonic_ns() > until_ns)
			FAIL("%llu bytes are still in RAM after a minute",
			     (unsigned long long)stats_of(rig).stored_ram_bytes);
		usleep(1000);
	}
	CHECK(stats_of(rig).stored_disk_bytes > 0);
}

/* Memory and blocks of pages that came back are released without any call of ours. */
static void wait_for_release(struct rig *rig)
{
	uint64_t until_ns = monotonic_ns() + 60000000000u;

	while (stats_of(rig).stored_ram_bytes || stats_of(rig).stored_disk_bytes) {
		if (monotonic_ns() > until_ns)
			FAIL("%llu bytes of RAM and %llu of disk are still taken after a minute",
			     (unsigned long long)stats_of(rig).stored_ram_bytes,
			     (unsigned long long)stats_of(rig).stored_disk_bytes);
		usleep(1000);
	}
}

TEST(pages_age_to_disk_by_themselves)
{
	struct rig rig;

	start_uncompressed(&rig, 1);
	run_job(&rig, JOB_SWAP_OUT, MODE_LIVE);
	wait_until_all_is_on_disk(&rig);
	check_bytes(&rig);
	rig_stop(&rig);
}

TEST(pages_go_to_disk_once_the_host_is_short_of_memory)
{
	struct rig rig;

	start_uncompressed(&rig, 3600);
	run_job(&rig, JOB_SWAP_OUT, MODE_LIVE);
	CHECK_EQ(stats_of(&rig).stored_disk_bytes, 0);
	engine_host_is_short(rig.engine, true);
	wait_until_all_is_on_disk(&rig);
	engine_host_is_short(rig.engine, false);
	check_bytes(&rig);
	write_some(&rig);
	run_job(&rig, JOB_SWAP_OUT, MODE_LIVE);
	CHECK(stats_of(&rig).stored_ram_bytes > 0);
	rig_stop(&rig);
}

TEST(pages_age_while_a_swap_out_is_under_way)
{
	struct swap_out_options options = { .mode = MODE_LIVE, .max_passes = 1 };
	struct error err = { 0 };
	struct rig rig;

	start_uncompressed(&rig, 3600);
	run_job(&rig, JOB_SWAP_OUT, MODE_LIVE);
	write_some(&rig);
	CHECK_OK(failpoint_arm("evict.protected=stall"));
	CHECK_OK(engine_start_job(rig.engine, JOB_SWAP_OUT, &options, &err));
	while (!failpoint_hits("evict.protected"))
		usleep(1000);
	engine_host_is_short(rig.engine, true);
	wait_until_all_is_on_disk(&rig);
	CHECK_EQ(stats_of(&rig).job, JOB_SWAP_OUT);
	CHECK_OK(failpoint_arm("evict.protected=off"));
	CHECK_EQ(wait_job(&rig).code, 0);
	check_bytes(&rig);
	rig_stop(&rig);
}

/* The image of a segment is written, and its pages are read before anybody knows of it. */
TEST(pages_whose_segment_is_on_its_way_to_disk_are_served)
{
	uint64_t hits = failpoint_hits("store.move.written");
	struct rig rig;

	start_uncompressed(&rig, 3600);
	run_job(&rig, JOB_SWAP_OUT, MODE_LIVE);
	CHECK_OK(failpoint_arm("store.move.written=stall"));
	engine_host_is_short(rig.engine, true);
	while (failpoint_hits("store.move.written") == hits)
		usleep(1000);
	check_bytes(&rig);
	CHECK_EQ(stats_of(&rig).swap_pages, 0);
	CHECK_OK(failpoint_arm("store.move.written=off"));
	run_job(&rig, JOB_SWAP_IN, MODE_NONE);
	check_bytes(&rig);
	wait_for_release(&rig);
	rig_stop(&rig);
}

/* --- bits that flip under an engine */

enum where { IN_TABLE, IN_RAM, ON_DISK };

struct flip {
	enum where where;
	uint64_t offset_bytes; /* in the memfd of the table or of RAM, or in the file */
	unsigned bit;
	bool is_noticed; /* some page cannot be read */
};

static void flip_in(int fd, const struct flip *flip)
{
	_Alignas(4096) char block[4096];
	off_t at = (off_t)(flip->offset_bytes & ~4095ull);

	CHECK_EQ(pread(fd, block, sizeof block, at), sizeof block);
	block[flip->offset_bytes % 4096] ^= (char)(1 << flip->bit);
	CHECK_EQ(pwrite(fd, block, sizeof block, at), sizeof block);
}

static int fd_of(const struct rig *rig, const struct flip *flip)
{
	struct store_fds fds = engine_tier_fds(rig->engine);

	return flip->where == IN_TABLE ? fds.segments : flip->where == IN_RAM ? fds.ram : fds.disk;
}

static void bring_in_flipped(struct rig *rig, const struct flip *flip)
{
	struct swap_out_options options = { .mode = MODE_NONE };
	struct error err = { 0 };
	struct notice done;

	flip_in(fd_of(rig, flip), flip);
	CHECK_OK(engine_start_job(rig->engine, JOB_SWAP_IN, &options, &err));
	done = wait_job(rig);
	if (flip->is_noticed && !done.code)
		FAIL("offset %#llx bit %u: nobody noticed", (unsigned long long)flip->offset_bytes,
		     flip->bit);
}

/* Everything is out, on RAM or on disk, and a bit flips there. A swap-in brings no wrong byte; once the bit
 * is right again, another one brings the rest. */
static void flip_and_bring_in(struct rig *rig, const struct flip *flip)
{
	bring_in_flipped(rig, flip);
	if (flip->where == IN_RAM && flip->offset_bytes >= 24) {
		CHECK_EQ(stats_of(rig).swap_pages + stats_of(rig).poisoned_pages, 1);
		return; /* compaction may have copied the record by now */
	}
	flip_in(fd_of(rig, flip), flip);
	run_job(rig, JOB_SWAP_IN, MODE_NONE);
	check_bytes(rig);
}

static uint64_t in_entry(size_t field)
{
	return offsetof(struct segments_table, entries) + field;
}

TEST(a_flipped_bit_in_ram_brings_no_wrong_byte)
{
	const struct flip flips[] = {
		{ IN_RAM, 0, 3, true },	 /* the length */
		{ IN_RAM, 2, 0, true },	 /* the codec */
		{ IN_RAM, 5, 1, false }, /* the owner: only compaction asks */
		{ IN_RAM, 24, 5, true }, /* the page */
		{ IN_RAM, 3000, 7, true },
		{ IN_TABLE, in_entry(offsetof(struct segment_entry, place) + 7), 0, true },
		{ IN_TABLE, in_entry(offsetof(struct segment_entry, place) + 7), 1, true },
		{ IN_TABLE, in_entry(offsetof(struct segment_entry, serial)), 0, false },
		{ IN_TABLE, in_entry(offsetof(struct segment_entry, used_granules)), 4, false },
		{ IN_TABLE, in_entry(offsetof(struct segment_entry, born_s)), 4, false },
	};

	for (size_t i = 0; i < sizeof flips / sizeof *flips; i++) {
		struct rig rig;

		start_uncompressed(&rig, 3600);
		run_job(&rig, JOB_SWAP_OUT, MODE_LIVE);
		flip_and_bring_in(&rig, &flips[i]);
		rig_stop(&rig);
	}
}

TEST(a_flipped_bit_on_disk_brings_no_wrong_byte)
{
	const struct flip flips[] = {
		{ ON_DISK, 0, 3, true },
		{ ON_DISK, 5, 1, true },
		{ ON_DISK, 10, 1, true }, /* the tag */
		{ ON_DISK, 3000, 5, true },
		{ IN_TABLE, in_entry(offsetof(struct segment_entry, place)), 0, true },
		{ IN_TABLE, in_entry(offsetof(struct segment_entry, place) + 7), 0, true },
		{ IN_TABLE, in_entry(offsetof(struct segment_entry, serial)), 0, true },
		{ IN_TABLE, in_entry(offsetof(struct segment_entry, serial) + 5), 3, true },
	};

	for (size_t i = 0; i < sizeof flips / sizeof *flips; i++) {
		struct rig rig;

		start_uncompressed(&rig, 3600);
		run_job(&rig, JOB_SWAP_OUT, MODE_LIVE);
		flush(&rig);
		flip_and_bring_in(&rig, &flips[i]);
		rig_stop(&rig);
	}
}

/* A page of one word takes no record, so nothing but the page's hash tells that the word has changed. */
static void flip_the_word_of_a_page(uint64_t offset_bytes, unsigned bit, bool is_noticed)
{
	const struct flip flip = { IN_TABLE, offsetof(struct segments_table, fills) + offset_bytes, bit,
				   is_noticed };
	uint64_t words[512], found[512];
	char own[4096];
	struct rig rig;

	rig_start(&rig, 2);
	CHECK_EQ(pread(rig.vmm.memfds[0], own, sizeof own, 0), sizeof own);
	for (size_t i = 0; i < 512; i++)
		words[i] = 0x0123456789abcdefull;
	CHECK_EQ(pwrite(rig.vmm.memfds[0], words, sizeof words, 0), sizeof words);
	run_job(&rig, JOB_SWAP_OUT, MODE_LIVE);
	CHECK_EQ(stats_of(&rig).same_filled_pages, 1);
	bring_in_flipped(&rig, &flip);
	CHECK_EQ(stats_of(&rig).swap_pages + stats_of(&rig).poisoned_pages, is_noticed);
	flip_in(engine_tier_fds(rig.engine).segments, &flip);
	run_job(&rig, JOB_SWAP_IN, MODE_NONE);
	CHECK_EQ(pread(rig.vmm.memfds[0], found, sizeof found, 0), sizeof found);
	CHECK(!memcmp(found, words, sizeof words));
	CHECK_EQ(pwrite(rig.vmm.memfds[0], own, sizeof own, 0), sizeof own);
	check_bytes(&rig);
	rig_stop(&rig);
}

TEST(a_flipped_bit_in_the_table_of_words_brings_no_wrong_byte)
{
	const size_t first = offsetof(struct fills_table, words), n = offsetof(struct fills_table, n);

	flip_the_word_of_a_page(first, 0, true);
	flip_the_word_of_a_page(first + 3, 7, true);
	flip_the_word_of_a_page(first + 7, 7, true);
	flip_the_word_of_a_page(n, 0, true);	  /* as if there were none */
	flip_the_word_of_a_page(n + 2, 0, false); /* as if there were more */
}

/* As a job: all moves, or what the budget allows; a second one goes on where a cancelled one stopped. */
TEST(a_flush_moves_all_within_the_budget)
{
	struct swap_out_options options = { .mode = MODE_LIVE, .max_passes = 1 };
	struct error err = { 0 };
	struct notice done;
	struct rig rig;

	rig_start(&rig, 2);
	run_job(&rig, JOB_SWAP_OUT, MODE_LIVE);
	engine_limit_writes(rig.engine, engine_written_bytes(rig.engine));
	CHECK_OK(engine_start_job(rig.engine, JOB_FLUSH, &options, &err));
	done = wait_job(&rig);
	CHECK_EQ(done.code, 0);
	CHECK_EQ(done.limited_by, LIMITED_BY_WRITE_BUDGET);
	CHECK_CONTAINS(done.message, "WriteBudgetPerDay=");
	CHECK(stats_of(&rig).stored_ram_bytes > 0);
	engine_limit_writes(rig.engine, UINT64_MAX);
	CHECK_OK(engine_start_job(rig.engine, JOB_FLUSH, &options, &err));
	engine_cancel_job(rig.engine);
	wait_job(&rig);
	CHECK_OK(engine_start_job(rig.engine, JOB_FLUSH, &options, &err));
	done = wait_job(&rig);
	CHECK(done.code == 0 && done.limited_by == LIMITED_BY_NOTHING && !done.cancelled);
	while (engine_tend(rig.engine))
		;
	CHECK_EQ(stats_of(&rig).stored_ram_bytes, 0);
	CHECK(stats_of(&rig).stored_disk_bytes > 0);
	check_bytes(&rig);
	rig_stop(&rig);
}

/* A successor moves what its predecessor put on RAM, some of which is on disk already. */
TEST(a_successor_flushes_what_was_put_before)
{
	struct swap_out_options options = { .mode = MODE_LIVE, .max_passes = 1 };
	struct engine_config config = new_engine;
	struct error err = { 0 };
	struct rig rig;

	rig_start(&rig, 2);
	run_job(&rig, JOB_SWAP_OUT, MODE_LIVE);
	CHECK_EQ(engine_flush_step(rig.engine, &err), 1);
	config.page_map_fd = (int)CHECK_SYS(dup(engine_page_map_fd(rig.engine)));
	test_use_tiers(&config);
	test_keep_tiers(&config, rig.engine);
	engine_destroy(rig.engine);
	succeed(&rig, &config);
	check_bytes(&rig); /* all by demand faults */
	run_job(&rig, JOB_SWAP_OUT, MODE_LIVE);
	CHECK_OK(engine_start_job(rig.engine, JOB_FLUSH, &options, &err));
	CHECK_EQ(wait_job(&rig).code, 0);
	check_bytes(&rig);
	run_job(&rig, JOB_SWAP_OUT, MODE_LIVE);
	CHECK_OK(engine_start_job(rig.engine, JOB_FLUSH, &options, &err));
	CHECK_EQ(wait_job(&rig).code, 0);
	run_job(&rig, JOB_SWAP_IN, MODE_NONE);
	check_bytes(&rig);
	rig_stop(&rig);
}
