/* SPDX-License-Identifier: GPL-2.0-or-later */
/* How many page faults there were in the last second. */
#include "base/stats.h"

#include "harness.h"

static uint64_t last_second(const struct latency *all, size_t n)
{
	struct latency_summary summary;

	latency_summarise(all, n, &summary);
	return summary.last_second_n;
}

TEST(the_last_whole_second)
{
	static struct latency all[2];
	uint64_t added = 0;

	CHECK_EQ(last_second(all, 2), 0);
	do { /* until a second has passed */
		latency_add(&all[0], 100);
		latency_add(&all[1], 100);
		added += 2;
	} while (!last_second(all, 2));
	CHECK(last_second(all, 2) <= added);
	while (last_second(all, 2)) /* nothing more comes */
		sched_yield();
}
