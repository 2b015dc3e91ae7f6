/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "jobs/budget.h"

#include "harness.h"

static uint64_t rest(struct budget *budget)
{
	struct budget_share share = budget_take(budget, 1000);
	uint64_t pages = share.pages;

	share.pages = 0;
	budget_return(budget, &share);
	return pages;
}

TEST(what_is_given_back_can_be_taken_again)
{
	struct budget_share share;
	struct budget budget;

	budget_init(&budget, 10);
	share = budget_take(&budget, 8);
	CHECK_EQ(share.pages, 8);
	share.pages -= 3;
	budget_return(&budget, &share);
	CHECK_EQ(rest(&budget), 7);
	CHECK_EQ(rest(&budget), 0);
	budget_destroy(&budget);
}

/* The new figure is of memory that is free now, what was taken and not used included. */
TEST(what_is_given_back_after_a_new_budget_adds_nothing)
{
	struct budget_share share;
	struct budget budget;

	budget_init(&budget, 10);
	share = budget_take(&budget, 8);
	budget_set(&budget, 5);
	budget_return(&budget, &share);
	CHECK_EQ(rest(&budget), 5);
	budget_destroy(&budget);
}

/* Who looks at a cgroup's memory does not see what a worker is about to bring back: the kernel killed a guest
 * that way. */
TEST(what_is_away_is_part_of_a_new_budget)
{
	struct budget_share share, other;
	struct budget budget;

	budget_init(&budget, 10);
	share = budget_take(&budget, 8);
	budget_set(&budget, 10);
	other = budget_take(&budget, 8);
	CHECK_EQ(other.pages, 2);
	budget_set(&budget, 5);
	CHECK_EQ(rest(&budget), 0);
	share.pages = 0; /* used, and seen by whoever sets it next */
	budget_return(&budget, &share);
	CHECK_EQ(rest(&budget), 0);
	budget_set(&budget, 5);
	CHECK_EQ(rest(&budget), 3);
	budget_return(&budget, &other);
	CHECK_EQ(rest(&budget), 2);
	budget_destroy(&budget);
}

TEST(no_limit_and_back)
{
	struct budget_share share;
	struct budget budget;

	budget_init(&budget, BUDGET_UNLIMITED);
	share = budget_take(&budget, 8);
	CHECK_EQ(share.pages, 8);
	budget_return(&budget, &share);
	CHECK_EQ(rest(&budget), 1000);
	share = budget_take(&budget, 8);
	budget_set(&budget, 1);
	budget_return(&budget, &share);
	CHECK_EQ(rest(&budget), 1);
	budget_destroy(&budget);
}
