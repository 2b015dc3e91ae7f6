/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Looking for what guest memory holds, a bounded piece at a time. */
#include "vm/backing.h"
#include "vm/memory.h"

#include "file_capabilities.h"

static uint64_t hole_seeks;

/* In place of the C library's: how far the kernel walks with the lock of the inode is not to be seen from
 * outside. */
off_t lseek(int fd, off_t offset, int whence)
{
	hole_seeks += whence == SEEK_HOLE;
	return (off_t)syscall(SYS_lseek, fd, offset, whence);
}

static int memfd_of(uint64_t pages)
{
	int memfd = memfd_create("guest", MFD_CLOEXEC);

	CHECK_SYS(ftruncate(memfd, (off_t)bytes_of_pages(pages)));
	return memfd;
}

static void write_pages(int memfd, uint64_t page, uint64_t pages)
{
	char bytes[PAGE_BYTES] = "data";

	for (; pages--; page++)
		CHECK_EQ(pwrite(memfd, bytes, sizeof bytes, (off_t)bytes_of_pages(page)), sizeof bytes);
}

/* The runs that are found, joined, are what was written; none crosses a 2 MiB boundary of the file. */
static void check_runs(const struct region *region, const bool *want)
{
	uint64_t idx = region->page_idx, end_idx = region->page_idx + region->pages, from_idx, to_idx;
	uint64_t first = pages_of_bytes(region->offset_bytes) - region->page_idx;
	int rc;

	while (region->backing->next_data(region, idx, &from_idx, &to_idx, &rc)) {
		CHECK(from_idx >= idx && to_idx > from_idx && to_idx <= end_idx);
		CHECK_EQ((from_idx + first) / CHUNK_PAGES, (to_idx - 1 + first) / CHUNK_PAGES);
		for (; idx < from_idx; idx++)
			CHECK(!want[idx + first]);
		for (; idx < to_idx; idx++)
			CHECK(want[idx + first]);
	}
	CHECK_OK(rc);
	for (; idx < end_idx; idx++)
		CHECK(!want[idx + first]);
	CHECK_EQ(hole_seeks, 0);
}

static void mark(int memfd, bool *want, uint64_t page, uint64_t pages)
{
	write_pages(memfd, page, pages);
	for (; pages--; page++)
		want[page] = true;
}

static void add(struct memory *memory, int memfd, uint64_t offset_bytes, uint64_t page_idx, uint64_t pages)
{
	struct region region;
	struct error err;

	CHECK_OK(region_of_memfd(&region, memfd, offset_bytes, page_idx, pages, &err));
	CHECK_OK(memory_add(memory, &region, &err));
}

#define PAGES (5 * CHUNK_PAGES)

TEST(data_is_found_in_pieces)
{
	static struct memory memory;
	bool want[PAGES] = { 0 };
	int memfd = memfd_of(PAGES);

	mark(memfd, want, 3, 1);
	mark(memfd, want, 5, 2);
	mark(memfd, want, CHUNK_PAGES - 1, CHUNK_PAGES + 2); /* over two boundaries */
	mark(memfd, want, 3 * CHUNK_PAGES, CHUNK_PAGES);
	mark(memfd, want, PAGES - 1, 1);
	memory_init(&memory);
	add(&memory, memfd, 0, 0, PAGES);
	check_runs(memory_region_of(&memory, 0), want);
	memory_destroy(&memory);
	/* a region that begins and ends inside of a chunk */
	memory_init(&memory);
	add(&memory, memfd, bytes_of_pages(4), 1000, 4 * CHUNK_PAGES - 10);
	memory.regions[0].page_idx = 0;
	check_runs(&memory.regions[0], want);
	memory_destroy(&memory);
	close(memfd);
}

TEST(a_file_that_is_full_is_walked_in_pieces)
{
	static struct memory memory;
	bool want[PAGES] = { 0 };
	int memfd = memfd_of(PAGES);

	mark(memfd, want, 0, PAGES);
	memory_init(&memory);
	add(&memory, memfd, 0, 0, PAGES);
	check_runs(memory_region_of(&memory, 0), want);
	memory_destroy(&memory);
	close(memfd);
}

/* Its predecessor opened the memfd anew, and the VMM has changed its mode since. */
TEST(a_successor_takes_a_memfd_whose_mode_has_changed)
{
	static struct memory before, after;
	uint64_t from_idx, to_idx;
	int memfd, rc;

	if (geteuid() != 0)
		test_skip("needs root, to be without its rights to files");
	drop_file_capabilities();
	memfd = memfd_of(PAGES);
	write_pages(memfd, 7, 1);
	memory_init(&before);
	add(&before, memfd, 0, 0, PAGES);
	CHECK_SYS(fchmod(memfd, 0));
	memory_init(&after);
	add(&after, before.regions[0].fd, 0, 0, PAGES);
	memory_destroy(&before);
	CHECK(backing_memfd.next_data(memory_region_of(&after, 0), 0, &from_idx, &to_idx, &rc));
	CHECK_EQ(from_idx, 7);
	CHECK_SYS(fallocate(after.regions[0].fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
			    (off_t)bytes_of_pages(7), (off_t)PAGE_BYTES));
	CHECK(backing_memfd.is_hole(&after.regions[0], 7));
	CHECK_EQ(lseek(memfd, 0, SEEK_CUR), 0); /* the VMM's own */
	memory_destroy(&after);
	close(memfd);
}
