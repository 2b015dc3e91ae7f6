/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Guest memory comes. */
#include <errno.h>

#include "engine_inside.h"
#include "vm/backing.h"
#include "vm/folios.h"
#include "vm/page.h"

/* Its number and itself, with the gate held alone. */
static int add_region(struct vm *vm, struct region *region, struct error *err)
{
	int rc;

	rc = page_map_add_pages(vm->map, region->pages, &region->page_idx, err);
	if (rc)
		return rc;
	pthread_mutex_lock(&vm->regions_lock);
	rc = memory_add(&vm->memory, region, err);
	pthread_mutex_unlock(&vm->regions_lock);
	if (rc)
		page_map_return_pages(vm->map, region->page_idx);
	return rc;
}

int engine_add_region(struct engine *engine, int memfd, uint64_t offset_bytes, uint64_t size_bytes,
		      uint64_t *page_idx, struct error *err)
{
	struct vm *vm = &engine->vm;
	struct memory now;
	struct region region;
	int rc = vm->mover ?
			 error_set(err, EINVAL, "a VM with private memory has no other") :
			 region_of_memfd(&region, memfd, offset_bytes, 0, pages_of_bytes(size_bytes), err);

	if (rc)
		return rc;
	gate_hold_alone(vm->gate);
	rc = add_region(vm, &region, err);
	now = vm->memory;
	gate_release(vm->gate);
	if (rc) {
		region_close(&region);
		return rc;
	}
	*page_idx = region.page_idx;
	folios_look(vm, &now);
	return 0;
}

/* What the file has goes out, as it were; what is a hole there is zeros. */
static void mark_stored(struct vm *vm, const struct region *region)
{
	uint64_t first_slot = pages_of_bytes(region->offset_bytes), end_slot = first_slot + region->pages;
	uint64_t from_slot, to_slot;

	for (uint64_t slot = first_slot;
	     slot < end_slot && store_next_data(vm->store, slot, &from_slot, &to_slot); slot = to_slot) {
		for (slot = from_slot; slot < to_slot && slot < end_slot; slot++)
			page_begin_out(vm, region->page_idx + slot - first_slot, slot);
	}
}

int engine_add_snapshot_region(struct engine *engine, uint64_t offset_bytes, uint64_t size_bytes,
			       uint64_t *page_idx, struct error *err)
{
	struct vm *vm = &engine->vm;
	struct page_map_header *header = page_map_header(vm->map);
	uint64_t known_pages = atomic_load(&header->pages_n);
	uint64_t pages = pages_of_bytes(size_bytes);
	struct region region;
	int rc;

	if (!header->snapshot_bytes || offset_bytes % PAGE_BYTES ||
	    pages_of_bytes(offset_bytes) + pages > STORE_SLOTS_MAX)
		return error_set(err, EINVAL,
				 "%llu bytes at offset %llu of a snapshot's memory file cannot be served",
				 (unsigned long long)size_bytes, (unsigned long long)offset_bytes);
	region = region_of_snapshot(offset_bytes, 0, pages);
	gate_hold_alone(vm->gate);
	rc = add_region(vm, &region, err);
	*page_idx = region.page_idx;
	if (!rc && *page_idx >= known_pages) { /* else a predecessor's map says it better */
		mark_stored(vm, memory_region_of(&vm->memory, *page_idx));
		atomic_store(&header->tracking, true);
		atomic_store(&vm->tracking, true);
	}
	gate_release(vm->gate);
	return rc;
}

int engine_add_private_region(struct engine *engine, uint64_t addr, uint64_t size_bytes, uint64_t *page_idx,
			      struct error *err)
{
	struct vm *vm = &engine->vm;
	struct region region;
	int rc;

	if (!vm->mover || addr % PAGE_BYTES || size_bytes % PAGE_BYTES || !size_bytes ||
	    addr + size_bytes < addr)
		return error_set(err, EINVAL, "%llu bytes of private memory at %#llx cannot be served",
				 (unsigned long long)size_bytes, (unsigned long long)addr);
	region = region_of_private(vm->mover, addr, 0, pages_of_bytes(size_bytes));
	gate_hold_alone(vm->gate);
	rc = add_region(vm, &region, err);
	gate_release(vm->gate);
	*page_idx = region.page_idx;
	return rc;
}
