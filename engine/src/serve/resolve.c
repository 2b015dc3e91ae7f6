/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "serve/resolve.h"

#include <errno.h>
#include <string.h>

#include "base/failpoint.h"
#include "base/held.h"
#include "serve/attempt.h"
#include "vm/own_mapping.h"
#include "vm/page.h"

#define STRAY_TRIES 20
#define NO_MEMORY_RETRY_NS 5000000

/* From here on a demand fault of another thread waits for us. */
static bool claim(struct attempt *attempt, uint64_t word)
{
	if (!page_claim(attempt->vm, attempt->page_idx, word, &attempt->claimed))
		return false;
	HELD_TAKE(HELD_FILLING);
	return true;
}

void attempt_release(struct attempt *attempt)
{
	page_release(attempt->vm, attempt->page_idx, attempt->claimed);
}

void attempt_filled(struct attempt *attempt)
{
	page_filled(attempt->vm, attempt->page_idx, attempt->claimed);
}

void attempt_wake_own(struct attempt *attempt)
{
	if (uffd_wake(attempt->process->uffd, attempt->fault->addr, PAGE_BYTES) == UFFD_GONE)
		vm_process_gone(attempt->vm, attempt->process);
}

enum resolved attempt_later(struct attempt *attempt, uint64_t delay_ns)
{
	attempt->fault->not_before_ns = monotonic_ns() + delay_ns;
	return RETRY_LATER;
}

/* The kernel has no memory for the page. Until it has, only a reader of the notice knows why the guest
 * waits. */
static enum resolved starve(struct attempt *attempt)
{
	struct notice notice = { .kind = NOTICE_FAULTS_STARVED, .page_idx = attempt->page_idx };

	if (!attempt->fault->starved)
		atomic_fetch_add(&attempt->vm->starved_faults, 1);
	attempt->fault->starved = true;
	if (!atomic_exchange(&attempt->vm->starved_told, true))
		notices_post(attempt->vm->notices, &notice);
	return attempt_later(attempt, NO_MEMORY_RETRY_NS);
}

enum resolved attempt_unfilled(struct attempt *attempt, enum uffd_outcome outcome)
{
	switch (outcome) {
	case UFFD_RETRY:
		return RETRY_SOON;
	case UFFD_NO_MEMORY:
		return starve(attempt);
	case UFFD_GONE:
		vm_process_gone(attempt->vm, attempt->process);
		return RESOLVED;
	default:
		/* Unmapped or truncated meanwhile: the kernel handles the thread's next try as for any such
		 * address. */
		attempt_wake_own(attempt);
		return RESOLVED;
	}
}

static enum resolved fill_zero(struct attempt *attempt)
{
	struct page_map_header *header = page_map_header(attempt->vm->map);
	enum uffd_outcome outcome = UFFD_BEYOND;

	/* A minor fault: see uffd_register_shared(). Whatever protection is lost by that, the page counts as
	 * written already. */
	if (attempt->fault->flags & UFFD_PAGEFAULT_FLAG_MINOR)
		outcome = uffd_continue(attempt->process->uffd, attempt->fault->addr);
	if (outcome == UFFD_DONE)
		outcome = UFFD_EXISTS;
	if (outcome == UFFD_BEYOND) /* nothing is there, or not any more */
		outcome = uffd_zeropage(attempt->process->uffd, attempt->fault->addr);
	if (outcome == UFFD_DONE) /* the hole was there */
		attempt_filled(attempt);
	else
		attempt_release(attempt);
	if (outcome == UFFD_DONE) {
		atomic_fetch_add(&header->zeroed_pages, 1);
		vm_touched(attempt->vm, attempt->page_idx, true,
			   attempt->fault->flags & UFFD_PAGEFAULT_FLAG_WRITE);
		return RESOLVED;
	}
	if (outcome == UFFD_EXISTS) {
		attempt_wake_own(attempt);
		atomic_fetch_add(&header->redundant_pages, 1);
		return RESOLVED;
	}
	return attempt_unfilled(attempt, outcome);
}

/* Reading may take milliseconds, so it happens outside of the gate, and nobody waits for it. What needs no
 * device is put back now. */
static enum resolved fill_stored(struct attempt *attempt, bool was_poisoned)
{
	struct vm *vm = attempt->vm;
	struct fetches *fetches = attempt->means->fetches;
	void *page = attempt->means->page;
	uint32_t hash = *page_map_hash(vm->map, attempt->page_idx);
	struct page_read read;
	int rc;

