/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Somebody besides us fills holes of guest memory: what is lost by that is counted, all of it, and reported
 * as one. */
#include "file_capabilities.h"
#include "large_folios.h"
#include "poison_marker.h"
#include "puppet.h"
#include "vm/page_map.h"

static const struct layout plain = { .memfd_pages = { 2048 }, .regions = { { 0, 0, 2048 } }, .full = 1 };
static const struct layout folios = {
	.memfd_pages = { 2048 }, .regions = { { 0, 0, 2048 } }, .full = 1, .huge = 1
};

#define PAGE 600 /* in the second window of 512 */

static void swap_all_out(struct rig *rig, const struct layout *memory)
{
	rig_start(rig, memory);
	rig_run_job(rig, JOB_SWAP_OUT);
	CHECK_EQ(rig_resident_pages(rig, 0, rig->total_pages), 0);
	CHECK_EQ(rig_stats(rig).lost_pages, 0);
}

static void write_from_outside(const struct rig *rig, uint64_t page)
{
	static const char bytes[PAGE_BYTES] = "from outside";

	CHECK_EQ(pwrite(rig->memfds[0], bytes, sizeof bytes, (off_t)bytes_of_pages(page)), sizeof bytes);
}

static void expect_lost(struct rig *rig, uint64_t page, uint64_t pages)
{
	struct lost_incident incident;

	CHECK_EQ(rig_stats(rig).lost_pages, pages);
	CHECK_EQ(rig->incidents, 1);
	CHECK_EQ(engine_take_lost(rig->engine, &incident), pages);
	CHECK_EQ(incident.ranges_n, 1);
	CHECK_EQ(incident.ranges[0].page_idx, page);
	CHECK_EQ(incident.ranges[0].pages, pages);
	CHECK_EQ(engine_take_lost(rig->engine, &incident), 0);
	CHECK_EQ(rig->odd, 0);
}

static void found_by_a_swap_in(const struct layout *memory, uint64_t page, uint64_t pages)
{
	struct rig rig;

	swap_all_out(&rig, memory);
	write_from_outside(&rig, PAGE);
	rig_run_job(&rig, JOB_SWAP_IN);
	expect_lost(&rig, page, pages);
	CHECK_EQ(rig_stats(&rig).swap_pages, 0);
	CHECK_EQ(rig_resident_pages(&rig, 0, rig.total_pages), rig.total_pages);
	rig_stop(&rig);
}

TEST(a_page)
{
	found_by_a_swap_in(&plain, PAGE, 1);
}

TEST(all_of_a_folio)
{
	use_large_folios("always");
	found_by_a_swap_in(&folios, 512, 512);
}

/* A second mapping, without a userfaultfd, reads every page. */
TEST(all_of_memory)
{
	volatile const char *mapping;
	struct rig rig;

	use_large_folios("within_size");
	swap_all_out(&rig, &folios);
	mapping = mmap(NULL, bytes_of_pages(2048), PROT_READ, MAP_SHARED, rig.memfds[0], 0);
	CHECK(mapping != MAP_FAILED);
	for (uint64_t page = 0; page < 2048; page++)
		CHECK_EQ(mapping[bytes_of_pages(page)], 0);
	rig_run_job(&rig, JOB_SWAP_IN);
	expect_lost(&rig, 0, 2048);
	rig_stop(&rig);
}

/* A write to one of them is the first that anybody knows of it. */
TEST(found_by_a_write_protect_fault)
{
	struct rig rig;

	use_large_folios("always");
	swap_all_out(&rig, &folios);
	write_from_outside(&rig, PAGE);
	puppet_do(&rig, 0, 0, (struct puppet_order){ .kind = ORDER_WRITE, .page = PAGE + 1 });
	rig_await_notice(&rig, NOTICE_PAGES_LOST);
	while (rig_stats(&rig).lost_pages < 512) /* whoever found the first one looks at the others */
		sched_yield();
	expect_lost(&rig, 512, 512);
	rig_stop(&rig);
}

TEST(found_by_the_next_swap_out)
{
	struct rig rig;

	use_large_folios("always");
	swap_all_out(&rig, &folios);
	write_from_outside(&rig, PAGE);
	rig_run_job(&rig, JOB_SWAP_OUT);
	expect_lost(&rig, 512, 512);
	rig_run_job(&rig, JOB_SWAP_OUT); /* they go out as any others do */
	CHECK_EQ(rig_resident_pages(&rig, 0, rig.total_pages), 0);
	CHECK_EQ(rig_stats(&rig).lost_pages, 512);
	rig_stop(&rig);
}

