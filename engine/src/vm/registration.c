/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "vm/registration.h"

#include <errno.h>

#include "base/held.h"
#include "vm/backing.h"

static enum uffd_outcome register_range(const struct vm *vm, struct process *process,
					const struct range *range)
{
	return backing_of(&vm->memory, range->page_idx)->register_range(process, range);
}

static bool vmm_registers(const struct vm *vm, const struct range *range)
{
	return backing_of(&vm->memory, range->page_idx)->vmm_registers;
}

/* In how many places of a range at most to look. */
#define LOOKS 64

/* Whether some of the range is registered: *page_idx of the range's pages, if so. */
static enum uffd_answer is_registered(const struct process *process, const struct range *range,
				      uint64_t *page_idx)
{
	enum uffd_answer answer = UFFD_NO;

	for (*page_idx = 0; answer == UFFD_NO && *page_idx < range->pages;
	     *page_idx += range->pages / LOOKS + 1) {
		answer = uffd_is_registered(process->uffd, range->addr + bytes_of_pages(*page_idx));
		if (answer != UFFD_NO)
			break;
	}
	return answer;
}

/* A copy of private memory is registered since the fork, or not at all. Nothing goes out while somebody has
 * one. */
static bool is_copied(const struct vm *vm, struct process *process, const struct range *range)
{
	uint64_t page_idx;

	if (!vm_has_copy(vm, process))
		return false;
	process->protects = false;
	process->unwatched = process->unwatched || is_registered(process, range, &page_idx) != UFFD_NO;
	return true;
}

void register_process(struct vm *vm, struct process *process)
{
	HELD_NEEDS(HELD_GATE_ALONE);
	vm->registrations++;
	process->unwatched = process->releasing = false;
	process->released_addr = 0;
	for (size_t i = 0; i < process->ranges_n && !process->gone; i++) {
		const struct range *range = &process->ranges[i];
		enum uffd_outcome outcome;

		if (vmm_registers(vm, range) || is_copied(vm, process, range))
			continue;
		outcome = register_range(vm, process, range);
		if (outcome == UFFD_GONE)
			vm_process_gone(vm, process);
		else if (outcome != UFFD_DONE) {
			process->unwatched = true;
			notices_odd(
				vm->notices, range->page_idx,
				"process %u: cannot register guest memory at %#llx (%llu bytes) with its "
				"userfaultfd: it is not mapped there any more, or another userfaultfd watches it",
				process->id, (unsigned long long)range->addr,
				(unsigned long long)bytes_of_pages(range->pages));
		}
	}
}

/* What takes time is page tables. Where there are few, in a large VM that uses little of its memory or in
 * many processes, small pieces would take minutes in all: a piece may be twice as large as one before it that
 * took no time, and is small again after one that did.
 */
static uint64_t next_piece_pages(uint64_t pages, uint64_t took_ns)
{
	if (took_ns > REGISTRATION_PIECE_QUICK_NS)
		return REGISTRATION_PIECE_PAGES;
	return pages < REGISTRATION_PIECE_PAGES_MAX ? 2 * pages : pages;
}

/* Where no mapping can be split any more (vm.max_map_count), all that is left of the range at once. How many
 * bytes it were. */
static uint64_t release_at(struct vm *vm, struct process *process, uint64_t addr, uint64_t end_addr)
{
	uint64_t pages = process->release_pages ? process->release_pages : REGISTRATION_PIECE_PAGES;
	uint64_t size_bytes = bytes_of_pages(pages), since_ns = monotonic_ns();
	enum uffd_outcome outcome;

	if (size_bytes > end_addr - addr)
		size_bytes = end_addr - addr;
	outcome = uffd_unregister(process->uffd, addr, size_bytes);
	if (outcome == UFFD_NO_MEMORY) {
		size_bytes = end_addr - addr;
		outcome = uffd_unregister(process->uffd, addr, size_bytes);
	}
	if (outcome == UFFD_GONE)
		vm_process_gone(vm, process);
	process->release_pages = next_piece_pages(pages, monotonic_ns() - since_ns);
	return size_bytes;
}

/* only_ours: what its VMM has registered stays so. */
static bool release_piece_of(struct vm *vm, struct process *process, bool only_ours)
{
	for (size_t i = 0; i < process->ranges_n && !process->gone; i++) {
		uint64_t addr = process->ranges[i].addr;
		uint64_t end_addr = addr + bytes_of_pages(process->ranges[i].pages);

		if (end_addr <= process->released_addr ||
		    (only_ours && vmm_registers(vm, &process->ranges[i])))
			continue;
		addr = process->released_addr > addr ? process->released_addr : addr;
		process->released_addr = addr + release_at(vm, process, addr, end_addr);
		return true;
	}
	return false;
}

