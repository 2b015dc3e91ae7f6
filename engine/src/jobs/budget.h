/* SPDX-License-Identifier: GPL-2.0-or-later */
/* How many pages a swap-in may bring back: each is charged to a cgroup that may be near its limit, where the kernel kills. */
#ifndef VMMSWAP_BUDGET_H
#define VMMSWAP_BUDGET_H

#include <stdatomic.h>
#include <stdint.h>

#define BUDGET_UNLIMITED UINT64_MAX

struct budget {
	_Atomic uint64_t pages;
};

void budget_set(struct budget *budget, uint64_t pages);

/* Take this many pages, or as many as there are. 0: there are none now. */
uint64_t budget_take(struct budget *budget, uint64_t pages);

/* Give back what was taken and did not come to cost anything. */
void budget_return(struct budget *budget, uint64_t pages);

#endif