	gate_leave(vm->gate, attempt->means->lane);
	FAILPOINT_HERE("resolve.claimed");
	rc = store_begin_read(vm->store, page_slot_of(attempt->claimed), page, &read);
	if (rc == 1 && fetches_have_room(fetches)) {
		struct fetch *fetch = fetches_take(fetches);

		fetch->read = read;
		fetch->fault = *attempt->fault;
		fetch->page_idx = attempt->page_idx;
		fetch->claimed = attempt->claimed;
		fetch->hash = hash;
		fetch->was_poisoned = was_poisoned;
		HELD_DROP(HELD_FILLING); /* the fetch has the page from here on */
		fetches_begin(fetches, fetch);
		return READING;
	}
	if (!rc && !vm_is_right(vm, page, hash))
		rc = -EBADMSG;
	gate_pass(vm->gate, attempt->means->lane);
	if (rc != 1)
		return attempt_put_back(attempt, was_poisoned, rc, page);
	attempt_release(attempt);
	return AWAIT_FETCH;
}

/* A swap-out has moved the page to scratch, where reading it waits for nobody: scratch is not emptied while
 * the page is MOVED. */
static enum resolved fill_moved(struct attempt *attempt)
{
	struct vm *vm = attempt->vm;
	const struct region *region = memory_region_of(&vm->memory, attempt->page_idx);
	uint64_t addr = region_offset_of(region, attempt->page_idx);
	int place = mover_find(vm->mover, addr & ~(CHUNK_BYTES - 1));
	int rc = place < 0 ? -EIO :
			     mover_read(vm->mover, place, pages_of_bytes(addr % CHUNK_BYTES), 1,
					attempt->means->page);

	/* A predecessor marked a hole. */
	if (rc == -ENOENT)
		memset(attempt->means->page, 0, PAGE_BYTES);
	else if (rc) { /* the VMM has ended, or the kernel has no memory */
		attempt_release(attempt);
		return attempt_later(attempt, FIRST_RETRY_NS);
	}
	return attempt_copy(attempt, false, attempt->means->page);
}

/* Not known: see attempt_is_a_copy(). */
static enum resolved missing_in_copy(struct attempt *attempt)
{
	enum uffd_outcome outcome = uffd_poison(attempt->process->uffd, attempt->fault->addr);

	if (outcome == UFFD_EXISTS)
		attempt_wake_own(attempt);
	else if (outcome != UFFD_DONE)
		return attempt_unfilled(attempt, outcome);
	return RESOLVED;
}

/* A minor fault on a page whose punch waits: the page is there, and may be read (jobs/punch.h). True if the
 * thread need not wait. If the punch comes at the same time, the kernel removes the entry together with the
 * page. */
static bool map_for_reading(struct attempt *attempt, uint64_t word)
{
	enum uffd_outcome outcome = UFFD_REFUSED;

	if ((word & PAGE_PUNCHING) && (attempt->fault->flags & UFFD_PAGEFAULT_FLAG_MINOR) &&
	    attempt->process->protects)
		outcome = uffd_continue_protected(attempt->process->uffd, attempt->fault->addr);
	if (outcome == UFFD_EXISTS)
		attempt_wake_own(attempt);
	return outcome == UFFD_DONE || outcome == UFFD_EXISTS;
}

static enum resolved missing(struct attempt *attempt)
{
	for (;;) {
		uint64_t word = page_word(attempt->vm, attempt->page_idx);
		enum page_state state = page_state_of(word);

		if (map_for_reading(attempt, word)) {
			return RESOLVED;
		} else if (state == PAGE_IN_MEMFD && !page_is_held(word) && attempt_is_a_copy(attempt)) {
			return missing_in_copy(attempt);
		} else if (page_is_held(word) || is_being_lifted(word)) {
			if (!page_ask_for_wake(attempt->vm, attempt->page_idx, word))
				continue;
			if (state == PAGE_STORED) /* somebody is bringing it back */
				vm_touched(attempt->vm, attempt->page_idx, true,
					   attempt->fault->flags & UFFD_PAGEFAULT_FLAG_WRITE);
			return RESOLVED;
		} else if (state == PAGE_STORED || state == PAGE_POISONED) {
			/* A poisoned page is read again each time it is needed: a good read heals it. */
			if (claim(attempt, word))
				return fill_stored(attempt, state == PAGE_POISONED);
		} else if (state == PAGE_MOVED) {
			if (claim(attempt, word))
				return fill_moved(attempt);
		} else if (claim(attempt, word)) {
			/* Never touched, or given up; or a page in flight that the VMM punched without an
			 * event. */
			return fill_zero(attempt);
		}
	}
}

/* CONTINUE tells whether the file has the page, and waits for no lock of its inode. If there is a hole, the
 * thread's next try finds it. */
