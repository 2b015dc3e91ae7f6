/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Private memory, filled from the memory file of a snapshot, which is the store. Nothing of it goes out. */
#include <errno.h>

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

/* Nothing but the guest's page can be there: the memory is the process's alone. */
static bool is_there(const struct region *region, uint64_t page_idx)
{
	(void)region, (void)page_idx;
	return true;
}

/* It is nowhere else: keep the page out unless its mapping is gone, and it with that. */
static int put_unmapped(struct vm *vm, struct own_mapping *own, uint64_t page_idx, const void *page,
			bool refused)
{
	(void)vm, (void)own, (void)page_idx, (void)page;
	return refused ? -EIO : 0;
}

const struct backing backing_snapshot = {
	.hides_data = true,
	.next_data = next_data,
	.has_page = is_there,
	.has_landed = is_there,
	.put_unmapped = put_unmapped,
};
