/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "jobs/around.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/failpoint.h"
#include "jobs/ahead.h"
#include "vm/page.h"

#define STACK_BYTES ((size_t)256 << 10)
#define REST_MS 10000 /* after so long without a page fault the buffers are given back */
#define NOTED_256 192 /* if so many of 256 are used, all count as touched */

struct around {
	struct vm *vm;
	struct budget *budget;
	struct lane *lane;
	struct ahead *ahead; /* NULL: not now */
	uint64_t seed;
	pthread_t thread;
	_Atomic bool stopping;
};

static uint64_t next_random(struct around *around)
{
	around->seed ^= around->seed << 13;
	around->seed ^= around->seed >> 7;
	around->seed ^= around->seed << 17;
	return around->seed >> 32;
}

/* A block, as far as it lies in the page's own region. With the gate passed. */
static bool find_block(const struct vm *vm, uint64_t page_idx, uint32_t pages, uint64_t *from_idx,
		       uint64_t *end_idx)
{
	const struct region *region = memory_region_of(&vm->memory, page_idx);

	if (!region)
		return false;
	*from_idx = nearby_block(page_idx, pages);
	*end_idx = *from_idx + pages;
	if (*from_idx < region->page_idx)
		*from_idx = region->page_idx;
	if (*end_idx > region->page_idx + region->pages)
		*end_idx = region->page_idx + region->pages;
	return true;
}

/* Neither this room nor the replay waits for its page fault to learn from it. */
static bool may_come(const struct vm *vm, uint64_t page_idx)
{
	return page_is_out(page_word(vm, page_idx)) && !nearby_is_watched(vm->nearby, page_idx) &&
	       !wake_record_holds(vm->wake, page_idx);
}

/* The page's neighbours that are out, but for those that are held back. Returns how many. */
static size_t choose(struct around *around, uint64_t page_idx, uint32_t window_pages, struct wake_page *out)
{
	struct vm *vm = around->vm;
	uint64_t from_idx, end_idx;
	size_t n = 0;

	if (window_pages == 1 || !find_block(vm, page_idx, window_pages, &from_idx, &end_idx))
		return 0;
	for (uint64_t idx = from_idx; idx < end_idx; idx++) {
		if (idx == page_idx || !may_come(vm, idx))
			continue;
		if (nearby_holds_back(vm->nearby, window_pages, next_random(around)))
			nearby_watch(vm->nearby, idx, NEARBY_INNER);
		else
			out[n++] = (struct wake_page){ .page_idx = (uint32_t)idx };
	}
	return n;
}

/* One page of the half of the next larger block that the window does not reach. */
static void watch_outer(struct around *around, uint64_t page_idx, uint32_t window_pages)
{
	struct vm *vm = around->vm;
	uint64_t from_idx, end_idx, idx;

	if (window_pages == vm->nearby->pages_max ||
	    !find_block(vm, nearby_block(page_idx, window_pages) ^ window_pages, window_pages, &from_idx,
			&end_idx))
		return;
	idx = from_idx + next_random(around) % (end_idx - from_idx);
	if (page_is_out(page_word(vm, idx)))
		nearby_watch(vm->nearby, idx, NEARBY_OUTER);
}

/* False: there is no memory for more. */
static bool bring(struct around *around, const struct wake_page *pages, size_t n)
{
	struct budget_share share = budget_take(around->budget, n);
	uint64_t used_256 = atomic_load(&around->vm->nearby->used_256);
	size_t pages_back = 0;
	int rc = share.pages ? ahead_bring(around->ahead, pages, share.pages, &pages_back) : 0;
	bool all = share.pages == n;

	wake_record_brought(around->vm->wake, pages_back, pages_back * (256 - used_256) / 256);
	if (used_256 >= NOTED_256)
		wake_record_note(around->vm->wake, pages, pages_back);
	share.pages -= pages_back < share.pages ? pages_back : share.pages;
	budget_return(around->budget, &share);
	return all && rc != -ENOMEM;
}

static bool has_means(struct around *around)
{
	return around->ahead || ahead_create(around->vm, around->lane, 1, NULL, false, &around->ahead) == 0;
}

static void drop_means(struct around *around)
{
	ahead_destroy(around->ahead);
	around->ahead = NULL;
}

static void bring_neighbours(struct around *around, uint64_t page_idx)
{
	struct vm *vm = around->vm;
	uint32_t window_pages = atomic_load(&vm->nearby->window_pages);
	struct wake_page pages[NEARBY_PAGES_MAX];
	size_t n;

	gate_pass(vm->gate, around->lane);
	n = choose(around, page_idx, window_pages, pages);
	watch_outer(around, page_idx, window_pages);
	gate_leave(vm->gate, around->lane);
	FAILPOINT_HERE("around.chosen");
	for (size_t i = 0, part; i < n && wake_record_is_waking(vm->wake) && has_means(around); i += part) {
		part = n - i < AHEAD_PAGES_MAX ? n - i : AHEAD_PAGES_MAX;
		if (!bring(around, pages + i, part))
			break;
	}
	FAILPOINT_HERE("around.done");
}

static void *run(void *argument)
{
	struct around *around = argument;
	struct pollfd asked = { .fd = around->vm->nearby->event_fd, .events = POLLIN };
	uint64_t page_idx;
	eventfd_t value;

	while (!atomic_load(&around->stopping)) {
		if (nearby_take(around->vm->nearby, &page_idx)) {
			bring_neighbours(around, page_idx);
			continue;
		}
		if (!nearby_sleep(around->vm->nearby))
			continue;
		if (poll(&asked, 1, around->ahead ? REST_MS : -1) == 0)
			drop_means(around);
		eventfd_read(asked.fd, &value);
	}
	return NULL;
}

static void destroy(struct around *around)
{
	gate_part(around->vm->gate, around->lane);
	drop_means(around);
	free(around);
}

int around_start(struct vm *vm, struct budget *budget, struct around **out, struct error *err)
{
	struct around *around;
	pthread_attr_t attr;
	int code = ENOMEM;

	*out = NULL;
	if (!vm->nearby)
		return 0;
	around = calloc(1, sizeof *around);
	if (!around)
		return error_set(err, ENOMEM, "no memory for the engine");
	*around = (struct around){ .vm = vm, .budget = budget, .seed = monotonic_ns() | 1 };
	if (gate_join(vm->gate, &around->lane) == 0) {
		pthread_attr_init(&attr);
		pthread_attr_setstacksize(&attr, STACK_BYTES);
		code = pthread_create(&around->thread, &attr, run, around);
		pthread_attr_destroy(&attr);
	}
	if (code) {
		destroy(around);
		return error_set(err, code, "cannot start a thread: %s", strerror(code));
	}
	*out = around;
	return 0;
}

void around_stop(struct around *around)
{
	if (!around)
		return;
	atomic_store(&around->stopping, true);
	nearby_wake(around->vm->nearby);
	pthread_join(around->thread, NULL);
	destroy(around);
}
