/* SPDX-License-Identifier: GPL-2.0-or-later */
/* One thread's reads, by either means: how many are in flight, and what each gives. */
#include "store/reads.h"

#include <poll.h>

#include "base/failpoint.h"
#include "base/units.h"
#include "slow_disk.h"

#define MOST 16

static struct readers *readers;

static struct reads *open_reads(bool uring)
{
	struct reads *reads;

	CHECK_OK(readers_create(&readers));
	CHECK_OK(reads_create(readers, MOST, uring, &reads));
	if (uring && !reads_use_uring(reads))
		test_skip("no io_uring here");
	return reads;
}

static void close_reads(struct reads *reads)
{
	reads_destroy(reads);
	readers_destroy(readers);
}

static void begin(struct reads *reads, struct file_read *file, int fd, char *bytes, uint64_t page,
		  uint64_t pages)
{
	*file = (struct file_read){ .fd = fd,
				    .bytes = bytes,
				    .size_bytes = bytes_of_pages(pages),
				    .offset_bytes = bytes_of_pages(page) };
	reads_begin(reads, file);
}

/* The next one that ends. */
static struct file_read *await(struct reads *reads)
{
	struct pollfd waiting = { .fd = reads_fd(reads), .events = POLLIN };
	struct file_read *file;

	CHECK(reads_submit(reads));
	while (!(file = reads_take(reads))) {
		CHECK(reads_submit(reads)); /* the rest of what was cut short */
		CHECK_EQ(poll(&waiting, 1, 60000), 1);
	}
	return file;
}

static void many_are_in_flight(bool uring)
{
	static struct slow_disk disk;
	struct file_read files[MOST];
	char *bytes = test_pages(MOST), wanted[PAGE_BYTES];
	struct reads *reads;
	int fd;

	slow_disk_open(&disk, 0x5c);
	memset(wanted, 0x5c, sizeof wanted);
	reads = open_reads(uring);
	fd = (int)CHECK_SYS(open(disk.path, O_RDONLY | O_DIRECT | O_CLOEXEC));
	for (uint64_t i = 0; i < MOST; i++)
		begin(reads, &files[i], fd, bytes + bytes_of_pages(i), i, 1);
	CHECK(reads_submit(reads));
	slow_disk_await(&disk, MOST); /* all of them, and none has been answered */
	CHECK(!reads_take(reads));
	slow_disk_release(&disk);
	for (size_t i = 0; i < MOST; i++) {
		struct file_read *file = await(reads);

		CHECK_OK(file->result);
		CHECK(memcmp(file->bytes, wanted, PAGE_BYTES) == 0);
		file->bytes = NULL; /* each once */
	}
	for (size_t i = 0; i < MOST; i++)
		CHECK(!files[i].bytes);
	close(fd);
	close_reads(reads);
	slow_disk_close(&disk);
}

TEST(many_are_in_flight_in_a_ring)
{
	many_are_in_flight(true);
}

TEST(many_are_in_flight_in_threads)
{
	many_are_in_flight(false);
}

static void what_a_read_gives(bool uring)
{
	struct reads *reads = open_reads(uring);
	char *bytes = test_pages(3), *page = test_pages(1);
	int fd = (int)CHECK_SYS(memfd_create("file", MFD_CLOEXEC));
	struct file_read file;

	for (uint64_t i = 0; i < 3; i++) {
		test_fill_page(page, i);
		CHECK_EQ(pwrite(fd, page, PAGE_BYTES, (off_t)bytes_of_pages(i)), PAGE_BYTES);
	}
	begin(reads, &file, fd, bytes, 0, 3);
	CHECK(await(reads) == &file);
	CHECK_OK(file.result);
	for (uint64_t i = 0; i < 3; i++)
		CHECK(test_page_is(bytes + bytes_of_pages(i), i));
	begin(reads, &file, fd, bytes, 2, 2); /* beyond the end */
	CHECK_EQ(await(reads)->result, -EIO);
	begin(reads, &file, -1, bytes, 0, 1);
	CHECK_EQ(await(reads)->result, -EBADF);
	CHECK_OK(failpoint_arm("store.read=once:ENODEV"));
	begin(reads, &file, fd, bytes, 0, 1);
	CHECK_EQ(await(reads)->result, -ENODEV);
	CHECK_OK(failpoint_arm("store.read=once:EINTR"));
	begin(reads, &file, fd, bytes, 1, 1);
	CHECK_OK(await(reads)->result);
	CHECK(test_page_is(bytes, 1));
	close(fd);
	close_reads(reads);
}

TEST(what_a_read_in_a_ring_gives)
{
	what_a_read_gives(true);
}

TEST(what_a_read_in_a_thread_gives)
{
	what_a_read_gives(false);
}

/* The kernel may have no memory for it just then. Who submits learns of it, and tries again. */
TEST(the_rest_of_a_read_that_was_cut_short_is_submitted_again)
{
	struct reads *reads = open_reads(true);
	struct pollfd waiting = { .fd = reads_fd(reads), .events = POLLIN };
	char *bytes = test_pages(2);
	int fd = (int)CHECK_SYS(memfd_create("file", MFD_CLOEXEC));
	struct file_read file;

	CHECK_OK(ftruncate(fd, (off_t)PAGE_BYTES));
	begin(reads, &file, fd, bytes, 0, 2); /* the second page is behind the end */
	CHECK(reads_submit(reads));
	CHECK_EQ(poll(&waiting, 1, 60000), 1);
	CHECK_OK(failpoint_arm("uring.submit=once:EAGAIN"));
	CHECK(!reads_take(reads));
	CHECK(!reads_submit(reads));
	CHECK_EQ(await(reads)->result, -EIO);
	close(fd);
	close_reads(reads);
}
