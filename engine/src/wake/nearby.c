/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "wake/nearby.h"

#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

/* Without a window, so many page faults are passed over for each that is looked at. */
#define PASSED_OVER 4

#define HELD_BACK_256 32
#define SMALL_WINDOW 4

struct nearby *nearby_create(uint32_t pages_max)
{
	struct nearby *nearby = calloc(1, sizeof *nearby);

	if (!nearby)
		return NULL;
	nearby->pages_max = pages_max;
	nearby->window_pages = 1;
	nearby->held_back_256 = HELD_BACK_256;
	nearby->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (nearby->event_fd < 0) {
		free(nearby);
		return NULL;
	}
	return nearby;
}

void nearby_destroy(struct nearby *nearby)
{
	if (!nearby)
		return;
	close(nearby->event_fd);
	free(nearby);
}

void nearby_wake(struct nearby *nearby)
{
	eventfd_write(nearby->event_fd, 1);
}

/* Never 0. */
static uint64_t word_of(uint64_t page_idx, enum nearby_kind kind, uint32_t round)
{
	return page_idx << 8 | (uint64_t)(round % NEARBY_ROUNDS) << 2 | (uint64_t)kind << 1 | 1;
}

static size_t place_of(uint64_t page_idx)
{
	return (page_idx * 0x9e3779b97f4a7c15u >> 32) % NEARBY_WATCHED_MAX;
}

bool nearby_is_watched(const struct nearby *nearby, uint64_t page_idx)
{
	uint64_t word = atomic_load_explicit(&nearby->watched[place_of(page_idx)], memory_order_relaxed);

	return word && word >> 8 == page_idx;
}

bool nearby_holds_back(const struct nearby *nearby, uint32_t window_pages, uint64_t random)
{
	return random % 256 < nearby->held_back_256 * (window_pages <= SMALL_WINDOW ? 2 : 1);
}

/* If the page is watched, count what it says. */
static void look_at_watched(struct nearby *nearby, uint64_t page_idx)
{
	_Atomic uint64_t *place = &nearby->watched[place_of(page_idx)];
	uint64_t word = atomic_load_explicit(place, memory_order_relaxed);

	if (word && word >> 8 == page_idx && atomic_compare_exchange_strong(place, &word, 0))
		atomic_fetch_add(&nearby->rounds[word >> 1 & 1][word >> 2 & (NEARBY_ROUNDS - 1)].missed_n, 1);
}

bool nearby_missed(struct nearby *nearby, uint64_t page_idx)
{
	uint64_t n;

	look_at_watched(nearby, page_idx);
	if (atomic_load_explicit(&nearby->window_pages, memory_order_relaxed) == 1 &&
	    atomic_fetch_add_explicit(&nearby->unasked_n, 1, memory_order_relaxed) % PASSED_OVER)
		return false;
	n = atomic_fetch_add(&nearby->asked_n, 1);
	atomic_store(&nearby->asked[n % NEARBY_ASKED_MAX], page_idx + 1);
	if (atomic_exchange(&nearby->sleeps, false))
		nearby_wake(nearby);
	return true;
}

bool nearby_take(struct nearby *nearby, uint64_t *page_idx)
{
	uint64_t asked_n = atomic_load(&nearby->asked_n), taken_n = atomic_load(&nearby->taken_n);

	if (asked_n - taken_n > NEARBY_ASKED_MAX)
		taken_n = asked_n - NEARBY_ASKED_MAX;
	for (; taken_n < asked_n; taken_n++) {
		uint64_t word = atomic_exchange(&nearby->asked[taken_n % NEARBY_ASKED_MAX], 0);

		if (!word) /* another thread is just writing it, or it was overwritten and taken */
			continue;
		atomic_store(&nearby->taken_n, taken_n + 1);
		*page_idx = word - 1;
		return true;
	}
	atomic_store(&nearby->taken_n, taken_n);
	return false;
}

bool nearby_sleep(struct nearby *nearby)
{
	atomic_store(&nearby->sleeps, true);
	if (atomic_load(&nearby->asked_n) == atomic_load(&nearby->taken_n))
		return true;
	atomic_store(&nearby->sleeps, false);
	return false;
}

static void next_round(struct nearby *nearby, enum nearby_kind kind)
{
	struct nearby_round *round = &nearby->rounds[kind][++nearby->round[kind] % NEARBY_ROUNDS];

	round->watched_n = 0;
	atomic_store(&round->missed_n, 0);
}

/* What was watched with another window says nothing about this one. */
static void set_window(struct nearby *nearby, uint32_t pages)
{
	if (pages < 1 || pages > nearby->pages_max)
		return;
	atomic_store(&nearby->window_pages, pages);
	for (int kind = 0; kind < NEARBY_KINDS; kind++)
		for (int i = 0; i < 2; i++)
			next_round(nearby, kind);
}

/* The round before the current one: its pages had time to raise their page faults. */
static void judge(struct nearby *nearby, enum nearby_kind kind)
{
	const struct nearby_round *round =
		&nearby->rounds[kind][(nearby->round[kind] + NEARBY_ROUNDS - 1) % NEARBY_ROUNDS];
	uint32_t window_pages = atomic_load(&nearby->window_pages), missed_n = atomic_load(&round->missed_n);

	if (round->watched_n < NEARBY_JUDGED)
		return;
	missed_n = missed_n < round->watched_n ? missed_n : round->watched_n;
	if (kind == NEARBY_INNER)
		atomic_store(&nearby->used_256, 256 * missed_n / round->watched_n);
	if (kind == NEARBY_INNER && missed_n * 4 < round->watched_n)
		set_window(nearby, window_pages / 2);
	else if (kind == NEARBY_OUTER && missed_n * 2 >= round->watched_n)
		set_window(nearby, window_pages * 2);
}

void nearby_watch(struct nearby *nearby, uint64_t page_idx, enum nearby_kind kind)
{
	struct nearby_round *round = &nearby->rounds[kind][nearby->round[kind] % NEARBY_ROUNDS];

	atomic_store(&nearby->watched[place_of(page_idx)], word_of(page_idx, kind, nearby->round[kind]));
	if (++round->watched_n < NEARBY_JUDGED)
		return;
	judge(nearby, kind);
	next_round(nearby, kind);
}