bool registration_release_piece(struct vm *vm)
{
	bool found = false;

	HELD_NEEDS(HELD_GATE | HELD_GATE_ALONE);
	pthread_mutex_lock(&vm->release_lock);
	for (size_t i = 0; i < vm->spaces.n && !found; i++)
		found = !vm_has_copy(vm, vm->spaces.processes[i]) &&
			release_piece_of(vm, vm->spaces.processes[i], false);
	pthread_mutex_unlock(&vm->release_lock);
	return found;
}

bool registration_release_process(struct vm *vm, struct process *process, bool only_ours)
{
	bool found;

	HELD_NEEDS(HELD_GATE | HELD_GATE_ALONE);
	pthread_mutex_lock(&vm->release_lock);
	found = release_piece_of(vm, process, only_ours);
	pthread_mutex_unlock(&vm->release_lock);
	return found;
}

bool registration_may_be(const struct vm *vm)
{
	bool found = vm->tracking;

	HELD_NEEDS(HELD_GATE | HELD_GATE_ALONE);
	for (size_t i = 0; i < vm->spaces.n && !found; i++)
		found = vm->spaces.processes[i]->releasing;
	return found;
}

bool registration_release_pages(struct vm *vm, struct process *process, uint64_t *page_idx, uint64_t end_idx)
{
	const struct range *first = NULL;
	uint64_t from_idx, to_idx, addr;

	HELD_NEEDS(HELD_GATE | HELD_GATE_ALONE);
	for (size_t i = 0; i < process->ranges_n && !process->gone; i++) {
		const struct range *range = &process->ranges[i];

		if (range->page_idx < end_idx && range->page_idx + range->pages > *page_idx &&
		    (!first || range->page_idx < first->page_idx))
			first = range;
	}
	if (!first)
		return false;
	from_idx = first->page_idx > *page_idx ? first->page_idx : *page_idx;
	to_idx = first->page_idx + first->pages < end_idx ? first->page_idx + first->pages : end_idx;
	addr = first->addr + bytes_of_pages(from_idx - first->page_idx);
	pthread_mutex_lock(&vm->release_lock);
	*page_idx = from_idx +
		    pages_of_bytes(release_at(vm, process, addr, addr + bytes_of_pages(to_idx - from_idx)));
	pthread_mutex_unlock(&vm->release_lock);
	return true;
}

/* What its VMM registers must be so by now. */
static void look_whether_registered(const struct vm *vm, struct process *process)
{
	uint64_t page_idx;

	for (size_t i = 0; i < process->ranges_n; i++) {
		if (!vmm_registers(vm, &process->ranges[i]))
			continue;
		process->protects = false;
		process->unwatched = process->unwatched ||
				     is_registered(process, &process->ranges[i], &page_idx) == UFFD_NO;
	}
}

int register_or_refuse(struct vm *vm, struct process *process, struct error *err)
{
	register_process(vm, process);
	look_whether_registered(vm, process);
	if (process->gone || !process->unwatched || vm_has_copy(vm, process))
		return 0;
	return error_set(
		err, EINVAL,
		"a region cannot be registered with the userfaultfd of the process: it is not mapped there, "
		"or another userfaultfd watches it");
}

/* A part of a range that lies in none of those that the process has had: from *addr on, and past it
 * afterwards. False: there is none. */
static bool next_new_part(const struct process *process, uint64_t *addr, uint64_t end_addr,
			  uint64_t *part_addr, uint64_t *part_end_addr)
{
	for (size_t i = 0; i <= process->ranges_n && *addr < end_addr; i++) {
		const struct range *had = i < process->ranges_n ? &process->ranges[i] : NULL; /* by address */
		uint64_t had_end_addr = had ? had->addr + bytes_of_pages(had->pages) : end_addr;

		if (had && had_end_addr <= *addr)
			continue;
		*part_addr = *addr;
		*part_end_addr = had && had->addr < end_addr ? had->addr : end_addr;
		*addr = had_end_addr;
		if (*part_addr < *part_end_addr)
			return true;
	}
	return false;
}

static void unregister_new(const struct process *process, const struct range *range)
{
	uint64_t addr = range->addr, from, to;

	while (next_new_part(process, &addr, range->addr + bytes_of_pages(range->pages), &from, &to))
		uffd_unregister(process->uffd, from, to - from);
}

/* Private memory is never registered for more than missing pages: undone at once, too. */
static bool is_moved(const struct vm *vm, const struct range *range)
{
	return backing_of(&vm->memory, range->page_idx)->moves;
}

/* For missing pages alone, which is undone without a walk over page tables (fs/userfaultfd.c,
 * userfaultfd_unregister()). */
static enum uffd_outcome try_new(const struct process *process, const struct range *range)
{
	uint64_t addr = range->addr, from, to;
	enum uffd_outcome outcome = UFFD_DONE;

	while (outcome == UFFD_DONE &&
	       next_new_part(process, &addr, range->addr + bytes_of_pages(range->pages), &from, &to))
		outcome = uffd_register_more(process->uffd, from, to - from, false);
	return outcome;
}

