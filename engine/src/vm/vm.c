/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "vm/vm.h"

#include <time.h>
#include <unistd.h>

#include "base/failpoint.h"
#include "base/hash.h"
#include "base/held.h"
#include "vm/backing.h"
#include "vm/page.h"

uint64_t monotonic_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

void vm_process_gone(struct vm *vm, struct process *process)
{
	struct notice notice = { .kind = NOTICE_PROCESS_GONE, .process_id = process->id };

	if (atomic_exchange(&process->gone, true) || process->leaving)
		return;
	atomic_fetch_sub(&vm->spaces.living, 1);
	notices_post(vm->notices, &notice);
}

void vm_wake(struct vm *vm, uint64_t page_idx, uint64_t pages)
{
	HELD_NEEDS(HELD_GATE | HELD_GATE_ALONE);
	for (struct mapped at = mapped_everywhere(&vm->spaces, page_idx, pages); mapped_next(&at);)
		if (uffd_wake(at.process->uffd, at.addr, bytes_of_pages(at.pages)) == UFFD_GONE)
			vm_process_gone(vm, at.process);
}

void vm_punching_begin(struct vm *vm, struct punching *punching)
{
	pthread_mutex_lock(&vm->punching_lock);
	punching->next = vm->punching;
	vm->punching = punching;
	pthread_mutex_unlock(&vm->punching_lock);
}

void vm_punching_end(struct vm *vm, struct punching *punching)
{
	struct punching **at = &vm->punching;

	pthread_mutex_lock(&vm->punching_lock);
	while (*at != punching)
		at = &(*at)->next;
	*at = punching->next;
	pthread_mutex_unlock(&vm->punching_lock);
}

/* A process cannot write to what it has not mapped, or what is not registered. */
static bool protect_range(struct vm *vm, struct process *process, const struct punching *punching)
{
	bool done = true;

	for (struct mapped at = mapped_in(process, punching->page_idx, punching->pages); mapped_next(&at);) {
		enum uffd_outcome outcome =
			process->protects ? uffd_protect(process->uffd, at.addr, bytes_of_pages(at.pages)) :
					    UFFD_REFUSED;

		if (outcome == UFFD_GONE)
			vm_process_gone(vm, process);
		done = done && (outcome == UFFD_DONE || outcome == UFFD_UNMAPPED || outcome == UFFD_GONE);
	}
	return done;
}

bool vm_protect_punching(struct vm *vm, struct process *process)
{
	bool done = true;

	HELD_NEEDS(HELD_GATE_ALONE);
	pthread_mutex_lock(&vm->punching_lock);
	for (const struct punching *at = vm->punching; at; at = at->next)
		done = protect_range(vm, process, at) && done;
	pthread_mutex_unlock(&vm->punching_lock);
	return done;
}

bool vm_is_right(const struct vm *vm, const void *page, uint32_t hash)
{
	return store_checks_bytes(vm->store) || page_hash(page) == hash;
}

bool vm_found_present(struct vm *vm, uint64_t page_idx)
{
	const struct region *region = memory_region_of(&vm->memory, page_idx);

	if (region && region->backing->hides_data) {
		atomic_fetch_add(&page_map_header(vm->map)->redundant_pages, 1);
		return false;
	}
	lost_note(vm, page_idx);
	return true;
}

bool vm_has_page(const struct vm *vm, uint64_t page_idx)
{
	const struct region *region = memory_region_of(&vm->memory, page_idx);

	return !region || region->backing->has_page(region, page_idx);
}

bool vm_has_landed(struct vm *vm, const struct process *process, uint64_t page_idx)
{
	const struct region *region = memory_region_of(&vm->memory, page_idx);

	/* The VMM itself was checked when it was registered: it has only the guest's memory there. */
	if (process->id == 0 || !region || region->backing->has_landed(region, page_idx))
		return true;
	notices_odd(vm->notices, page_idx,
		    "process %u has other shared memory in place of the guest's, and got the guest's bytes "
		    "there; the guest keeps them",
		    process->id);
	return false;
}

uint32_t vm_now_ms(void)
{
	return (uint32_t)(monotonic_ns() / 1000000) | 1; /* 0 stands for never */
}

uint32_t vm_given_up_ms(const struct vm *vm, uint64_t page_idx, uint64_t word)
{
	if (word & PAGE_GIVEN_UP)
		return (uint32_t)page_slot_of(word);
	return word == 0 ? atomic_load(&vm->given_up_ms[page_idx / CHUNK_PAGES]) : 0;
}

bool vm_may_be_punched_yet(const struct vm *vm, uint64_t page_idx, uint64_t word)
{
	uint32_t since_ms = vm_given_up_ms(vm, page_idx, word);

	return since_ms && vm_now_ms() - since_ms < VM_GIVEN_UP_MS;
}

void vm_touched(struct vm *vm, uint64_t page_idx, bool missing, bool write)
{
	struct notice notice = { .kind = NOTICE_WAKING };

	if (wake_record_touch(vm->wake, page_idx, missing, write))
		notices_post(vm->notices, &notice);
	if (missing && vm->nearby && wake_record_is_waking(vm->wake))
		nearby_missed(vm->nearby, page_idx);
}

void vm_note_join(struct vm *vm)
{
	HELD_NEEDS(HELD_GATE_ALONE);
	atomic_store(&vm->keeps, false); /* first: whoever sees that a process joined sees this too */
	atomic_fetch_add(&vm->joined, 1);
}

void vm_drop_stale_copies(struct vm *vm)
{
	if (!atomic_load(&vm->keeps) && atomic_load(&vm->kept_pages))
		vm_drop_kept_copies(vm);
}

/* Compaction may change the slot of a copy between the look and the change: it is a copy all the same. */
void vm_drop_kept_copy(struct vm *vm, uint64_t page_idx)
{
	uint64_t word;
	bool done = false;

	while (!done && page_state_of(word = page_word(vm, page_idx)) == PAGE_KEPT) {
		FAILPOINT_HERE("kept.seen");
		done = page_drop_copy(vm, page_idx, word);
	}
}

void vm_drop_kept_copies(struct vm *vm)
{
	uint64_t end_idx = atomic_load(&page_map_header(vm->map)->pages_n);

	HELD_MAY_WAIT(WAIT_TIME); /* takes longer the more copies there are */
	for (struct used_pages at = used_pages(vm->map, 0, end_idx);
	     atomic_load(&vm->kept_pages) && used_pages_next(&at);)
		vm_drop_kept_copy(vm, at.page_idx);
}

void vm_wake_all(struct vm *vm)
{
	HELD_NEEDS(HELD_GATE | HELD_GATE_ALONE);
	for (size_t i = 0; i < vm->spaces.n; i++) {
		struct process *process = vm->spaces.processes[i];

		for (size_t r = 0; r < process->ranges_n && !process->gone; r++)
			if (uffd_wake(process->uffd, process->ranges[r].addr,
				      bytes_of_pages(process->ranges[r].pages)) == UFFD_GONE)
				vm_process_gone(vm, process);
	}
}
