/* SPDX-License-Identifier: GPL-2.0-or-later */
/* How many pages a swap-in may bring back. Each is charged to a cgroup, and the kernel kills processes of one
 * that reaches its limit. */
#ifndef VMMSWAP_BUDGET_H
#define VMMSWAP_BUDGET_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#define BUDGET_UNLIMITED UINT64_MAX

struct budget {
	pthread_mutex_t lock;
	bool is_limited;
	int64_t pages;	     /* negative: so many more are away than there should be */
	uint64_t away_pages; /* in shares: taken, and not charged to anybody yet, as far as is known */
};

struct budget_share {
	uint64_t pages; /* the owner subtracts what it has used */
	uint64_t taken_pages;
};

void budget_init(struct budget *budget, uint64_t pages);
void budget_destroy(struct budget *budget);

/* Set how many pages may be charged from now on, whatever there was before. Whoever sets it has counted
 * memory that is charged, and that of shares that are away is not, so they are part of it. */
void budget_set(struct budget *budget, uint64_t pages);

/* Take this many pages, or as many as there are. 0: there are none now. */
struct budget_share budget_take(struct budget *budget, uint64_t pages);

/* Each share ends so, once what was used of it is charged: what is left goes back. */
void budget_return(struct budget *budget, const struct budget_share *left);

#endif