/* What is registered already, by this userfaultfd, stays so, whatever comes of it. What is as it was is left
 * alone: it may be unmapped by now, and something else be there. */
static int register_or_undo(struct vm *vm, struct process *process, struct process *next, bool only_try,
			    struct error *err)
{
	for (size_t i = 0; i < next->ranges_n && !process->gone; i++) {
		const struct range *range = &next->ranges[i];
		enum uffd_outcome outcome = UFFD_DONE;

		if (!process_has_range(process, range))
			outcome = only_try && !is_moved(vm, range) ? try_new(process, range) :
								     register_range(vm, next, range);
		if (outcome == UFFD_GONE)
			vm_process_gone(vm, process);
		if (outcome == UFFD_GONE || outcome == UFFD_DONE)
			continue;
		for (size_t undone = 0; undone <= i; undone++)
			unregister_new(process, &next->ranges[undone]);
		return error_set(
			err, EINVAL,
			"the range at %#llx cannot be registered with the userfaultfd: it is not mapped there, or another "
			"userfaultfd watches it",
			(unsigned long long)range->addr);
	}
	return 0;
}

/* A refusal undoes what was registered, with the gate held alone. Later and in pieces would be wrong: the
 * process may by then have moved guest memory there, whose event is not read yet. So all is tried first in a
 * way that is undone at once. */
int register_new_ranges(struct vm *vm, struct process *process, struct process *next, struct error *err)
{
	int rc = register_or_undo(vm, process, next, true, err);

	vm->registrations++;
	return rc ? rc : register_or_undo(vm, process, next, false, err);
}

/* Keeps what is protected. The child may have minor faults already, as its parent had while it was being
 * registered. There is no way back from them that would not leave the child unwatched for an instant. */
static enum uffd_outcome register_more(struct process *child, const struct range *range)
{
	child->minor = true;
	return uffd_register_more(child->uffd, range->addr, bytes_of_pages(range->pages), child->protects);
}

/* A child that has its parent's registrations has them as the parent had when it forked: in the middle of
 * being registered, too, or of being unregistered, from the beginning on, by a job that was then
 * cancelled. */
static enum uffd_outcome complete(struct process *child, const struct range *range, uint64_t registered_idx)
{
	uint64_t addr = range->addr + bytes_of_pages(registered_idx);

	/* A page that is protected without need costs one fault. */
	if (!registered_idx && (!child->protects || uffd_protect(child->uffd, addr, PAGE_BYTES) == UFFD_DONE))
		return UFFD_DONE;
	return register_more(child, range);
}

/* The child runs on as soon as its event is read. It has what its parent had, but for what that keeps from it
 * by MADV_DONTFORK, as QEMU does with its guest's memory: it may have something of its own there already, or
 * have forked itself, which keeps us from telling. UFFD_REFUSED: there is nothing of the guest's. */
static enum uffd_outcome take_over_range(const struct vm *vm, struct process *child,
					 const struct range *range, bool *inherited)
{
	uint64_t registered_idx;
	enum uffd_answer answer;
	enum uffd_outcome outcome;

	answer = is_registered(child, range, &registered_idx);
	if (!vm->tracking && answer == UFFD_NO)
		return backing_of(&vm->memory, range->page_idx)->unregister_inherited(child, range);
	if (!vm->tracking) {
		child->releasing = true;
		return UFFD_DONE;
	}
	if (is_copied(vm, child, range))
		return answer == UFFD_NO ? UFFD_REFUSED : UFFD_DONE;
	if (vmm_registers(vm, range))
		return answer == UFFD_NO ? UFFD_REFUSED : UFFD_DONE;
	if (answer == UFFD_NO) {
		outcome = register_range(vm, child, range);
		/* nothing of the guest's is there: it writes nothing */
		*inherited = *inherited && outcome == UFFD_REFUSED;
		return outcome;
	}
	*inherited = *inherited && answer == UFFD_YES && !registered_idx;
	outcome = answer == UFFD_YES ? complete(child, range, registered_idx) : register_more(child, range);
	/* a part is the guest's: it is served, and nothing else goes out */
	return outcome == UFFD_REFUSED ? UFFD_UNMAPPED : outcome;
}

bool register_child(struct vm *vm, struct process *child)
{
	bool inherited_all = true;
	size_t i = 0;

	vm->registrations++;

	while (i < child->ranges_n && !child->gone) {
		struct range range = child->ranges[i];
		enum uffd_outcome outcome = take_over_range(vm, child, &range, &inherited_all);

		if (outcome == UFFD_GONE) {
			vm_process_gone(vm, child);
		} else if (outcome == UFFD_REFUSED) {
			/* whole: needs no memory */
			process_forget(child, range.addr, range.addr + bytes_of_pages(range.pages));
		} else {
			child->unwatched = child->unwatched || outcome != UFFD_DONE;
			i++;
		}
	}
	if (child->releasing)
		atomic_store(&vm->release_wanted, true);
	return inherited_all || child->gone; /* who is dead writes nothing */
}
