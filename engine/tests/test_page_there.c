/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "base/units.h"
#include "harness.h"
#include "linux/page_there.h"

#include <errno.h>
#include <sys/mman.h>
#include <unistd.h>

static char *map(size_t pages)
{
	char *memory =
		mmap(NULL, bytes_of_pages(pages), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	CHECK(memory != MAP_FAILED);
	return memory;
}

static int there(const char *page)
{
	return page_is_there(getpid(), (uint64_t)(uintptr_t)page);
}

TEST(what_was_written_is_there_and_asking_fills_nothing)
{
	char *memory = map(4);

	memory[0] = 1;
	for (int i = 0; i < 2; i++) {
		CHECK_EQ(there(memory), 1);
		CHECK_EQ(there(memory + PAGE_BYTES), 0);
	}
	CHECK_EQ(((volatile char *)memory)[bytes_of_pages(2)], 0); /* the kernel's page of zeros */
	CHECK_EQ(there(memory + bytes_of_pages(2)), 0);
	munmap(memory, bytes_of_pages(4));
	CHECK_EQ(there(memory), 0);
}

TEST(a_process_that_there_is_not)
{
	CHECK_EQ(page_is_there(1 << 30, PAGE_BYTES), -ESRCH);
}
