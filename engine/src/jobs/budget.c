/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "jobs/budget.h"

static void set(struct budget *budget, uint64_t pages)
{
	budget->is_limited = pages != BUDGET_UNLIMITED;
	budget->pages = (int64_t)(pages < INT64_MAX ? pages : INT64_MAX) - (int64_t)budget->away_pages;
}

void budget_init(struct budget *budget, uint64_t pages)
{
	pthread_mutex_init(&budget->lock, NULL);
	budget->away_pages = 0;
	set(budget, pages);
}

void budget_destroy(struct budget *budget)
{
	pthread_mutex_destroy(&budget->lock);
}

void budget_set(struct budget *budget, uint64_t pages)
{
	pthread_mutex_lock(&budget->lock);
	set(budget, pages);
	pthread_mutex_unlock(&budget->lock);
}

static uint64_t there_are(const struct budget *budget, uint64_t pages)
{
	if (!budget->is_limited)
		return pages;
	if (budget->pages <= 0)
		return 0;
	return (uint64_t)budget->pages < pages ? (uint64_t)budget->pages : pages;
}

struct budget_share budget_take(struct budget *budget, uint64_t pages)
{
	struct budget_share share;

	pthread_mutex_lock(&budget->lock);
	share.pages = share.taken_pages = there_are(budget, pages);
	budget->away_pages += share.taken_pages;
	if (budget->is_limited)
		budget->pages -= (int64_t)share.taken_pages;
	pthread_mutex_unlock(&budget->lock);
	return share;
}

void budget_return(struct budget *budget, const struct budget_share *left)
{
	pthread_mutex_lock(&budget->lock);
	budget->away_pages -= left->taken_pages;
	if (budget->is_limited)
		budget->pages += (int64_t)left->pages;
	pthread_mutex_unlock(&budget->lock);
}
