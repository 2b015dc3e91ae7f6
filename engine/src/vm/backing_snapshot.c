/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Private memory, restored from the memory file of a snapshot, which is the store. It is never swapped
 * out. */
#include <errno.h>

#include "vm/address_space.h"
#include "vm/backing.h"

struct region region_of_snapshot(uint64_t offset_bytes, uint64_t page_idx, uint64_t pages)
{
	return (struct region){
		.backing = &backing_snapshot,
		.fd = -1,
		.offset_bytes = offset_bytes,
		.page_idx = page_idx,
		.pages = pages,
	};
}

static bool next_data(const struct region *region, uint64_t page_idx, uint64_t *start_idx, uint64_t *end_idx,
		      int *rc)
{
	(void)region, (void)page_idx, (void)start_idx, (void)end_idx;
	*rc = 0;
	return false;
}

/* Only the guest's page can be there: no other process has this memory. */
static bool is_there(const struct region *region, uint64_t page_idx)
{
	(void)region, (void)page_idx;
	return true;
}

/* Nothing else has the page's bytes. Keep the page out unless its mapping is gone. */
static int put_unmapped(struct vm *vm, struct own_mapping *own, uint64_t page_idx, const void *page,
			bool refused)
{
	(void)vm, (void)own, (void)page_idx, (void)page;
	return refused ? -EIO : 0;
}

static enum uffd_outcome register_range(struct process *process, const struct range *range)
{
	(void)process, (void)range;
	return UFFD_REFUSED;
}

static enum uffd_outcome unregister_inherited(const struct process *child, const struct range *range)
{
	return uffd_unregister(child->uffd, range->addr, bytes_of_pages(range->pages));
}

const struct backing backing_snapshot = {
	.hides_data = true,
	.vmm_registers = true,
	.stays = "memory that came from a snapshot is the VMM's own: it cannot be swapped out",
	.next_data = next_data,
	.has_page = is_there,
	.has_landed = is_there,
	.put_unmapped = put_unmapped,
	.register_range = register_range,
	.unregister_inherited = unregister_inherited,
};
