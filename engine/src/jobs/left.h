/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Pages that a swap-out leaves resident because it cannot read, store or punch them. It continues with all
 * others, and reports how many were left and which. Shared by its workers. */
#ifndef VMMSWAP_LEFT_H
#define VMMSWAP_LEFT_H

#include <pthread.h>
#include <stdbool.h>

#include "base/error.h"
#include "vm/lost.h"

/* The swap-out ends after this many failures in a row: the next page would fail too. */
#define LEFT_IN_A_ROW_MAX 16

struct left {
	pthread_mutex_t lock;
	struct lost_incident pages; /* under the lock, as the rest */
	struct error why;	    /* of the first one */
	unsigned in_a_row;
};

void left_init(struct left *left);
void left_destroy(struct left *left);

/* Forget all pages: the next pass tries each again. */
void left_begin(struct left *left);

/* Add pages that failed together, for this reason. They count as one failure in a row. */
void left_add(struct left *left, uint64_t page_idx, uint64_t pages, const struct error *why);

/* Note that a page could be read, stored or punched: the next failure is the first in a row. */
void left_none(struct left *left);

bool left_too_many(struct left *left);

/* How many there are, which, and why the first one was left. */
uint64_t left_pages(struct left *left, struct lost_incident *pages, struct error *why);

#endif
