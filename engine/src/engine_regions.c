/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Guest memory comes and goes. */
#include <errno.h>

#include "engine_inside.h"
#include "serve/event.h"
#include "vm/backing.h"
#include "vm/folios.h"
#include "vm/page.h"

static int add_region(struct vm *vm, const struct region *region, struct error *err)
{
	int rc;

	gate_hold_alone(vm->gate);
	pthread_mutex_lock(&vm->regions_lock);
	rc = memory_add(&vm->memory, region, err);
	pthread_mutex_unlock(&vm->regions_lock);
	gate_release(vm->gate);
	if (rc)
		region_close(region);
	return rc;
}

int engine_add_region(struct engine *engine, int memfd, uint64_t offset_bytes, uint64_t size_bytes,
		      uint64_t *page_idx, struct error *err)
{
	struct vm *vm = &engine->vm;
	uint64_t pages = pages_of_bytes(size_bytes);
	struct region region;
	int rc = page_map_add_pages(vm->map, pages, page_idx, err);

	if (rc)
		return rc;
	rc = region_of_memfd(&region, memfd, offset_bytes, *page_idx, pages, err);
	if (!rc)
		rc = add_region(vm, &region, err);
	if (rc)
		page_map_return_pages(vm->map, *page_idx);
	folios_look(vm, &vm->memory);
	return rc;
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
	rc = page_map_add_pages(vm->map, pages, page_idx, err);
	if (rc)
		return rc;
	gate_hold_alone(vm->gate);
	pthread_mutex_lock(&vm->regions_lock);
	region = region_of_snapshot(offset_bytes, *page_idx, pages);
	rc = memory_add(&vm->memory, &region, err);
	pthread_mutex_unlock(&vm->regions_lock);
	if (!rc && *page_idx >= known_pages) { /* else a predecessor's map says it better */
		mark_stored(vm, memory_region_of(&vm->memory, *page_idx));
		atomic_store(&header->tracking, true);
		atomic_store(&vm->tracking, true);
	}
	gate_release(vm->gate);
	return rc;
}

static bool anything_out(struct vm *vm, uint64_t page_idx, uint64_t pages)
{
	for (struct used_pages at = used_pages(vm->map, page_idx, page_idx + pages); used_pages_next(&at);) {
		enum page_state state = page_state_of(page_word(vm, at.page_idx));

		if (state == PAGE_STORED || state == PAGE_POISONED)
			return true;
	}
	return false;
}

static void forget_region(struct vm *vm, uint64_t page_idx, uint64_t pages)
{
	if (vm->tracking)
		for (struct mapped at = mapped_everywhere(&vm->spaces, page_idx, pages); mapped_next(&at);)
			uffd_unregister(at.process->uffd, at.addr, bytes_of_pages(at.pages));
	for (size_t i = 0; i < vm->spaces.n; i++)
		process_forget_pages(vm->spaces.processes[i], page_idx, pages);
	removals_forget(&vm->removals, page_idx, pages);
	event_give_up(vm, page_idx, pages); /* kept copies */
	pthread_mutex_lock(&vm->regions_lock);
	memory_remove(&vm->memory, page_idx);
	pthread_mutex_unlock(&vm->regions_lock);
	page_map_forget(vm->map, page_idx, pages);
}

static int remove_region(struct vm *vm, uint64_t page_idx, struct error *err)
{
	const struct region *region;
	int rc = 0;

	gate_hold_alone(vm->gate);
	region = memory_region_of(&vm->memory, page_idx);
	if (!region || region->page_idx != page_idx)
		rc = error_set(err, EINVAL, "no region starts at page %llu", (unsigned long long)page_idx);
	else if (anything_out(vm, page_idx, region->pages))
		rc = error_set(err, EBUSY, "pages of the region are swapped out: call Disable first");
	else
		forget_region(vm, page_idx, region->pages);
	gate_release(vm->gate);
	return rc;
}

int engine_remove_region(struct engine *engine, uint64_t page_idx, struct error *err)
{
	if (swapper_job(engine->swapper) != JOB_NONE)
		return error_set(err, EBUSY, "an operation is under way: remove memory when it is done");
	return remove_region(&engine->vm, page_idx, err);
}

bool engine_is_out(struct engine *engine, uint64_t page_idx, uint64_t pages)
{
	return anything_out(&engine->vm, page_idx, pages);
}

int engine_undo_add_region(struct engine *engine, uint64_t page_idx, struct error *err)
{
	return remove_region(&engine->vm, page_idx, err);
}
