/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A swap-in that cannot put a page back says so, and keeps it. */
#include "large_folios.h"
#include "puppet.h"

static const struct layout layout = { .memfd_pages = { 512 }, .regions = { { 0, 0, 512 } }, .full = 1 };

#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x0010
#endif

static long unmap(void *addr, long pages)
{
	return munmap(addr, (size_t)pages * PAGE_BYTES);
}

/* Only the memfd itself is left to write to, and that is forbidden. */
TEST(unmapped_and_sealed)
{
	struct puppet_order order = { .kind = ORDER_CALL, .run = unmap, .argument = 512 };
	struct notice done;
	struct rig rig;

	rig_start(&rig, &layout);
	rig_run_job(&rig, JOB_SWAP_OUT);
	CHECK_EQ(puppet_do(&rig, 0, 0, order), 0);
	CHECK_SYS(fcntl(rig.memfds[0], F_ADD_SEALS, F_SEAL_FUTURE_WRITE));
	rig_start_job(&rig, JOB_SWAP_IN);
	done = rig_await_job(&rig);
	CHECK_EQ(done.code, EIO);
	CHECK_EQ(rig_stats(&rig).swap_pages + rig_resident_pages(&rig, 0, 512), 512);
	rig_stop(&rig);
}

/* Bad twice in one round, good afterwards. */
TEST(a_read_error_that_passes)
{
	struct notice done;
	struct rig rig;

	rig_start(&rig, &layout);
	rig_run_job(&rig, JOB_SWAP_OUT);
	CHECK_OK(failpoint_arm("store.read.corrupt=EIO"));
	rig_start_job_until(&rig, JOB_SWAP_IN, "restore.copied");
	rig_disarm("store.read.corrupt");
	rig_disarm("restore.copied");
	done = rig_await_job(&rig);
	CHECK_EQ(done.code, 0);
	rig_stop(&rig);
}

/* --- the budget */

static void await_resident(const struct rig *rig, uint64_t pages)
{
	while (rig_resident_pages(rig, 0, rig->total_pages) < pages)
		sched_yield();
	CHECK_EQ(rig_resident_pages(rig, 0, rig->total_pages), pages);
}

TEST(a_budget_is_used_up_to_the_page)
{
	struct rig rig;

	rig_start(&rig, &layout);
	rig_run_job(&rig, JOB_SWAP_OUT);
	engine_set_budget(rig.engine, 3);
	rig_start_job(&rig, JOB_SWAP_IN);
	await_resident(&rig, 3);
	engine_set_budget(rig.engine, 40); /* of two pieces */
	await_resident(&rig, 43);
	engine_set_budget(rig.engine, 512 - 43);
	rig_end_job(&rig);
	puppet_check_all(&rig, 0);
	rig_stop(&rig);
}

/* It waits for its budget for longer than the swap-out took. */
TEST(the_time_of_a_swap_in_is_told)
{
	struct rig rig;
	uint64_t out_ms, since_ns;

	rig_start(&rig, &layout);
	rig_run_job(&rig, JOB_SWAP_OUT);
	out_ms = rig_stats(&rig).swap_time_ms;
	engine_set_budget(rig.engine, 3);
	rig_start_job(&rig, JOB_SWAP_IN);
	await_resident(&rig, 3);
	for (since_ns = monotonic_ns(); monotonic_ns() - since_ns < (out_ms + 2) * 1000000;)
		sched_yield();
	engine_set_budget(rig.engine, 512);
	rig_end_job(&rig);
	CHECK(rig_stats(&rig).swap_time_ms > out_ms);
	rig_stop(&rig);
}

/* One page out in each window. */
TEST(a_budget_of_as_many_pages_as_are_out)
{
	static const struct layout sparse = { .memfd_pages = { 2048 },
					      .regions = { { 0, 0, 2048 } },
					      .empty = 1 };
	struct rig rig;

	rig_start(&rig, &sparse);
	for (uint64_t page = 100; page < 2048; page += 512)
		puppet_do(&rig, 0, 0, (struct puppet_order){ .kind = ORDER_WRITE, .page = page });
	rig_run_job(&rig, JOB_SWAP_OUT);
	CHECK_EQ(rig_stats(&rig).swap_pages, 4);
	engine_set_budget(rig.engine, 4);
	rig_run_job(&rig, JOB_SWAP_IN);
	puppet_check_all(&rig, 0);
	rig_stop(&rig);
}

