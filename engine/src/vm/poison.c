/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "vm/poison.h"

#include "base/failpoint.h"
#include "base/held.h"
#include "vm/page.h"

/* A page whose entry holds a write-protect marker answers EEXIST until that is gone. */
bool poison_mark(struct vm *vm, uint64_t page_idx)
{
	bool done = true;

	HELD_NEEDS(HELD_GATE | HELD_GATE_ALONE);
	for (size_t i = 0; i < vm->spaces.n; i++) {
		struct process *process = vm->spaces.processes[i];
		uint64_t addr;
		enum uffd_outcome outcome;

		if (process->gone || !process_addr_of(process, page_idx, 1, &addr))
			continue;
		outcome = uffd_poison(process->uffd, addr);
		if (outcome == UFFD_EXISTS) {
			uffd_unprotect(process->uffd, addr, PAGE_BYTES);
			outcome = uffd_poison(process->uffd, addr);
		}
		if (outcome == UFFD_EXISTS) /* marked before: whoever waits must run into it */
			uffd_wake(process->uffd, addr, PAGE_BYTES);
		done = done && outcome != UFFD_RETRY && outcome != UFFD_NO_MEMORY;
	}
	return done;
}

void poison_lift_later(struct vm *vm, uint64_t page_idx, uint64_t pages)
{
	pthread_mutex_lock(&vm->lift_lock);
	if (vm->lift_end_idx == vm->lift_from_idx) {
		vm->lift_from_idx = page_idx;
		vm->lift_end_idx = page_idx + pages;
	}
	if (page_idx < vm->lift_from_idx)
		vm->lift_from_idx = page_idx;
	if (page_idx + pages > vm->lift_end_idx)
		vm->lift_end_idx = page_idx + pages;
	atomic_store(&vm->lift_wanted, true);
	pthread_mutex_unlock(&vm->lift_lock);
}

static enum uffd_outcome lift_in(struct process *process, uint64_t addr)
{
	enum uffd_outcome outcome = uffd_zeropage(process->uffd, addr);

	if (outcome != UFFD_EXISTS)
		return outcome;
	outcome = uffd_continue(process->uffd, addr);
	/* The page that was there is gone again: a REMOVE is told before its hole is punched, and markers outlive that. */
	return outcome == UFFD_BEYOND ? UFFD_RETRY : outcome;
}

/* EEXIST of CONTINUE: there is no marker, the page is mapped. What a process cannot take (it unmapped the page), it cannot
 * touch either. */
static bool lift_everywhere(struct vm *vm, uint64_t page_idx)
{
	bool done = true;

	for (size_t i = 0; i < vm->spaces.n; i++) {
		struct process *process = vm->spaces.processes[i];
		enum uffd_outcome outcome;
		uint64_t addr;

		if (process->gone || !process_addr_of(process, page_idx, 1, &addr))
			continue;
		outcome = lift_in(process, addr);
		if (outcome == UFFD_GONE)
			vm_process_gone(vm, process);
		else if (outcome == UFFD_RETRY || outcome == UFFD_NO_MEMORY)
			done = false;
		FAILPOINT_HERE("poison.lifted");
	}
	return done;
}

/* True when there is nothing left to do for the page. */
static bool lift_page(struct vm *vm, struct lane *lane, uint64_t page_idx)
{
	struct notice healed = { .kind = NOTICE_PAGE_HEALED, .page_idx = page_idx };
	uint64_t word, claimed;
	bool done = true;

	gate_pass(vm->gate, lane);
	word = page_word(vm, page_idx);
	/* FILLING: another thread is at it, and sees to what is left. */
	if (is_being_lifted(word) && !(word & PAGE_FILLING) && page_claim(vm, page_idx, word, &claimed)) {
		done = lift_everywhere(vm, page_idx);
		if (!done) {
			page_release(vm, page_idx, claimed);
		} else if (page_lifted(vm, page_idx, claimed)) {
			notices_post(vm->notices, &healed);
		}
	}
	gate_leave(vm->gate, lane);
	return done;
}

uint64_t poison_pages_to_lift(struct vm *vm)
{
	uint64_t end_idx = atomic_load(&page_map_header(vm->map)->pages_n), pages = 0;

	for (uint64_t idx = page_map_next_used(vm->map, 0, end_idx); idx < end_idx; idx++) {
		if (idx % (PAGE_BYTES / sizeof(uint64_t)) == 0)
			idx = page_map_next_used(vm->map, idx, end_idx);
		pages += idx < end_idx && is_being_lifted(page_word(vm, idx));
	}
	return pages;
}

bool poison_lift(struct vm *vm, struct lane *lane)
{
	uint64_t from_idx, end_idx;
	bool done = true;

	if (!atomic_load(&vm->lift_wanted))
		return true;
	pthread_mutex_lock(&vm->lift_lock);
	from_idx = vm->lift_from_idx;
	end_idx = vm->lift_end_idx;
	vm->lift_from_idx = vm->lift_end_idx = 0;
	atomic_store(&vm->lift_wanted, false);
	pthread_mutex_unlock(&vm->lift_lock);

	for (uint64_t idx = page_map_next_used(vm->map, from_idx, end_idx); idx < end_idx; idx++) {
		if (idx % (PAGE_BYTES / sizeof(uint64_t)) == 0)
			idx = page_map_next_used(vm->map, idx, end_idx);
		if (idx < end_idx && is_being_lifted(page_word(vm, idx)) && !lift_page(vm, lane, idx)) {
			poison_lift_later(vm, idx, 1);
			done = false;
		}
	}
	return done;
}
