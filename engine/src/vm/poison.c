/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "vm/poison.h"

#include "base/failpoint.h"
#include "base/held.h"
#include "vm/page.h"

/* A page-table entry that holds a write-protect marker answers EEXIST until the marker is gone. */
bool poison_mark(struct vm *vm, uint64_t page_idx)
{
	bool done = true;

	HELD_NEEDS(HELD_GATE | HELD_GATE_ALONE);
	for (struct mapped at = mapped_everywhere(&vm->spaces, page_idx, 1); mapped_next(&at);) {
		enum uffd_outcome outcome = uffd_poison(at.process->uffd, at.addr);

		if (outcome == UFFD_EXISTS) {
			uffd_unprotect(at.process->uffd, at.addr, PAGE_BYTES);
			outcome = uffd_poison(at.process->uffd, at.addr);
		}
		if (outcome == UFFD_EXISTS) /* mark first: whoever waits must run into the mark */
			uffd_wake(at.process->uffd, at.addr, PAGE_BYTES);
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
	/* The page is gone again: a REMOVE is reported before its hole is punched, and markers outlive it. */
	return outcome == UFFD_BEYOND ? UFFD_RETRY : outcome;
}

/* EEXIST of CONTINUE: there is no marker, and the page is mapped. If a process cannot get the page (it
 * unmapped it), it cannot touch it either. */
static bool lift_everywhere(struct vm *vm, uint64_t page_idx)
{
	bool done = true;

	for (struct mapped at = mapped_everywhere(&vm->spaces, page_idx, 1); mapped_next(&at);) {
		enum uffd_outcome outcome = lift_in(at.process, at.addr);

		if (outcome == UFFD_GONE)
			vm_process_gone(vm, at.process);
		else if (outcome == UFFD_RETRY || outcome == UFFD_NO_MEMORY)
			done = false;
		FAILPOINT_HERE("poison.lifted");
	}
	return done;
}

/* True if nothing is left to do for the page. */
static bool lift_page(struct vm *vm, struct lane *lane, uint64_t page_idx)
{
	struct notice healed = { .kind = NOTICE_PAGE_HEALED, .page_idx = page_idx };
	uint64_t word, claimed;
	bool done = true;

	gate_pass(vm->gate, lane);
	word = page_word(vm, page_idx);
	/* FILLING: another thread fills it, and handles what is left. */
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

	for (struct used_pages at = used_pages(vm->map, 0, end_idx); used_pages_next(&at);)
		pages += is_being_lifted(page_word(vm, at.page_idx));
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

	for (struct used_pages at = used_pages(vm->map, from_idx, end_idx); used_pages_next(&at);) {
		if (is_being_lifted(page_word(vm, at.page_idx)) && !lift_page(vm, lane, at.page_idx)) {
			poison_lift_later(vm, at.page_idx, 1);
			done = false;
		}
	}
	return done;
}
