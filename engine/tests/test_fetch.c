/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "serve/fetch.h"

#include <sys/mman.h>

#include "harness.h"

/* The monitor locks its memory. */
static size_t buffer_pages(const struct fetches *fetches)
{
	unsigned char resident[FETCHES_MAX * PAGE_READ_BYTES_MAX / PAGE_BYTES];
	size_t n = 0;

	CHECK_SYS(mincore(fetches->buffers, FETCHES_MAX * PAGE_READ_BYTES_MAX, resident));
	for (size_t i = 0; i < sizeof resident; i++)
		n += resident[i] & 1;
	return n;
}

TEST(memory_of_a_burst_is_given_back_though_it_is_locked)
{
	struct fetch *taken[FETCHES_MAX];
	struct readers *readers;
	struct fetches *fetches;
	size_t burst_pages;

	if (mlockall(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT))
		test_skip("mlockall: %s", strerror(errno));
	CHECK_OK(readers_create(&readers));
	CHECK_OK(fetches_create(readers, false, &fetches));
	for (size_t i = 0; i < FETCHES_MAX; i++) {
		CHECK(fetches_have_room(fetches));
		taken[i] = fetches_take(fetches);
		memset(taken[i]->file.bytes, 1, PAGE_READ_BYTES_MAX);
	}
	burst_pages = buffer_pages(fetches);
	CHECK_EQ(burst_pages, FETCHES_MAX * PAGE_READ_BYTES_MAX / PAGE_BYTES);
	CHECK(fetches_hold_memory(fetches));
	fetches_rest(fetches); /* they are in use */
	CHECK_EQ(buffer_pages(fetches), burst_pages);
	for (size_t i = 0; i < FETCHES_MAX; i++)
		fetches_give_back(fetches, taken[i]);
	fetches_rest(fetches);
	CHECK(!fetches_hold_memory(fetches));
	CHECK(buffer_pages(fetches) * 8 < burst_pages);
	fetches_destroy(fetches);
	readers_destroy(readers);
}
