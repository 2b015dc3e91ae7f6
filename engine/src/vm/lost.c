/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "vm/lost.h"

#include <string.h>

#include "base/failpoint.h"
#include "vm/own_mapping.h"
#include "vm/page.h"
#include "vm/window.h"

#define PIECE_PAGES 32 /* pages looked at in one passage of the gate */

static void remove_range(struct lost_incident *incident, size_t i)
{
	incident->ranges_n--;
	memmove(&incident->ranges[i], &incident->ranges[i + 1],
		(incident->ranges_n - i) * sizeof incident->ranges[0]);
}

static void insert_range(struct lost_incident *incident, size_t i, struct lost_range range)
{
	if (incident->ranges_n == LOST_RANGES_MAX)
		return;
	memmove(&incident->ranges[i + 1], &incident->ranges[i],
		(incident->ranges_n - i) * sizeof incident->ranges[0]);
	incident->ranges[i] = range;
	incident->ranges_n++;
}

void lost_add_page(struct lost_incident *incident, uint64_t page_idx)
{
	struct lost_range *ranges = incident->ranges;
	size_t i = 0;

	incident->pages++;
	while (i < incident->ranges_n && ranges[i].page_idx + ranges[i].pages < page_idx)
		i++;
	if (i == incident->ranges_n || page_idx + 1 < ranges[i].page_idx) {
		insert_range(incident, i, (struct lost_range){ page_idx, 1 });
	} else if (page_idx + 1 == ranges[i].page_idx) {
		ranges[i].page_idx--;
		ranges[i].pages++;
	} else if (page_idx == ranges[i].page_idx + ranges[i].pages) {
		ranges[i].pages++;
		if (i + 1 < incident->ranges_n && ranges[i + 1].page_idx == page_idx + 1) {
			ranges[i].pages += ranges[i + 1].pages;
			remove_range(incident, i + 1);
		}
	}
}

void lost_note(struct vm *vm, uint64_t page_idx)
{
	struct notice notice = { .kind = NOTICE_PAGES_LOST };
	bool is_first;

	atomic_fetch_add(&page_map_header(vm->map)->lost_pages, 1);
	pthread_mutex_lock(&vm->lost.lock);
	is_first = vm->lost.incident.pages == 0;
	lost_add_page(&vm->lost.incident, page_idx);
	pthread_mutex_unlock(&vm->lost.lock);
	if (is_first)
		notices_post(vm->notices, &notice);
}

uint64_t lost_take(struct vm *vm, struct lost_incident *out)
{
	pthread_mutex_lock(&vm->lost.lock);
	*out = vm->lost.incident;
	vm->lost.incident = (struct lost_incident){ 0 };
	pthread_mutex_unlock(&vm->lost.lock);
	return out->pages;
}

/* We fill a hole only while we have claimed the page, and a claim changes its word. So if a page is present
 * while its word is still as before, something else has put it there. */
static void look_at(struct vm *vm, struct own_mapping *mapping, uint64_t page_idx)
{
	uint64_t word = page_word(vm, page_idx);

	/* given up, and about to be struck off: its copy is not missed */
	if (page_is_out(word) && !removals_have(&vm->removals, page_idx, 1) &&
	    own_mapping_has_page(mapping, page_idx) && page_drop_copy(vm, page_idx, word))
		lost_note(vm, page_idx);
}

/* Between two passages of the gate the region can go away, and another one get its numbers. The mapping keeps
 * the file alive, and so its inode number. */
static bool is_there_still(const struct vm *vm, const struct region *region)
{
	const struct region *now = memory_region_of(&vm->memory, region->page_idx);

	return now && now->page_idx == region->page_idx && now->pages == region->pages &&
	       now->device == region->device && now->inode == region->inode &&
	       now->offset_bytes == region->offset_bytes;
}

void lost_look_around(struct vm *vm, struct lane *lane, uint64_t page_idx)
{
	struct own_mapping mapping = { 0 };
	const struct region *region;
	struct window window;
	bool goes_on;

	gate_pass(vm->gate, lane);
	region = memory_region_of(&vm->memory, page_idx);
	if (region && region_has_file(region)) {
		window_around(region, page_idx, &window);
		/* if this fails, the swap-in finds them */
		own_mapping_open(&mapping, region, window.page_idx, window.pages);
	}
	gate_leave(vm->gate, lane);
	FAILPOINT_HERE("lost.looked");
	goes_on = mapping.base;
	for (uint64_t done = 0; goes_on && done < mapping.pages; done += PIECE_PAGES) {
		gate_pass(vm->gate, lane);
		goes_on = is_there_still(vm, &window.region);
		for (uint64_t i = done; goes_on && i < done + PIECE_PAGES && i < mapping.pages; i++)
			look_at(vm, &mapping, mapping.page_idx + i);
		gate_leave(vm->gate, lane);
	}
	own_mapping_close(&mapping);
}

void lost_look_in(struct vm *vm, struct lane *lane, const struct window *window)
{
	for (uint64_t idx = window->page_idx; idx < window->page_idx + window->pages; idx++) {
		if (!window_has_data(window, idx) || !page_is_out(page_word(vm, idx)))
			continue;
		lost_look_around(vm, lane, idx);
		return;
	}
}