/* They are found while a swap-in and the guest want them, too: each is counted once. */
TEST(found_by_several_at_once)
{
	struct rig rig;

	use_large_folios("always");
	swap_all_out(&rig, &folios);
	write_from_outside(&rig, PAGE);
	rig_start_job_until(&rig, JOB_SWAP_IN, "restore.claimed");
	puppet_do(&rig, 0, 0, (struct puppet_order){ .kind = ORDER_WRITE, .page = PAGE + 1 });
	rig_disarm("restore.claimed");
	rig_end_job(&rig);
	while (rig_stats(&rig).lost_pages < 512)
		sched_yield();
	expect_lost(&rig, 512, 512);
	rig_stop(&rig);
}

/* It happened while no engine ran: the next one knows, and the count goes on. */
TEST(found_by_a_successor)
{
	struct engine_config config = { .swap_dir = "/tmp", .workers = 1, .fault_threads = 3 };
	uint32_t last_job;
	uint64_t out_pages;
	struct error err = { 0 };
	struct rig rig;

	swap_all_out(&rig, &plain);
	config.page_map_fd = (int)CHECK_SYS(dup(engine_page_map_fd(rig.engine)));
	config.store_fd = (int)CHECK_SYS(dup(engine_store_fd(rig.engine)));
	engine_destroy(rig.engine);
	write_from_outside(&rig, PAGE);
	write_from_outside(&rig, PAGE + 1);
	CHECK_OK(engine_create(&config, &rig.engine, &err));
	CHECK_OK(engine_add_region(rig.engine, rig.memfds[0], 0, bytes_of_pages(2048), &rig.first_idx[0],
				   &err));
	CHECK_OK(rig_add_process(&rig, 0, &err));
	CHECK_OK(engine_recover(rig.engine, &out_pages, &last_job, &err));
	CHECK_OK(engine_start(rig.engine, &err));
	CHECK_EQ(out_pages, 2046);
	rig_run_job(&rig, JOB_SWAP_IN);
	expect_lost(&rig, PAGE, 2);
	close(config.page_map_fd);
	close(config.store_fd);
	rig_stop(&rig);
}

/* Ranges that grow together are one; of more than there is place for, the count says. */
TEST(many_ranges)
{
	struct lost_incident incident;
	struct rig rig;

	swap_all_out(&rig, &plain);
	for (uint64_t i = 0; i < 2 * LOST_RANGES_MAX; i++)
		write_from_outside(&rig, i * 3);
	for (uint64_t i = 0; i < 8; i++) {
		write_from_outside(&rig, i * 3 + 2);
		write_from_outside(&rig, i * 3 + 1);
	}
	rig_run_job(&rig, JOB_SWAP_IN);
	CHECK_EQ(engine_take_lost(rig.engine, &incident), 2 * LOST_RANGES_MAX + 16);
	CHECK_EQ(incident.ranges_n, LOST_RANGES_MAX);
	CHECK_EQ(incident.ranges[0].page_idx, 0);
	CHECK_EQ(incident.ranges[0].pages, 25);
	CHECK_EQ(incident.ranges[1].page_idx, 27);
	CHECK_EQ(incident.ranges[1].pages, 1);
	rig_stop(&rig);
}

/* The kernel says EEXIST also where it finds that somebody frees a page table: nothing is lost then. */
TEST(nothing_by_a_page_table_that_is_freed)
{
	struct rig rig;

	swap_all_out(&rig, &plain);
	rig_arm(&rig, "uffd.copy", "once:EEXIST");
	puppet_do(&rig, 0, 0, (struct puppet_order){ .kind = ORDER_TOUCH, .page = PAGE });
	rig_arm(&rig, "uffd.copy", "once:EEXIST");
	rig_run_job(&rig, JOB_SWAP_IN);
	rig_disarm("uffd.copy");
	CHECK_EQ(rig_stats(&rig).lost_pages, 0);
	puppet_check_all(&rig, 0);
	CHECK_EQ(rig.odd, 0);
	rig_stop(&rig);
}

/* The same when the pages around a lost one are looked at: it alone is lost. */
TEST(a_page_next_to_a_page_table_that_is_freed)
{
	struct rig rig;

	swap_all_out(&rig, &plain);
	write_from_outside(&rig, PAGE);
	rig_arm(&rig, "uffd.continue", "once:EEXIST");
	rig_run_job(&rig, JOB_SWAP_OUT);
	rig_disarm("uffd.continue");
	expect_lost(&rig, PAGE, 1);
	rig_stop(&rig);
}

