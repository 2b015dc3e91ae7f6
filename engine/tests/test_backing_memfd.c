/* SPDX-License-Identifier: GPL-2.0-or-later */
/* How pages are taken out of a memfd, and what comes of it where something is in the way. */
#include <pthread.h>

#include "base/failpoint.h"
#include "harness.h"
#include "vm/backing.h"
#include "vm/own_mapping.h"
#include "vm/vm.h"

#define PAGES 64

static struct vm vm;
static struct region region;
static int memfd;
static char *bytes; /* what was read of the pages */

static void make_region(void)
{
	struct error err;

	memfd = (int)CHECK_SYS(memfd_create("guest", MFD_CLOEXEC | MFD_ALLOW_SEALING));
	CHECK_SYS(ftruncate(memfd, (off_t)bytes_of_pages(PAGES)));
	bytes = test_pages(PAGES);
	for (uint64_t page = 0; page < PAGES; page++) {
		test_fill_page(bytes + bytes_of_pages(page), page + 1);
		CHECK_EQ(pwrite(memfd, bytes + bytes_of_pages(page), PAGE_BYTES, (off_t)bytes_of_pages(page)),
			 PAGE_BYTES);
	}
	CHECK_OK(region_of_memfd(&region, memfd, 0, 0, PAGES, &err));
	CHECK_OK(notices_create(&vm.notices));
	memory_init(&vm.memory);
	CHECK_OK(memory_add(&vm.memory, &region, &err));
}

static void drop_region(void)
{
	memory_destroy(&vm.memory);
	notices_destroy(vm.notices);
	close(memfd);
}

static uint64_t odd_notices(void)
{
	struct notice notice;
	uint64_t n = 0;

	while (notices_take(vm.notices, &notice))
		n += notice.kind == NOTICE_ODD;
	return n;
}

static int take_out(uint64_t page_idx, uint64_t pages, bool stays[CHUNK_PAGES], struct error *err)
{
	struct leaving leaving;
	int rc;

	CHECK_OK(backing_memfd.leave_begin(&leaving, &region, 0, PAGES, err));
	rc = backing_memfd.take_out(&vm, &leaving, page_idx, pages, bytes + bytes_of_pages(page_idx), stays,
				    err);
	backing_memfd.leave_end(&leaving);
	return rc;
}

TEST(what_is_taken_out_is_a_hole)
{
	bool stays[CHUNK_PAGES];
	uint64_t start_idx, end_idx;
	struct error err;
	int rc;

	make_region();
	CHECK_OK(take_out(8, 16, stays, &err));
	for (uint64_t i = 0; i < 16; i++)
		CHECK(!stays[i]);
	for (uint64_t page = 0; page < PAGES; page++)
		CHECK_EQ(backing_memfd.is_hole(&region, page), page >= 8 && page < 24);
	CHECK(backing_memfd.next_data(&region, 8, &start_idx, &end_idx, &rc));
	CHECK_EQ(start_idx, 24);
	CHECK_EQ(end_idx, PAGES);
	CHECK_EQ(odd_notices(), 0);
	drop_region();
}

static void *take_all_out(void *stays)
{
	struct error err;

	CHECK_OK(take_out(0, PAGES, stays, &err));
	return NULL;
}

/* Between the punch and the look: what somebody else has put there is the truth, and zeros, as the kernel
 * leaves them of a folio that it could not split, are made good. */
TEST(pages_that_are_there_after_the_punch)
{
	char zeros[PAGE_BYTES] = { 0 }, foreign[PAGE_BYTES] = "foreign", got[PAGE_BYTES];
	bool stays[CHUNK_PAGES];
	pthread_t thread;

	make_region();
	CHECK_OK(failpoint_arm("evict.punched=stall"));
	CHECK_OK(pthread_create(&thread, NULL, take_all_out, stays));
	while (failpoint_hits("evict.punched") == 0)
		poll(NULL, 0, 1);
	CHECK_EQ(pwrite(memfd, foreign, PAGE_BYTES, (off_t)bytes_of_pages(5)), PAGE_BYTES);
	CHECK_EQ(pwrite(memfd, zeros, PAGE_BYTES, (off_t)bytes_of_pages(6)), PAGE_BYTES);
	CHECK_OK(failpoint_arm("evict.punched=off"));
	CHECK_OK(pthread_join(thread, NULL));
	for (uint64_t page = 0; page < PAGES; page++) {
		CHECK_EQ(stays[page], page == 5 || page == 6);
		CHECK_EQ(backing_memfd.is_hole(&region, page), !stays[page]);
	}
	CHECK_OK(backing_memfd.read(&region, 5, 1, got));
	CHECK(memcmp(got, foreign, PAGE_BYTES) == 0);
	CHECK_OK(backing_memfd.read(&region, 6, 1, got));
	CHECK(test_page_is(got, 6 + 1));
	CHECK_EQ(odd_notices(), 2);
	drop_region();
}

/* The kernel says no: nothing has happened, and the message says what to look for. */
TEST(a_punch_that_fails_changes_nothing)
{
	bool stays[CHUNK_PAGES];
	struct error err;

	make_region();
	CHECK(backing_memfd.may_leave(&region));
	CHECK_SYS(fcntl(memfd, F_ADD_SEALS, F_SEAL_WRITE));
	CHECK(!backing_memfd.may_leave(&region));
	CHECK_EQ(take_out(0, PAGES, stays, &err), -EPERM);
	CHECK_CONTAINS(err.message, "sealed");
	for (uint64_t page = 0; page < PAGES; page++)
		CHECK(!backing_memfd.is_hole(&region, page));
	drop_region();
}

/* Of a page that no process takes. The hole is filled by a mapping of ours, a page and no more. */
TEST(a_page_that_nobody_maps_goes_to_the_file)
{
	struct own_mapping own = { .page_idx = 0, .pages = PAGES };
	int uffd = uffd_open_own();
	bool stays[CHUNK_PAGES];
	char got[PAGE_BYTES];
	struct error err;

	make_region();
	CHECK_OK(take_out(0, PAGES, stays, &err));
	if (uffd < 0)
		test_skip("no userfaultfd here: %s", strerror(-uffd));
	close(uffd);
	CHECK_OK(backing_memfd.put_unmapped(&vm, &own, 9, bytes + bytes_of_pages(9), false));
	for (uint64_t page = 0; page < PAGES; page++)
		CHECK_EQ(backing_memfd.is_hole(&region, page), page != 9);
	CHECK_OK(backing_memfd.read(&region, 9, 1, got));
	CHECK(test_page_is(got, 9 + 1));
	CHECK(backing_memfd.has_page(&region, 9) && !backing_memfd.has_page(&region, 10));
	CHECK(backing_memfd.has_landed(&region, 9) && !backing_memfd.has_landed(&region, 10));
	/* given up: the VMM shrank its memfd */
	CHECK_SYS(ftruncate(memfd, (off_t)bytes_of_pages(32)));
	CHECK_OK(backing_memfd.put_unmapped(&vm, &own, 40, bytes + bytes_of_pages(40), false));
	CHECK_EQ(backing_memfd.read(&region, 40, 1, got), -ERANGE);
	own_mapping_close(&own);
	drop_region();
}
