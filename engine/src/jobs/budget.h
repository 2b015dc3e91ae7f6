/* SPDX-License-Identifier: GPL-2.0-or-later */
/* How many pages a swap-in may bring back. Each is charged to a cgroup, and the kernel kills processes of one
 * that reaches its limit. */
#ifndef VMMSWAP_BUDGET_H
#define VMMSWAP_BUDGET_H

#include <pthread.h>
#include <stdint.h>

#define BUDGET_UNLIMITED UINT64_MAX

struct budget {
	pthread_mutex_t lock;
	uint64_t pages;
	uint64_t round; /* grows with each budget_set() */
};

/* What was taken, of which round. */
struct budget_share {
	uint64_t pages, round;
};

void budget_init(struct budget *budget, uint64_t pages);
void budget_destroy(struct budget *budget);

/* Set how many pages there are from now on, whatever there was before. */
void budget_set(struct budget *budget, uint64_t pages);

/* Take this many pages, or as many as there are. 0: there are none now. */
struct budget_share budget_take(struct budget *budget, uint64_t pages);

/* Return what is left of a share. If the budget was set since, nothing is added: whoever set it counted that
 * memory as free. */
void budget_return(struct budget *budget, const struct budget_share *left);

#endif