/* The kernel cannot say which pages are there after a punch: each is looked at, and one that somebody wrote
 * meanwhile stays. */
TEST(nothing_where_mincore_fails)
{
	struct rig rig;

	rig_start(&rig, &plain);
	rig_start_job_until(&rig, JOB_SWAP_OUT, "evict.punched");
	write_from_outside(&rig, 7);
	CHECK_OK(failpoint_arm("incore.find=EAGAIN"));
	rig_disarm("evict.punched");
	rig_end_job(&rig);
	CHECK_EQ(rig_stats(&rig).swap_pages, rig.total_pages - 1);
	CHECK_EQ(rig_stats(&rig).lost_pages, 0);
	CHECK_EQ(rig.odd, 1); /* and told of */
	CHECK_OK(failpoint_arm("incore.find=off"));
	rig_run_job(&rig, JOB_SWAP_IN);
	CHECK_EQ(rig_stats(&rig).lost_pages, 0);
	rig_stop(&rig);
}

/* Add memory of as many pages as there are numbers left, and take it away: what is added next begins with the
 * first number again. */
static void use_all_numbers(struct rig *rig)
{
	uint64_t bytes = bytes_of_pages(PAGE_MAP_MAX_PAGES - rig->total_pages), page_idx;
	int memfd = (int)CHECK_SYS(memfd_create("all numbers", MFD_CLOEXEC));
	struct error err;

	CHECK_SYS(ftruncate(memfd, (off_t)bytes));
	CHECK_OK(engine_add_region(rig->engine, memfd, 0, bytes, &page_idx, &err));
	CHECK_OK(engine_remove_region(rig->engine, page_idx, &err));
	close(memfd);
}

static void replace_memory(struct rig *rig)
{
	static const char bytes[PAGE_BYTES] = "other memory";
	int memfd = (int)CHECK_SYS(memfd_create("other memory", MFD_CLOEXEC));
	uint64_t page_idx;
	struct error err;

	rig_run_job(rig, JOB_SWAP_IN);
	CHECK_OK(engine_remove_region(rig->engine, rig->first_idx[0], &err));
	for (uint64_t page = 0; page < rig->total_pages; page++)
		CHECK_EQ(pwrite(memfd, bytes, sizeof bytes, (off_t)bytes_of_pages(page)), sizeof bytes);
	CHECK_OK(engine_add_region(rig->engine, memfd, 0, bytes_of_pages(rig->total_pages), &page_idx, &err));
	CHECK_EQ(page_idx, rig->first_idx[0]);
	rig_run_job(rig, JOB_SWAP_OUT);
	close(memfd);
}

/* While the pages around a lost one are looked at, their memory goes, and other memory gets their numbers and
 * goes out. */
TEST(nothing_of_memory_that_has_the_numbers_of_other_memory)
{
	struct puppet_order write = { .kind = ORDER_WRITE, .page = PAGE };
	struct rig rig;

	rig_start(&rig, &plain);
	use_all_numbers(&rig);
	rig_run_job(&rig, JOB_SWAP_OUT);
	write_from_outside(&rig, PAGE);
	rig_arm(&rig, "lost.looked", "stall");
	puppet_do(&rig, 0, 0, write); /* on a protected page: it is lost, and seen to be */
	rig_await_point(&rig, "lost.looked");
	replace_memory(&rig);
	rig_disarm("lost.looked");
	engine_stop(rig.engine); /* it has looked */
	CHECK_EQ(rig_stats(&rig).lost_pages, 1);
	CHECK_EQ(rig_stats(&rig).swap_pages, rig.total_pages);
	rig_stop(&rig);
}

static const struct layout with_a_stranger = {
	.memfd_pages = { 2048 }, .regions = { { 0, 0, 2048 } }, .full = 1, .stranger = 1
};

/* By the kernel: a marker makes it fail, where the process itself would get SIGBUS. 0 or the errno. */
static long read_by_the_kernel(void *addr, long fd)
{
	return syscall(SYS_pwrite64, (int)fd, addr, 8, 0) == 8 ? 0 : errno;
}

static struct puppet_order kernel_read(const struct rig *rig)
{
	return (struct puppet_order){
		.kind = ORDER_CALL, .page = PAGE, .run = read_by_the_kernel, .argument = rig->file
	};
}

