/* SPDX-License-Identifier: GPL-2.0-or-later */
/* How much of guest memory is on RAM, whatever its VMM does with its files, and whoever holds the locks of
 * their inodes. */
#include <fcntl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/failpoint.h"
#include "engine.h"
#include "harness.h"
#include "inode_lock.h"

static struct engine *start(void)
{
	struct engine_config config = {
		.swap_dir = test_dir(),
		.fault_threads = 1,
		.workers = 1,
		.page_map_fd = -1,
		.store_fd = -1,
	};
	struct engine *engine;
	struct error err;

	CHECK_OK(engine_create(&config, &engine, &err));
	return engine;
}

static int file_of(uint64_t pages)
{
	int memfd = (int)CHECK_SYS(memfd_create("guest", MFD_CLOEXEC));

	CHECK_SYS(ftruncate(memfd, (off_t)bytes_of_pages(pages)));
	return memfd;
}

static void add(struct engine *engine, int memfd, uint64_t first, uint64_t pages)
{
	uint64_t page_idx;
	struct error err;

	CHECK_OK(engine_add_region(engine, memfd, bytes_of_pages(first), bytes_of_pages(pages), &page_idx,
				   &err));
}

static void write_pages(int memfd, uint64_t first, uint64_t pages)
{
	static const char page[PAGE_BYTES] = "guest";

	for (uint64_t i = first; i < first + pages; i++)
		CHECK_EQ(pwrite(memfd, page, PAGE_BYTES, (off_t)bytes_of_pages(i)), PAGE_BYTES);
}

static uint64_t shown(struct engine *engine)
{
	struct engine_stats stats;

	engine_read_stats(engine, &stats);
	CHECK(stats.resident_pages <= stats.total_pages);
	return stats.resident_pages;
}

static uint64_t counted(struct engine *engine)
{
	CHECK(engine_needs_count(engine));
	engine_count_resident(engine);
	return shown(engine);
}

TEST(regions_that_are_all_of_their_file_need_no_count)
{
	struct engine *engine = start();
	int memfd = file_of(64);

	add(engine, memfd, 0, 40);
	add(engine, memfd, 40, 24);
	write_pages(memfd, 38, 4);
	CHECK(!engine_needs_count(engine));
	CHECK_EQ(shown(engine), 4);
	engine_destroy(engine);
}

/* Kernels before 6.5, and sandboxes that do not know cachestat(). */
static void without_cachestat(void)
{
	CHECK_OK(failpoint_arm("resident.cachestat=EPERM"));
}

static void a_part_of_a_file_is_counted(void)
{
	struct engine *engine = start();
	int memfd = file_of(4096);

	add(engine, memfd, 1000, 2000);
	write_pages(memfd, 990, 20);
	write_pages(memfd, 2990, 20);
	CHECK_EQ(counted(engine), 20);
	write_pages(memfd, 1500, 1);
	CHECK_EQ(counted(engine), 21);
	engine_destroy(engine);
}

TEST(regions_that_are_a_part_of_their_file_are_counted)
{
	a_part_of_a_file_is_counted();
}

TEST(they_are_without_cachestat_too)
{
	without_cachestat();
	a_part_of_a_file_is_counted();
}

static bool has_cachestat(int memfd)
{
	uint64_t range[2] = { 0, PAGE_BYTES }, counts[5];

	return syscall(451, memfd, range, counts, 0) == 0; /* Linux 6.5 */
}

/* 256 GiB, of which 300 pages are there: in pieces of 1 MiB it would take a quarter of a million of them. So
 * it does without cachestat: minutes, where the machine is emulated. */
TEST(holes_are_counted_in_few_pieces)
{
	int large = file_of(((uint64_t)1 << 26) + 1);
	bool few = has_cachestat(large);
	const uint64_t pages = (uint64_t)1 << (few ? 26 : 20);
	struct engine *engine = start();
	int memfd = few ? large : file_of(pages + 1);

	CHECK_OK(failpoint_arm("resident.cachestat=count"));
	add(engine, memfd, 0, pages);
	write_pages(memfd, 0, 100);
	write_pages(memfd, pages / 3, 100);
	write_pages(memfd, pages - 100, 100);
	CHECK_EQ(counted(engine), 300);
	if (few)
		CHECK(failpoint_hits("resident.cachestat") < 5000);
	engine_destroy(engine);
}

TEST(a_file_that_grows_and_one_that_shrinks)
{
	struct engine *engine = start();
	int grows = file_of(64), shrinks = file_of(64);

	add(engine, grows, 0, 64);
	add(engine, shrinks, 0, 64);
	write_pages(grows, 0, 64);
	write_pages(shrinks, 0, 64);
	CHECK_EQ(shown(engine), 128);
	CHECK_SYS(ftruncate(shrinks, (off_t)bytes_of_pages(10)));
	CHECK_EQ(shown(engine), 74);
	CHECK_SYS(ftruncate(grows, (off_t)bytes_of_pages(200)));
	write_pages(grows, 64, 100);
	CHECK_EQ(counted(engine), 74);
	CHECK_SYS(ftruncate(shrinks, 0));
	CHECK_SYS(ftruncate(grows, 0));
	CHECK_EQ(shown(engine), 0);
	engine_destroy(engine);
}

TEST(pages_beyond_the_end_of_the_file_are_not_the_guests)
{
	struct engine *engine = start();
	int memfd = file_of(64);

	add(engine, memfd, 0, 64);
	write_pages(memfd, 0, 60);
	CHECK_SYS(fallocate(memfd, FALLOC_FL_KEEP_SIZE, (off_t)bytes_of_pages(64),
			    (off_t)bytes_of_pages(30)));
	CHECK_EQ(counted(engine), 60);
	engine_destroy(engine);
}

static void count_with_the_lock_of_the_inode_held(void)
{
	struct engine *engine = start();
	int whole = file_of(64), part = file_of(64);
	struct inode_lock locks[2];

	if (access("/dev/userfaultfd", F_OK) != 0 || geteuid() != 0)
		test_skip("holding an inode's lock takes a userfaultfd for kernel mode");
	add(engine, whole, 0, 64);
	add(engine, part, 0, 32);
	write_pages(whole, 0, 3);
	write_pages(part, 0, 5);
	/* Newer kernels put the page that is written to in place before they fetch its bytes, older ones
	 * after. It is there anyhow. */
	write_pages(whole, 63, 1);
	write_pages(part, 63, 1);
	inode_lock_take(&locks[0], whole, 63);
	inode_lock_take(&locks[1], part, 63);
	CHECK_EQ(counted(engine), 9);
	inode_lock_release(&locks[0]);
	inode_lock_release(&locks[1]);
	engine_destroy(engine);
}

TEST(the_lock_of_the_inode_is_held)
{
	count_with_the_lock_of_the_inode_held();
}

TEST(the_lock_of_the_inode_is_held_without_cachestat)
{
	without_cachestat();
	count_with_the_lock_of_the_inode_held();
}

TEST(a_count_ends_with_the_engine)
{
	struct engine *engine = start();
	int memfd = file_of((uint64_t)1 << 30 >> 12);

	add(engine, memfd, 0, 1000);
	engine_stop(engine);
	CHECK(engine_needs_count(engine));
	engine_count_resident(engine);
	engine_release_memory(engine);
	CHECK_EQ(shown(engine), 0);
	engine_count_resident(engine);
	engine_destroy(engine);
}
