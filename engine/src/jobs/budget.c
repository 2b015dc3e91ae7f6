/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "jobs/budget.h"

void budget_set(struct budget *budget, uint64_t pages)
{
	atomic_store(&budget->pages, pages);
}

uint64_t budget_take(struct budget *budget, uint64_t pages)
{
	uint64_t left = atomic_load(&budget->pages), taken;

	do {
		taken = left < pages ? left : pages;
		if (left == BUDGET_UNLIMITED || !taken)
			return left == BUDGET_UNLIMITED ? pages : 0;
	} while (!atomic_compare_exchange_weak(&budget->pages, &left, left - taken));
	return taken;
}

void budget_return(struct budget *budget, uint64_t pages)
{
	uint64_t left = atomic_load(&budget->pages);

	while (left < BUDGET_UNLIMITED - pages &&
	       !atomic_compare_exchange_weak(&budget->pages, &left, left + pages))
		;
}