static enum resolved written_while_out(struct attempt *attempt)
{
	enum uffd_outcome outcome = uffd_continue(attempt->process->uffd, attempt->fault->addr);
	const struct region *region = memory_region_of(&attempt->vm->memory, attempt->page_idx);

	/* The kernel also returns EEXIST for a page table that another thread is just freeing. */
	if ((outcome == UFFD_DONE || outcome == UFFD_EXISTS) &&
	    (attempt->process->id != 0 || (region && own_mapping_region_has_page(region, attempt->page_idx))))
		return attempt_found_present(attempt);
	attempt_release(attempt);
	return attempt_unfilled(attempt, outcome);
}

/* A write to a protected page. If the page was swapped out meanwhile, the thread only has to try again: it
 * then finds the hole. */
static enum resolved written(struct attempt *attempt)
{
	struct vm *vm = attempt->vm;

	for (;;) {
		uint64_t word = page_word(attempt->vm, attempt->page_idx);
		enum page_state state = page_state_of(word);

		if (page_is_held(word) || is_being_lifted(word)) {
			if (page_ask_for_wake(attempt->vm, attempt->page_idx, word))
				return RESOLVED;
		} else if (state == PAGE_STORED || state == PAGE_POISONED) {
			if (claim(attempt, word))
				return written_while_out(attempt);
		} else if (claim(attempt, word)) {
			enum uffd_outcome outcome =
				uffd_unprotect(attempt->process->uffd, attempt->fault->addr, PAGE_BYTES);

			attempt_release(attempt);
			if (state == PAGE_KEPT)
				vm_touched(vm, attempt->page_idx, false, true);
			atomic_fetch_add_explicit(&vm->writes_seen, 1, memory_order_relaxed);
			return outcome == UFFD_DONE ? RESOLVED : attempt_unfilled(attempt, outcome);
		}
	}
}

/* A registered page that is not the guest's: the dummy page, or something that the VMM registered itself.
 * Nothing was ever swapped out from there, so the kernel may serve it as if there were no userfaultfd. */
static enum resolved stray(struct attempt *attempt)
{
	if (attempt->fault->addr != attempt->process->dummy_addr &&
	    monotonic_ns() - attempt->fault->read_ns < VM_STUCK_NS &&
	    uffd_is_registered(attempt->process->uffd, attempt->fault->addr) == UFFD_UNKNOWN)
		/* an event that may explain it is on its way */
		return attempt_later(attempt, FIRST_RETRY_NS);
	/* A fault at a new address arrives before the REMAP that explains it: read all events, then look
	 * again. */
	if (attempt->fault->addr != attempt->process->dummy_addr && attempt->fault->strays++ < STRAY_TRIES)
		return attempt->fault->strays == 1 ? RETRY_SOON : attempt_later(attempt, FIRST_RETRY_NS);
	if (attempt->fault->addr != attempt->process->dummy_addr)
		notices_odd(
			attempt->vm->notices, UINT64_MAX,
			"process %u: page fault at %#llx, which is registered but no guest memory: unregistered",
			attempt->process->id, (unsigned long long)attempt->fault->addr);
	uffd_unregister(attempt->process->uffd, attempt->fault->addr, PAGE_BYTES);
	attempt_wake_own(attempt);
	return RESOLVED;
}

enum resolved attempt_end(struct attempt *attempt, enum resolved result)
{
	struct vm *vm = attempt->vm;

	if (result == READING) /* outside of the gate already */
		return result;
	HELD_DROP(HELD_FILLING); /* released by now, or lost to a REMOVE */
	gate_leave(vm->gate, attempt->means->lane);
	if (attempt->lost)
		lost_look_around(vm, attempt->means->lane, attempt->page_idx);
	return result;
}

enum resolved resolve(struct vm *vm, const struct means *means, struct fault *fault)
{
	struct attempt attempt = { .vm = vm, .means = means, .fault = fault };
	enum resolved result = RESOLVED;

	gate_pass(vm->gate, means->lane);
	attempt.process = address_space_find(&vm->spaces, fault->process_id);
	if (attempt.process && !attempt.process->gone) {
		if (!process_page_at(attempt.process, fault->addr, &attempt.page_idx)) {
			result = stray(&attempt);
		} else if (removals_have(&vm->removals, attempt.page_idx, 1)) {
			result = RETRY_SOON;
		} else {
			result =
				fault->flags & UFFD_PAGEFAULT_FLAG_WP ? written(&attempt) : missing(&attempt);
		}
	}
	return attempt_end(&attempt, result);
}
