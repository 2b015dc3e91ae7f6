/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What is in scratch and cannot be stored goes back to the guest. */
#include "jobs/move_back.h"

#include <errno.h>
#include <string.h>
#include <time.h>

#include "base/failpoint.h"
#include "base/held.h"
#include "jobs/move_out.h"
#include "vm/backing.h"
#include "vm/page.h"

#define RETRY_NS 50000

/* The page is claimed. 0: it is back, or was given up; -EAGAIN: events must be read first; else -errno. */
static int copy_back(struct vm *vm, int place, uint64_t page_idx, uint64_t window_page)
{
	_Alignas(PAGE_BYTES) char page[PAGE_BYTES];
	int rc = mover_read(vm->mover, place, window_page, 1, page);
	struct mapped at = mapped_everywhere(&vm->spaces, page_idx, 1);
	uint64_t copied_bytes;

	/* It was a hole, or a page of zeros that the kernel does not move. */
	if (rc == -ENOENT)
		return 0;
	if (rc)
		return rc;
	while (mapped_next(&at)) {
		if (at.process->id != 0)
			continue;
		switch (uffd_copy(at.process->uffd, at.addr, page, PAGE_BYTES, false, &copied_bytes)) {
		case UFFD_DONE:
		case UFFD_UNMAPPED: /* the VMM has given the memory up */
			return 0;
		case UFFD_EXISTS: /* the guest's own is newer; or a page table was just being freed */
			return vm_has_page(vm, page_idx) ? 0 : -EAGAIN;
		case UFFD_GONE:
			vm_process_gone(vm, at.process);
			return -ESRCH;
		case UFFD_NO_MEMORY:
			return -ENOMEM;
		default:
			return -EAGAIN;
		}
	}
	return 0; /* unmapped */
}

/* One passage of the gate. */
static int page_back(struct vm *vm, struct lane *lane, int place, uint64_t page_idx, uint64_t window_page)
{
	uint64_t word, claimed;
	int rc = 0;

	gate_pass(vm->gate, lane);
	word = page_word(vm, page_idx);
	if (page_state_of(word) == PAGE_MOVED) {
		rc = -EAGAIN;
		if (!page_is_held(word) && !removals_have(&vm->removals, page_idx, 1) &&
		    page_claim(vm, page_idx, word, &claimed)) {
			HELD_TAKE(HELD_FILLING);
			rc = copy_back(vm, place, page_idx, window_page);
			if (rc)
				page_release(vm, page_idx, claimed);
			else
				page_filled(vm, page_idx, claimed);
			HELD_DROP(HELD_FILLING);
		}
	}
	gate_leave(vm->gate, lane);
	return rc;
}

int move_back(struct vm *vm, struct lane *lane, int place, uint64_t page_idx, uint64_t window_page,
	      uint64_t pages)
{
	uint64_t until_ns = monotonic_ns() + VM_STUCK_NS;
	int rc = 0;

	for (uint64_t i = 0; i < pages && (!rc || rc == -EAGAIN); i += !rc) {
		rc = page_back(vm, lane, place, page_idx + i, window_page + i);
		if (rc != -EAGAIN) {
			until_ns = monotonic_ns() + VM_STUCK_NS;
			continue;
		}
		if (monotonic_ns() > until_ns || atomic_load(&vm->stopping))
			break;
		HELD_MAY_WAIT(WAIT_TIME);
		nanosleep(&(struct timespec){ .tv_nsec = RETRY_NS }, NULL);
	}
	return rc;
}

int move_back_end(struct vm *vm, int place)
{
	int rc = mover_discard(vm->mover, place, &vm->stopping);

	FAILPOINT_HERE("move.discarded");
	if (rc && rc != -ESRCH) {
		mover_leave_place(vm->mover, place);
		return rc;
	}
	mover_give_place(vm->mover, place);
	return 0;
}

/* The window's addresses may be of several regions, and of none. */
static int window_back(struct vm *vm, struct lane *lane, int place, uint64_t window_addr)
{
	uint64_t window_end_addr = window_addr + CHUNK_BYTES;
	int rc = 0;

	for (size_t i = 0; !rc; i++) {
		uint64_t addr, end_addr, page_idx = 0;
		bool last;

		pthread_mutex_lock(&vm->regions_lock);
		last = i >= vm->memory.regions_n;
		if (!last) {
			const struct region *region = &vm->memory.regions[i];

			addr = region->offset_bytes > window_addr ? region->offset_bytes : window_addr;
			end_addr = region->offset_bytes + bytes_of_pages(region->pages);
			end_addr = end_addr < window_end_addr ? end_addr : window_end_addr;
			page_idx = region->page_idx + pages_of_bytes(addr - region->offset_bytes);
		}
		pthread_mutex_unlock(&vm->regions_lock);
		if (last)
			break;
		if (addr < end_addr)
			rc = move_back(vm, lane, place, page_idx, pages_of_bytes(addr - window_addr),
				       pages_of_bytes(end_addr - addr));
	}
	return rc;
}

int move_back_left(struct vm *vm, struct lane *lane, struct error *err)
{
	uint64_t window_addr;
	int place, rc = 0;

	if (!vm->mover)
		return 0;
	while (!rc && (place = mover_take_left(vm->mover, &window_addr)) >= 0) {
		rc = window_back(vm, lane, place, window_addr);
		FAILPOINT_HERE("move.back");
		if (rc)
			mover_leave_place(vm->mover, place);
		else
			rc = move_back_end(vm, place);
	}
	if (!rc)
		return 0;
	return error_set(
		err, -rc, "pages that a swap-out had moved away cannot be put back yet: %s",
		rc == -EAGAIN ?
			"the VMM is stuck in the middle of changing its memory mappings; is it stopped "
			"(SIGSTOP, a debugger)?" :
			mover_error_text(rc));
}
