/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "jobs/left.h"

#include <string.h>

void left_init(struct left *left)
{
	memset(left, 0, sizeof *left);
	pthread_mutex_init(&left->lock, NULL);
}

void left_destroy(struct left *left)
{
	pthread_mutex_destroy(&left->lock);
}

void left_begin(struct left *left)
{
	pthread_mutex_lock(&left->lock);
	left->pages = (struct lost_incident){ 0 };
	left->why = (struct error){ 0 };
	left->in_a_row = 0;
	pthread_mutex_unlock(&left->lock);
}

void left_add(struct left *left, uint64_t page_idx, uint64_t pages, const struct error *why)
{
	pthread_mutex_lock(&left->lock);
	if (!left->pages.pages)
		left->why = *why;
	for (uint64_t i = 0; i < pages; i++)
		lost_add_page(&left->pages, page_idx + i);
	left->in_a_row++;
	pthread_mutex_unlock(&left->lock);
}

void left_none(struct left *left)
{
	pthread_mutex_lock(&left->lock);
	left->in_a_row = 0;
	pthread_mutex_unlock(&left->lock);
}

bool left_too_many(struct left *left)
{
	bool too_many;

	pthread_mutex_lock(&left->lock);
	too_many = left->in_a_row >= LEFT_IN_A_ROW_MAX;
	pthread_mutex_unlock(&left->lock);
	return too_many;
}

uint64_t left_pages(struct left *left, struct lost_incident *pages, struct error *why)
{
	pthread_mutex_lock(&left->lock);
	*pages = left->pages;
	*why = left->why;
	pthread_mutex_unlock(&left->lock);
	return pages->pages;
}