/* PAGE cannot be read back: process 0 has a marker. The stranger joins then, and has none. */
static void poison_page(struct rig *rig)
{
	struct error err = { 0 };

	if (!have_poison())
		test_skip("needs poison markers (Linux 6.6)");
	swap_all_out(rig, &with_a_stranger);
	rig_arm(rig, "store.read", "EIO");
	CHECK_EQ(puppet_do(rig, 0, 0, kernel_read(rig)), EFAULT);
	rig_disarm("store.read");
	CHECK_OK(rig_add_process(rig, PUPPET_STRANGER, &err));
}

/* What is there now is the page, for all: no process keeps its marker. */
TEST(a_page_that_is_poisoned)
{
	struct puppet_order touch = { .kind = ORDER_TOUCH, .page = PAGE };
	struct rig rig;

	poison_page(&rig);
	rig_arm(&rig, "resolve.fetched", "stall");
	puppet_tell(&rig, PUPPET_STRANGER, 0, touch);
	rig_await_point(&rig, "resolve.fetched");
	write_from_outside(&rig, PAGE);
	rig_disarm("resolve.fetched");
	puppet_await(&rig, PUPPET_STRANGER, 0);
	CHECK_EQ(rig_await_notice(&rig, NOTICE_PAGE_HEALED).page_idx, PAGE);
	CHECK_EQ(puppet_do(&rig, 0, 0, kernel_read(&rig)), 0);
	CHECK_EQ(rig_stats(&rig).poisoned_pages, 0);
	CHECK_EQ(rig_stats(&rig).lost_pages, 1);
	rig_stop(&rig);
}

/* It was read back, and a marker of another process is to be lifted yet: that is no loss, and who writes
 * waits for it. */
TEST(nothing_while_markers_are_lifted)
{
	struct puppet_order touch = { .kind = ORDER_TOUCH, .page = PAGE };
	struct puppet_order write = { .kind = ORDER_WRITE, .page = PAGE };
	uint64_t faults;
	struct rig rig;

	poison_page(&rig);
	CHECK_OK(failpoint_arm("uffd.zeropage=EAGAIN"));
	puppet_do(&rig, PUPPET_STRANGER, 0, touch);
	for (uint64_t page = PAGE - 1; page <= PAGE + 1; page += 2)
		puppet_do(&rig, PUPPET_STRANGER, 0,
			  (struct puppet_order){ .kind = ORDER_WRITE, .page = page });
	rig_start_job_until(&rig, JOB_SWAP_OUT, "evict.protected");
	faults = rig_stats(&rig).fault_count;
	puppet_tell(&rig, PUPPET_STRANGER, 0, write);
	rig_await_fault(&rig, faults);
	CHECK_EQ(rig_stats(&rig).lost_pages, 0);
	CHECK_OK(failpoint_arm("uffd.zeropage=off"));
	puppet_await(&rig, PUPPET_STRANGER, 0);
	rig_disarm("evict.protected");
	rig_end_job(&rig);
	CHECK_EQ(rig_stats(&rig).lost_pages, 0);
	CHECK_EQ(rig_stats(&rig).poisoned_pages, 0);
	CHECK_EQ(puppet_do(&rig, 0, 0, (struct puppet_order){ .kind = ORDER_CHECK, .page = PAGE }), 0);
	rig_stop(&rig);
}

/* The VMM's user takes all others' rights to the memfd away, while it is being punched. The kernel answers
 * mincore() with "all is there" from then on (mm/mincore.c, can_do_mincore()): a hole must not be taken for a
 * page that stayed, and nothing else goes out. */
TEST(nothing_where_mincore_tells_nothing)
{
	struct notice done;
	struct rig rig;

	if (geteuid() != 0)
		test_skip("needs root, to give the memfd to another user");
	rig_start(&rig, &plain);
	drop_file_capabilities();
	rig_start_job_until(&rig, JOB_SWAP_OUT, "evict.marked");
	CHECK_SYS(fchmod(rig.memfds[0], 0600));
	CHECK_SYS(fchown(rig.memfds[0], 12345, 12345));
	rig_disarm("evict.marked");
	done = rig_await_job(&rig);
	CHECK_EQ(done.code, EACCES);
	CHECK_CONTAINS(done.message, "mode or owner");
	CHECK(rig_stats(&rig).swap_pages > 0);
	CHECK_EQ(rig.odd, 0);
	puppet_check_all(&rig, 0);
	rig_stop(&rig);
}
