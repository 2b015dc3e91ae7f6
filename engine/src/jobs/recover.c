/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "jobs/recover.h"

#include <errno.h>
#include <string.h>
#include <time.h>

#include "base/failpoint.h"
#include "vm/backing.h"
#include "vm/owner.h"
#include "vm/page.h"
#include "vm/registration.h"

static int keep_out(struct vm *vm, uint64_t page_idx, uint64_t word, struct error *err)
{
	int rc = page_recover_out(vm, page_idx, word);

	if (!rc)
		return 0;
	return error_set(err, EPROTO,
			 "the page map is damaged: page %llu has slot %llu, which %s: restart the VM",
			 (unsigned long long)page_idx, (unsigned long long)page_slot_of(word),
			 rc == -EEXIST ? "another page has as well" : "the swap file does not have");
}

/* For memory that hides its data: bring in at once a page that the predecessor was putting back when it died,
 * before its REMOVE can be read. If we died after that REMOVE and before recording it, our successor would
 * think that it never came, and give the guest older contents than it had. False: the page stays out; it is
 * not mapped, or an event must be read first. */
static bool put_back_at_once(struct vm *vm, uint64_t page_idx, uint64_t word)
{
	_Alignas(PAGE_BYTES) char page[PAGE_BYTES];
	uint64_t slot_idx = page_slot_of(word), copied_bytes;
	enum uffd_outcome outcome = UFFD_UNMAPPED;

	if (page_state_of(word) != PAGE_STORED || !(word & PAGE_FILLING) || (word & PAGE_BACKGROUND) ||
	    !backing_of(&vm->memory, page_idx)->hides_data)
		return false;
	if (store_get(vm->store, &slot_idx, 1, page))
		return false;
	for (struct mapped at = mapped_everywhere(&vm->spaces, page_idx, 1);
	     outcome != UFFD_DONE && outcome != UFFD_EXISTS && mapped_next(&at);)
		outcome = uffd_copy(at.process->uffd, at.addr, page, PAGE_BYTES, false, &copied_bytes);
	return outcome == UFFD_DONE || outcome == UFFD_EXISTS;
}

/* For a resident page: true if the predecessor, when it died, was neither about to punch its hole nor putting
 * it back. */
static bool is_lost(uint64_t word)
{
	bool was_filled = (word & PAGE_FILLING) && !(word & PAGE_BACKGROUND);

	return page_state_of(word) == PAGE_STORED && !(word & PAGE_PUNCHING) && !was_filled;
}

/* MOVED: scratch has it, or it is a hole. */
static bool is_out(uint64_t word)
{
	return page_state_of(word) == PAGE_STORED || page_state_of(word) == PAGE_POISONED ||
	       page_state_of(word) == PAGE_MOVED;
}

/* The pages in [page_idx, end_idx) are either all resident or all holes. */
static int recover_run(struct vm *vm, uint64_t page_idx, uint64_t end_idx, bool resident, struct error *err)
{
	for (struct used_pages at = used_pages(vm->map, page_idx, end_idx); used_pages_next(&at);) {
		uint64_t idx = at.page_idx, word = page_word(vm, idx);
		bool resident_here = resident;

		/* A poison marker looks like data in the host's swap. */
		if (page_state_of(word) == PAGE_POISONED && resident)
			resident_here = !backing_of(&vm->memory, idx)
						 ->is_hole(memory_region_of(&vm->memory, idx), idx);
		if (put_back_at_once(vm, idx, word)) {
			page_recover_resident(vm, idx, word);
		} else if (!resident_here && is_out(word)) {
			int rc = keep_out(vm, idx, word, err);

			if (rc)
				return rc;
		} else if (word) {
			if (is_lost(word))
				lost_note(vm, idx);
			page_recover_resident(vm, idx, word);
		}
	}
	return 0;
}

static int recover_region(struct vm *vm, const struct region *region, struct error *err)
{
	uint64_t idx = region->page_idx, end_idx = region->page_idx + region->pages;
	uint64_t data_idx, data_end_idx;
	int rc = 0, seek_rc;

	while (!rc && region->backing->next_data(region, idx, &data_idx, &data_end_idx, &seek_rc)) {
		rc = recover_run(vm, idx, data_idx, false, err);
		if (!rc)
			rc = recover_run(vm, data_idx, data_end_idx, true, err);
		idx = data_end_idx;
	}
	if (!rc && seek_rc)
		rc = error_set(err, -seek_rc, "cannot tell what is in guest memory: %s", strerror(-seek_rc));
	return rc ? rc : recover_run(vm, idx, end_idx, false, err);
}

#define PREDECESSOR_NS 2000000000
#define PREDECESSOR_LOOK_NS 1000000

static int await_predecessor(const struct page_map_header *header, struct error *err)
{
	uint64_t until_ns = monotonic_ns() + PREDECESSOR_NS;

	while (owner_runs(header)) {
		if (monotonic_ns() > until_ns)
			return error_set(
				err, EBUSY,
				"process %u, which served the VM before, has been killed and has not ended yet: the VM holds "
				"the lock of its memory's file; trying again",
				atomic_load(&header->owner_pid));
		nanosleep(&(struct timespec){ .tv_nsec = PREDECESSOR_LOOK_NS }, NULL);
	}
	return 0;
}

int recover_pages(struct vm *vm, struct error *err)
{
	int rc = await_predecessor(page_map_header(vm->map), err);

	if (rc)
		return rc;
	owner_take(page_map_header(vm->map));
	for (size_t i = 0; i < vm->memory.regions_n && !rc; i++)
		rc = recover_region(vm, &vm->memory.regions[i], err);
	if (rc)
		return rc;
	store_ready(vm->store);
	FAILPOINT_HERE("recover.mapped");
	/* until every page was in once: an unprotected process may have joined */
	atomic_store(&vm->keeps, false);
	atomic_store(&vm->tracking, atomic_load(&page_map_header(vm->map)->tracking));
	/* Register again everything that should be: the predecessor may have died while it registered, and
	 * may not yet have registered a child that it knew to be forked.
	 *
	 * One hold of the gate for all of it, though others give it back between two pieces: nobody is there
	 * to pass. Fault threads and jobs start later, and all page faults wait for them. It takes no longer
	 * for that: registering takes microseconds a GiB, and where nothing is tracked the predecessor had
	 * unregistered all but a child that was just being forked. Piece by piece nevertheless, because the
	 * child cannot use its memory map meanwhile. */
	gate_hold_alone(vm->gate);
	for (size_t i = 0; i < vm->spaces.n; i++) {
		struct process *process = vm->spaces.processes[i];

		if (vm->tracking || atomic_load(&vm->stored_pages))
			register_process(vm, process);
		else if (!vm_has_copy(vm, process))
			while (registration_release_process(vm, process, false))
				;
	}
	vm_wake_all(vm);
	gate_release(vm->gate);
	return 0;
}
