/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Pages that a swap-out leaves behind because they cannot be read, stored or punched. It goes on with all others, and says how many
 * they are, and which. Shared by its workers. */
#ifndef VMMSWAP_LEFT_H
#define VMMSWAP_LEFT_H

#include <pthread.h>
#include <stdbool.h>

#include "base/error.h"
#include "vm/lost.h"

/* So many failures in a row mean that the next page will fare no better: the swap-out ends. */
#define LEFT_IN_A_ROW_MAX 16

struct left {
	pthread_mutex_t lock;
	struct lost_incident pages; /* under the lock, as the rest */
	struct error why;	    /* of the first one */
	unsigned in_a_row;
};

void left_init(struct left *left);
void left_destroy(struct left *left);

/* Forget all: a pass begins, which tries each page again. */
void left_begin(struct left *left);

/* Left for this reason: pages that failed together, so that they count as one in a row. */
void left_add(struct left *left, uint64_t page_idx, uint64_t pages, const struct error *why);

/* A page could be read, stored or punched. */
void left_none(struct left *left);

bool left_too_many(struct left *left);

/* How many there are, which, and why the first one was left. */
uint64_t left_pages(struct left *left, struct lost_incident *pages, struct error *why);

#endif
