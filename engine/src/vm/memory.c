/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "vm/memory.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

void memory_init(struct memory *memory)
{
	memset(memory, 0, sizeof *memory);
}

void region_close(const struct region *region)
{
	if (region_has_file(region))
		close(region->fd);
}

void memory_destroy(struct memory *memory)
{
	for (size_t i = 0; i < memory->regions_n; i++)
		region_close(&memory->regions[i]);
	memory->regions_n = 0;
}

int memory_add(struct memory *memory, const struct region *region, struct error *err)
{
	size_t i = memory->regions_n;

	if (i == MEMORY_MAX_REGIONS)
		return error_set(err, E2BIG,
				 "there are %d regions of guest memory, and no more are "
				 "possible",
				 MEMORY_MAX_REGIONS);
	memory->regions_n++;
	for (; i > 0 && memory->regions[i - 1].page_idx > region->page_idx; i--)
		memory->regions[i] = memory->regions[i - 1];
	memory->regions[i] = *region;
	return 0;
}

void memory_leave(struct memory *memory, uint64_t page_idx)
{
	for (size_t i = 0; i < memory->regions_n; i++)
		if (memory->regions[i].page_idx == page_idx)
			memory->regions[i].is_leaving = true;
}

struct region memory_remove(struct memory *memory, uint64_t page_idx)
{
	struct region removed = { .fd = -1 };
	size_t i = 0;

	while (i < memory->regions_n && memory->regions[i].page_idx != page_idx)
		i++;
	if (i == memory->regions_n)
		return removed;
	removed = memory->regions[i];
	memory->regions_n--;
	memmove(&memory->regions[i], &memory->regions[i + 1],
		(memory->regions_n - i) * sizeof memory->regions[0]);
	return removed;
}

const struct region *memory_region_of(const struct memory *memory, uint64_t page_idx)
{
	for (size_t i = 0; i < memory->regions_n; i++) {
		const struct region *region = &memory->regions[i];

		if (page_idx - region->page_idx < region->pages)
			return region;
	}
	return NULL;
}

uint64_t memory_total_pages(const struct memory *memory)
{
	uint64_t pages = 0;

	for (size_t i = 0; i < memory->regions_n; i++)
		pages += memory->regions[i].pages;
	return pages;
}