/* --- pages that no process maps any more */

static const struct layout folios = {
	.memfd_pages = { 2048 }, .regions = { { 0, 0, 2048 } }, .full = 1, .huge = 1
};

/* What the file holds, whoever maps it. */
static uint64_t wrong_in_file(const struct rig *rig)
{
	uint64_t wrong = 0, words[PUPPET_WORDS], wanted[PUPPET_WORDS];

	for (uint64_t page = 0; page < rig->total_pages; page++) {
		for (uint64_t word = 0; word < PUPPET_WORDS; word++)
			wanted[word] = puppet_word(page, 1, word);
		CHECK_EQ(pread(rig->memfds[0], words, sizeof words, (off_t)bytes_of_pages(page)),
			 sizeof words);
		wrong += memcmp(words, wanted, sizeof words) != 0;
	}
	return wrong;
}

/* A page that is written to the file would bring a folio of zeros with it, around it. */
static void come_back_unmapped(const struct layout *memory, uint64_t page, long pages)
{
	struct puppet_order order = { .kind = ORDER_CALL, .run = unmap, .page = page, .argument = pages };
	struct rig rig;

	rig_start(&rig, memory);
	if (memory->huge && huge_mapped_pages(rig.pids[0]) < 2048)
		test_skip("the kernel gave %llu pages of huge memory, not 2048",
			  (unsigned long long)huge_mapped_pages(rig.pids[0]));
	rig_run_job(&rig, JOB_SWAP_OUT);
	CHECK_EQ(rig_resident_pages(&rig, 0, rig.total_pages), 0);
	CHECK_EQ(puppet_do(&rig, 0, 0, order), 0);
	rig_run_job(&rig, JOB_SWAP_IN);
	CHECK_EQ(wrong_in_file(&rig), 0);
	CHECK_EQ(rig_resident_pages(&rig, 0, rig.total_pages), rig.total_pages);
	CHECK_EQ(rig_stats(&rig).swap_pages, 0);
	CHECK_EQ(rig.odd, 0);
	rig_stop(&rig);
}

TEST(unmapped)
{
	come_back_unmapped(&layout, 0, 512);
}

TEST(unmapped_in_part)
{
	come_back_unmapped(&layout, 100, 10);
}

TEST(unmapped_where_folios_are_always_large)
{
	use_large_folios("always");
	come_back_unmapped(&folios, 0, 2048);
}

TEST(unmapped_in_part_where_folios_are_always_large)
{
	use_large_folios("always");
	come_back_unmapped(&folios, 0, 10);
}

TEST(unmapped_where_folios_are_large_within_the_file)
{
	use_large_folios("within_size");
	come_back_unmapped(&folios, 0, 2048);
}

/* Guest memory that the VMM shrank meanwhile is given up, and does not grow again. */
TEST(unmapped_and_shrunk)
{
	struct puppet_order order = { .kind = ORDER_CALL, .run = unmap, .argument = 512 };
	struct stat status;
	struct rig rig;

	rig_start(&rig, &layout);
	rig_run_job(&rig, JOB_SWAP_OUT);
	CHECK_EQ(puppet_do(&rig, 0, 0, order), 0);
	CHECK_SYS(ftruncate(rig.memfds[0], 256 * PAGE_BYTES));
	rig_run_job(&rig, JOB_SWAP_IN);
	CHECK_SYS(fstat(rig.memfds[0], &status));
	CHECK_EQ(status.st_size, 256 * PAGE_BYTES);
	CHECK_EQ(rig_resident_pages(&rig, 0, 256), 256);
	CHECK_EQ(rig_stats(&rig).swap_pages, 0);
	rig_stop(&rig);
}
