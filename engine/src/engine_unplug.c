/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Guest memory goes. All that takes longer for more memory is done a piece at a time, and in between
 * everybody else gets on: page faults, events, and jobs, which leave the region out. */
#include <errno.h>

#include "base/failpoint.h"
#include "engine_inside.h"
#include "vm/page.h"
#include "vm/registration.h"

/* Processes that come without end must not keep a region. */
#define ROUNDS_MAX 8

struct unplug {
	struct vm *vm;
	struct lane *lane;
	uint64_t page_idx, end_idx;
	uint64_t registrations; /* of the VM, before the last round began */
};

static bool anything_out(struct vm *vm, uint64_t page_idx, uint64_t pages)
{
	for (struct used_pages at = used_pages(vm->map, page_idx, page_idx + pages); used_pages_next(&at);) {
		enum page_state state = page_state_of(page_word(vm, at.page_idx));

		if (state == PAGE_STORED || state == PAGE_POISONED || state == PAGE_MOVED)
			return true;
	}
	return false;
}

/* The process with that number, or the next. */
static struct process *next_process(struct vm *vm, uint32_t id)
{
	for (size_t i = 0; i < vm->spaces.n; i++)
		if (vm->spaces.processes[i]->id >= id) /* in this order */
			return vm->spaces.processes[i];
	return NULL;
}

/* One piece of the first process, from number *id on, that has one. False: none has. */
static bool unregister_piece(struct unplug *unplug, uint32_t *id, uint64_t *page_idx)
{
	struct process *process;

	while ((process = next_process(unplug->vm, *id))) {
		*page_idx = process->id == *id ? *page_idx : unplug->page_idx;
		*id = process->id;
		if (registration_release_pages(unplug->vm, process, page_idx, unplug->end_idx))
			return true;
		*page_idx = unplug->page_idx;
		++*id;
	}
	return false;
}

static void unregister_in_pieces(struct unplug *unplug)
{
	struct vm *vm = unplug->vm;
	uint64_t page_idx = unplug->page_idx;
	bool more = true;
	uint32_t id = 0;

	gate_hold_alone(vm->gate);
	unplug->registrations = vm->registrations;
	gate_release(vm->gate);
	while (more && !atomic_load(&vm->stopping)) {
		gate_pass(vm->gate, unplug->lane);
		more = registration_may_be(vm) && unregister_piece(unplug, &id, &page_idx);
		gate_leave(vm->gate, unplug->lane);
		FAILPOINT_HERE("unplug.piece");
	}
}

/* No process has it any more, as far as we know. False, with nothing changed: somebody's memory was
 * registered meanwhile. */
static bool part(struct unplug *unplug, bool must)
{
	struct vm *vm = unplug->vm;
	uint64_t page_idx = unplug->page_idx, pages = unplug->end_idx - unplug->page_idx;
	uint32_t id = 0;
	bool done;

	gate_hold_alone(vm->gate);
	done = must || unplug->registrations == vm->registrations;
	while (must && registration_may_be(vm) && unregister_piece(unplug, &id, &page_idx))
		;
	for (size_t i = 0; done && i < vm->spaces.n; i++)
		process_forget_pages(vm->spaces.processes[i], unplug->page_idx, pages);
	if (done)
		removals_forget(&vm->removals, unplug->page_idx, pages);
	gate_release(vm->gate);
	return done;
}

/* Nothing is out, and nobody acts on the pages any more: that needs a process that has them. Kept copies
 * go. */
static void drop_records(struct unplug *unplug)
{
	struct vm *vm = unplug->vm;
	uint64_t pages = unplug->end_idx - unplug->page_idx;

	for (struct used_pages at = used_pages(vm->map, unplug->page_idx, unplug->end_idx);
	     used_pages_next(&at);)
		vm_drop_kept_copy(vm, at.page_idx);
	page_map_forget(vm->map, unplug->page_idx, pages);
}

/* False: the engine is stopping, and the region stays what it is. */
static bool remove_in_pieces(struct unplug *unplug)
{
	struct vm *vm = unplug->vm;
	struct region removed;
	int rounds = 0;

	do {
		unregister_in_pieces(unplug);
		if (atomic_load(&vm->stopping))
			return false;
	} while (!part(unplug, ++rounds == ROUNDS_MAX));
	drop_records(unplug);
	gate_hold_alone(vm->gate);
	pthread_mutex_lock(&vm->regions_lock);
	removed = memory_remove(&vm->memory, unplug->page_idx);
	pthread_mutex_unlock(&vm->regions_lock);
	page_map_return_pages(vm->map, unplug->page_idx);
	gate_release(vm->gate);
	region_close(&removed);
	return true;
}

static int no_region(uint64_t page_idx, struct error *err)
{
	return error_set(err, EINVAL, "no region starts at page %llu", (unsigned long long)page_idx);
}

/* How many pages the region has that starts there, and is not leaving; 0: there is none. */
static uint64_t pages_at(struct vm *vm, uint64_t page_idx)
{
	const struct region *region;
	uint64_t pages = 0;

	pthread_mutex_lock(&vm->regions_lock);
	region = memory_region_of(&vm->memory, page_idx);
	if (region && region->page_idx == page_idx && !region->is_leaving)
		pages = region->pages;
	pthread_mutex_unlock(&vm->regions_lock);
	return pages;
}

static int remove_region(struct vm *vm, uint64_t page_idx, uint64_t pages, struct error *err)
{
	struct unplug unplug = { .vm = vm, .page_idx = page_idx, .end_idx = page_idx + pages };
	bool done;

	if (gate_join(vm->gate, &unplug.lane) != 0)
		return error_set(err, ENOMEM, "no memory to take guest memory away");
	done = remove_in_pieces(&unplug);
	gate_part(vm->gate, unplug.lane);
	return done ? 0 : error_set(err, ECANCELED, "the VM has ended");
}

int engine_remove_region(struct engine *engine, uint64_t page_idx, struct error *err)
{
	struct vm *vm = &engine->vm;
	uint64_t pages = pages_at(vm, page_idx), jobs;
	bool idle = swapper_is_idle(engine->swapper, &jobs);

	if (!pages)
		return no_region(page_idx, err);
	if (idle && anything_out(vm, page_idx, pages))
		return error_set(err, EBUSY, "pages of the region are swapped out: call Disable first");
	if (!idle || !swapper_leave_out(engine->swapper, jobs, page_idx))
		return error_set(err, EBUSY, "an operation is under way: remove memory when it is done");
	return remove_region(vm, page_idx, pages, err);
}

bool engine_is_out(struct engine *engine, uint64_t page_idx, uint64_t pages)
{
	return anything_out(&engine->vm, page_idx, pages);
}

int engine_undo_add_region(struct engine *engine, uint64_t page_idx, struct error *err)
{
	struct vm *vm = &engine->vm;
	uint64_t pages = pages_at(vm, page_idx);

	if (!pages)
		return no_region(page_idx, err);
	pthread_mutex_lock(&vm->regions_lock);
	memory_leave(&vm->memory, page_idx);
	pthread_mutex_unlock(&vm->regions_lock);
	return remove_region(vm, page_idx, pages, err);
}
