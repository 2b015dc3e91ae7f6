/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "vm/window.h"

#include <errno.h>
#include <string.h>

#include "vm/backing.h"

void window_around(const struct region *region, uint64_t page_idx, struct window *out)
{
	uint64_t offset_bytes = region->offset_bytes + bytes_of_pages(page_idx - region->page_idx);
	uint64_t into_chunk = pages_of_bytes(offset_bytes % CHUNK_BYTES),
		 into_region = page_idx - region->page_idx;
	uint64_t region_end_idx = region->page_idx + region->pages;

	out->region = *region;
	out->page_idx = page_idx - (into_chunk < into_region ? into_chunk : into_region);
	out->pages = page_idx - into_chunk + CHUNK_PAGES - out->page_idx;
	if (out->pages > region_end_idx - out->page_idx)
		out->pages = region_end_idx - out->page_idx;
}

/* The run of data at or after page_idx. It may begin in a window to come, so the run found last is
 * remembered. */
static bool find_run(const struct region *region, struct window_cursor *cursor, uint64_t page_idx)
{
	int rc;

	if (page_idx >= cursor->run_idx && page_idx < cursor->run_end_idx)
		return true;
	if (region->backing->next_data(region, page_idx, &cursor->run_idx, &cursor->run_end_idx, &rc))
		return true;
	if (rc)
		cursor->error = rc;
	return false;
}

/* Where the next data begins. The window's other data is looked for at once later, so a run's end would be
 * found in vain. */
static bool find_start(const struct region *region, struct window_cursor *cursor, uint64_t page_idx,
		       uint64_t *start_idx)
{
	int rc;

	if (!region->backing->first_data) {
		bool found = find_run(region, cursor, page_idx);

		*start_idx = cursor->run_idx > page_idx ? cursor->run_idx : page_idx;
		return found;
	}
	rc = region->backing->first_data(region, page_idx, start_idx);
	if (rc && rc != -ENXIO)
		cursor->error = rc;
	return !rc;
}

static void set_bits(struct window *window, uint64_t from_idx, uint64_t end_idx)
{
	for (uint64_t idx = from_idx; idx < end_idx; idx++)
		window->data[(idx - window->page_idx) / 64] |= (uint64_t)1 << ((idx - window->page_idx) % 64);
}

void window_part(const struct window *window, uint64_t page_idx, uint64_t pages, struct window *out)
{
	*out = (struct window){ .region = window->region, .page_idx = page_idx, .pages = pages };
	for (uint64_t idx = page_idx; idx < page_idx + pages; idx++)
		if (window_has_data(window, idx))
			set_bits(out, idx, idx + 1);
}

static void fill_by_runs(struct window_cursor *cursor, struct window *window)
{
	uint64_t end_idx = window->page_idx + window->pages, at_idx = window->page_idx;

	while (at_idx < end_idx && find_run(&window->region, cursor, at_idx) && cursor->run_idx < end_idx) {
		uint64_t from_idx = cursor->run_idx > at_idx ? cursor->run_idx : at_idx;
		uint64_t to_idx = cursor->run_end_idx < end_idx ? cursor->run_end_idx : end_idx;

		set_bits(window, from_idx, to_idx);
		at_idx = to_idx;
	}
}

/* The runs of a window with many holes are short, and each run costs several system calls. */
static void fill_data(struct window_cursor *cursor, struct window *window)
{
	const struct backing *backing = window->region.backing;

	memset(window->data, 0, sizeof window->data);
	if (!backing->find_data ||
	    backing->find_data(&window->region, window->page_idx, window->pages, window->data))
		fill_by_runs(cursor, window);
}

/* The region that the cursor is in, or the next one; NULL at the end. */
static const struct region *current_region(const struct memory *memory, struct window_cursor *cursor)
{
	for (; cursor->region_i < memory->regions_n; cursor->region_i++) {
		const struct region *region = &memory->regions[cursor->region_i];

		if (cursor->page_idx < region->page_idx)
			cursor->page_idx = region->page_idx;
		if (cursor->page_idx < region->page_idx + region->pages)
			return region;
	}
	return NULL;
}

bool window_next_data(const struct memory *memory, struct window_cursor *cursor, struct window *out)
{
	const struct region *region;
	uint64_t start_idx;

	while ((region = current_region(memory, cursor))) {
		if (!find_start(region, cursor, cursor->page_idx, &start_idx)) {
			cursor->page_idx = region->page_idx + region->pages;
			continue;
		}
		window_around(region, start_idx, out);
		fill_data(cursor, out);
		cursor->page_idx = out->page_idx + out->pages;
		return true;
	}
	return false;
}

bool window_next_used(const struct memory *memory, struct page_map *map, struct window_cursor *cursor,
		      struct window *out)
{
	const struct region *region;

	while ((region = current_region(memory, cursor))) {
		uint64_t end_idx = region->page_idx + region->pages;
		uint64_t used_idx = page_map_next_used(map, cursor->page_idx, end_idx);

		if (used_idx == end_idx) {
			cursor->page_idx = end_idx;
			continue;
		}
		window_around(region, used_idx, out);
		cursor->page_idx = out->page_idx + out->pages;
		return true;
	}
	return false;
}
