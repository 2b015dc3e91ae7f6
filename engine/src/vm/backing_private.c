/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Private, anonymous memory of the VMM. Only its own process has it, and can move it; offsets of the region
 * are its addresses there. jobs/move_out.h says how it goes out. */
#include <errno.h>

#include "linux/pagemap.h"
#include "vm/address_space.h"
#include "vm/backing.h"

struct region region_of_private(struct mover *mover, uint64_t addr, uint64_t page_idx, uint64_t pages)
{
	return (struct region){
		.backing = &backing_private,
		.mover = mover,
		.fd = -1,
		.offset_bytes = addr,
		.page_idx = page_idx,
		.pages = pages,
		.counted_pages = pages,
	};
}

static uint64_t end_addr_of(const struct region *region)
{
	return region->offset_bytes + bytes_of_pages(region->pages);
}

static bool next_data(const struct region *region, uint64_t page_idx, uint64_t *start_idx, uint64_t *end_idx,
		      int *rc)
{
	uint64_t addr = region_offset_of(region, page_idx), run_addr, run_end_addr, chunk_end_addr;
	int found;

	*rc = 0;
	if (page_idx >= region->page_idx + region->pages)
		return false;
	found = pagemap_next(mover_pagemap(region->mover), addr, end_addr_of(region), CHUNK_PAGES, &run_addr,
			     &run_end_addr);
	if (found < 0)
		*rc = found;
	if (found <= 0)
		return false;
	chunk_end_addr = (run_addr & ~(CHUNK_BYTES - 1)) + CHUNK_BYTES;
	*start_idx = region->page_idx + pages_of_bytes(run_addr - region->offset_bytes);
	*end_idx = region->page_idx +
		   pages_of_bytes((run_end_addr < chunk_end_addr ? run_end_addr : chunk_end_addr) -
				  region->offset_bytes);
	return true;
}

static bool is_hole(const struct region *region, uint64_t page_idx)
{
	return pagemap_look(mover_pagemap(region->mover), region_offset_of(region, page_idx)) !=
	       PAGEMAP_PRESENT;
}

static bool has_page(const struct region *region, uint64_t page_idx)
{
	return pagemap_look(mover_pagemap(region->mover), region_offset_of(region, page_idx)) >
	       PAGEMAP_NOTHING;
}

/* No process but the VMM gets a page of it. */
static bool has_landed(const struct region *region, uint64_t page_idx)
{
	(void)region, (void)page_idx;
	return true;
}

static int64_t count(const struct region *region, uint64_t page_idx, uint64_t pages)
{
	uint64_t addr = region_offset_of(region, page_idx);

	return pagemap_count(mover_pagemap(region->mover), addr, addr + bytes_of_pages(pages));
}

/* Its contents are nowhere else. Keep the page out unless its mapping is gone. */
static int put_unmapped(struct vm *vm, struct own_mapping *own, uint64_t page_idx, const void *page,
			bool refused)
{
	(void)vm, (void)own, (void)page_idx, (void)page;
	return refused ? -EIO : 0;
}

/* Nothing is write-protected: a page that goes out is moved away, whole and at once. */
static enum uffd_outcome register_range(struct process *process, const struct range *range)
{
	process->protects = false;
	return process->id == 0 ?
		       uffd_register(process->uffd, range->addr, bytes_of_pages(range->pages), false) :
		       UFFD_REFUSED;
}

static enum uffd_outcome unregister_inherited(const struct process *child, const struct range *range)
{
	return uffd_unregister(child->uffd, range->addr, bytes_of_pages(range->pages));
}

const struct backing backing_private = {
	.moves = true,
	.next_data = next_data,
	.is_hole = is_hole,
	.has_page = has_page,
	.has_landed = has_landed,
	.count = count,
	.put_unmapped = put_unmapped,
	.register_range = register_range,
	.unregister_inherited = unregister_inherited,
};
