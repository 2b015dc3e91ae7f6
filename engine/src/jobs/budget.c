/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "jobs/budget.h"

void budget_init(struct budget *budget, uint64_t pages)
{
	pthread_mutex_init(&budget->lock, NULL);
	budget->pages = pages;
	budget->round = 0;
}

void budget_destroy(struct budget *budget)
{
	pthread_mutex_destroy(&budget->lock);
}

void budget_set(struct budget *budget, uint64_t pages)
{
	pthread_mutex_lock(&budget->lock);
	budget->pages = pages;
	budget->round++;
	pthread_mutex_unlock(&budget->lock);
}

struct budget_share budget_take(struct budget *budget, uint64_t pages)
{
	struct budget_share share = { .pages = pages };

	pthread_mutex_lock(&budget->lock);
	share.round = budget->round;
	if (budget->pages != BUDGET_UNLIMITED) {
		share.pages = budget->pages < pages ? budget->pages : pages;
		budget->pages -= share.pages;
	}
	pthread_mutex_unlock(&budget->lock);
	return share;
}

void budget_return(struct budget *budget, const struct budget_share *left)
{
	pthread_mutex_lock(&budget->lock);
	if (left->round == budget->round && budget->pages != BUDGET_UNLIMITED)
		budget->pages += left->pages;
	pthread_mutex_unlock(&budget->lock);
}
