/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "serve/resolve.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/failpoint.h"
#include "base/held.h"
#include "vm/own_mapping.h"
#include "vm/page.h"
#include "vm/poison.h"

/* The number of tries for a page that cannot be read; each waits four times as long as the last: 1, 4, 16, 64
 * ms. */
#define READ_TRIES 5
#define STRAY_TRIES 20
#define FIRST_RETRY_NS 1000000
#define NO_MEMORY_RETRY_NS 5000000

/* One look at one fault. Lives on the stack of resolve(). */
struct attempt {
	struct vm *vm;
	struct lane *lane;
	void *page;
	struct fault *fault;
	struct process *process; /* valid while the gate is passed */
	uint64_t page_idx;
	uint64_t claimed;
	bool lost; /* the page was found to be lost: others around it may be lost too */
};

/* From here on a demand fault of another thread waits for us. */
static bool claim(struct attempt *attempt, uint64_t word)
{
	if (!page_claim(attempt->vm, attempt->page_idx, word, &attempt->claimed))
		return false;
	HELD_TAKE(HELD_FILLING);
	return true;
}

/* The page is as it was: if it was given up, its hole may still be to come. */
static void release(struct attempt *attempt)
{
	page_release(attempt->vm, attempt->page_idx, attempt->claimed);
}

static void filled(struct attempt *attempt)
{
	page_filled(attempt->vm, attempt->page_idx, attempt->claimed);
}

static void wake_own(struct attempt *attempt)
{
	if (uffd_wake(attempt->process->uffd, attempt->fault->addr, PAGE_BYTES) == UFFD_GONE)
		vm_process_gone(attempt->vm, attempt->process);
}

static enum resolved later(struct attempt *attempt, uint64_t delay_ns)
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
	return later(attempt, NO_MEMORY_RETRY_NS);
}

/* What an ioctl that did not fill the page means for the fault. The claim has been released. */
static enum resolved unfilled(struct attempt *attempt, enum uffd_outcome outcome)
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
		wake_own(attempt);
		return RESOLVED;
	}
}

static enum resolved fill_zero(struct attempt *attempt)
{
	struct page_map_header *header = page_map_header(attempt->vm->map);
	enum uffd_outcome outcome = UFFD_BEYOND;

	/* A minor fault: see uffd_register_shared(). Whatever protection is lost by that, the page counts as written already. */
	if (attempt->fault->flags & UFFD_PAGEFAULT_FLAG_MINOR)
		outcome = uffd_continue(attempt->process->uffd, attempt->fault->addr);
	if (outcome == UFFD_DONE)
		outcome = UFFD_EXISTS;
	if (outcome == UFFD_BEYOND) /* nothing is there, or not any more */
		outcome = uffd_zeropage(attempt->process->uffd, attempt->fault->addr);
	if (outcome == UFFD_DONE) /* the hole was there */
		filled(attempt);
	else
		release(attempt);
	if (outcome == UFFD_DONE) {
		atomic_fetch_add(&header->zeroed_pages, 1);
		return RESOLVED;
	}
	if (outcome == UFFD_EXISTS) {
		wake_own(attempt);
		atomic_fetch_add(&header->redundant_pages, 1);
		return RESOLVED;
	}
	return unfilled(attempt, outcome);
}

/* The access that needs the page gets SIGBUS (a guest: a machine check), never zeros. */
static enum resolved poison(struct attempt *attempt, int rc)
{
	struct notice notice = { .kind = NOTICE_PAGE_POISONED, .page_idx = attempt->page_idx, .code = -rc };
	bool marked;

	/* Set the state first: then a page without a marker in any process is still never taken for a
	 * hole. */
	page_poison(attempt->vm, attempt->page_idx, attempt->claimed);
	marked = poison_mark(attempt->vm, attempt->page_idx);
	snprintf(notice.message, sizeof notice.message, "%s",
		 rc == -EBADMSG ? "its bytes in the store are not those that were put there" : strerror(-rc));
	notices_post(attempt->vm->notices, &notice);
	return marked ? RESOLVED : RETRY_SOON;
}

static enum resolved unreadable(struct attempt *attempt, int rc, bool was_poisoned)
{
	unsigned tries = ++attempt->fault->read_errors;

	if (was_poisoned) {
		release(attempt);
		return poison_mark(attempt->vm, attempt->page_idx) ? RESOLVED : RETRY_SOON;
	}
	if (tries < READ_TRIES) {
		release(attempt);
		return later(attempt, (uint64_t)FIRST_RETRY_NS << (2 * (tries - 1)));
	}
	return poison(attempt, rc);
}

/* A process has memory of its own in the page's place, and may use it; the guest's page stays out. We hold
 * the claim, so that we lift no marker that a page of the guest needs. */
static void leave_other_memory(struct attempt *attempt)
{
	if (attempt->fault->flags & UFFD_PAGEFAULT_FLAG_MINOR)
		uffd_continue(attempt->process->uffd, attempt->fault->addr);
	if (attempt->process->protects)
		uffd_unprotect(attempt->process->uffd, attempt->fault->addr, PAGE_BYTES);
	release(attempt);
	wake_own(attempt);
}

/* We hold the claim on a page that is out, and yet it is present. From here on the present contents are the
 * truth; the stored copy would only hide what happened. */
static enum resolved found_present(struct attempt *attempt)
{
	if (!vm_has_page(attempt->vm, attempt->page_idx)) {
		if (attempt->process->id == 0 ||
		    vm_has_landed(attempt->vm, attempt->process, attempt->page_idx)) {
			release(attempt);
			return RETRY_SOON;
		}
		leave_other_memory(attempt);
		return RESOLVED;
	}
	attempt->lost = vm_found_present(attempt->vm, attempt->page_idx);
	filled(attempt);
	if (attempt->process->protects)
		uffd_unprotect(attempt->process->uffd, attempt->fault->addr, PAGE_BYTES);
	wake_own(attempt);
	return RESOLVED;
}

/* A child has a copy of private memory as it was at the fork. What is out has been so since then: nothing goes out
 * while there is a child with guest memory. What is not may have come back and have been written to: it is not
 * known what the child is to see, and it gets SIGBUS. */
static bool is_a_copy(const struct attempt *attempt)
{
	return vm_has_copy(attempt->vm, attempt->process);
}

static enum resolved put_back(struct attempt *attempt, bool was_poisoned)
{
	struct vm *vm = attempt->vm;
	bool keep = !was_poisoned && vm->keeps && !(attempt->fault->flags & UFFD_PAGEFAULT_FLAG_WRITE);
	uint64_t copied_bytes;
	enum uffd_outcome outcome;

	FAILPOINT_HERE("resolve.fetched");
	outcome = uffd_copy(attempt->process->uffd, attempt->fault->addr, attempt->page, PAGE_BYTES, keep,
			    &copied_bytes);
	FAILPOINT_HERE("resolve.copied");
	if (is_a_copy(attempt)) { /* the VMM's own page is still out */
		release(attempt);
		if (outcome == UFFD_EXISTS)
			wake_own(attempt);
		return outcome == UFFD_DONE || outcome == UFFD_EXISTS ? RESOLVED : unfilled(attempt, outcome);
	}
	if (outcome == UFFD_DONE && !vm_has_landed(vm, attempt->process, attempt->page_idx)) {
		release(attempt);
		return RESOLVED;
	}
	if (outcome == UFFD_DONE) {
		if (keep)
			page_kept(vm, attempt->page_idx, attempt->claimed);
		else
			filled(attempt);
		atomic_fetch_add(&page_map_header(vm->map)->copied_pages, 1);
		vm_touched(vm, attempt->page_idx, true, attempt->fault->flags & UFFD_PAGEFAULT_FLAG_WRITE);
		return RESOLVED;
	}
	if (outcome == UFFD_EXISTS)
		return found_present(attempt);
	release(attempt);
	return unfilled(attempt, outcome);
}

static int fetch(struct attempt *attempt, uint32_t hash)
{
	uint64_t slot_idx = page_slot_of(attempt->claimed);
	int rc = store_get(attempt->vm->store, &slot_idx, 1, attempt->page);

	if (!rc && !vm_is_right(attempt->vm, attempt->page, hash))
		rc = -EBADMSG;
	return rc;
}

/* Reading may take milliseconds, so it happens outside the gate. Meanwhile a REMOVE can take the page from
 * us, and its slot may then hold another page. So check the claim before using the bytes. */
static enum resolved fill_stored(struct attempt *attempt, bool was_poisoned)
{
	struct vm *vm = attempt->vm;
	uint32_t hash = *page_map_hash(vm->map, attempt->page_idx);
	uint64_t page_idx;
	int rc;

	gate_leave(vm->gate, attempt->lane);
	FAILPOINT_HERE("resolve.claimed");
	rc = fetch(attempt, hash);
	gate_pass(vm->gate, attempt->lane);

	if (!is_claim(page_word(vm, attempt->page_idx), attempt->claimed))
		return RETRY_SOON;
	if (removals_have(&vm->removals, attempt->page_idx, 1)) { /* given up while we read */
		release(attempt);
		return RETRY_SOON;
	}
	attempt->process = address_space_find(&vm->spaces, attempt->fault->process_id);
	if (attempt->process && (!process_page_at(attempt->process, attempt->fault->addr, &page_idx) ||
				 page_idx != attempt->page_idx)) { /* moved or unmapped meanwhile */
		release(attempt);
		wake_own(attempt);
		return RESOLVED;
	}
	if (!attempt->process || attempt->process->gone) {
		release(attempt);
		return RESOLVED;
	}
	return rc ? unreadable(attempt, rc, was_poisoned) : put_back(attempt, was_poisoned);
}

/* A swap-out has moved the page to scratch, where reading it waits for nobody: scratch is not emptied while the page
 * is MOVED. */
static enum resolved fill_moved(struct attempt *attempt)
{
	struct vm *vm = attempt->vm;
	const struct region *region = memory_region_of(&vm->memory, attempt->page_idx);
	uint64_t addr = region_offset_of(region, attempt->page_idx);
	int place = mover_find(vm->mover, addr & ~(CHUNK_BYTES - 1));
	int rc = place < 0 ?
			 -EIO :
			 mover_read(vm->mover, place, pages_of_bytes(addr % CHUNK_BYTES), 1, attempt->page);

	/* A predecessor marked a hole. */
	if (rc == -ENOENT)
		memset(attempt->page, 0, PAGE_BYTES);
	else if (rc) { /* the VMM has ended, or the kernel has no memory */
		release(attempt);
		return later(attempt, FIRST_RETRY_NS);
	}
	return put_back(attempt, false);
}

/* Not known: see is_a_copy(). */
static enum resolved missing_in_copy(struct attempt *attempt)
{
	enum uffd_outcome outcome = uffd_poison(attempt->process->uffd, attempt->fault->addr);

	if (outcome == UFFD_EXISTS)
		wake_own(attempt);
	else if (outcome != UFFD_DONE)
		return unfilled(attempt, outcome);
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
		wake_own(attempt);
	return outcome == UFFD_DONE || outcome == UFFD_EXISTS;
}

static enum resolved missing(struct attempt *attempt)
{
	for (;;) {
		uint64_t word = page_word(attempt->vm, attempt->page_idx);
		enum page_state state = page_state_of(word);

		if (map_for_reading(attempt, word)) {
			return RESOLVED;
		} else if (state == PAGE_IN_MEMFD && !page_is_held(word) && is_a_copy(attempt)) {
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
		return found_present(attempt);
	release(attempt);
	return unfilled(attempt, outcome);
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

			release(attempt);
			if (state == PAGE_KEPT)
				vm_touched(vm, attempt->page_idx, false, true);
			atomic_fetch_add_explicit(&vm->writes_seen, 1, memory_order_relaxed);
			return outcome == UFFD_DONE ? RESOLVED : unfilled(attempt, outcome);
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
		return later(attempt, FIRST_RETRY_NS);
	/* A fault at a new address arrives before the REMAP that explains it: read all events, then look
	 * again. */
	if (attempt->fault->addr != attempt->process->dummy_addr && attempt->fault->strays++ < STRAY_TRIES)
		return attempt->fault->strays == 1 ? RETRY_SOON : later(attempt, FIRST_RETRY_NS);
	if (attempt->fault->addr != attempt->process->dummy_addr)
		notices_odd(
			attempt->vm->notices, UINT64_MAX,
			"process %u: page fault at %#llx, which is registered but no guest memory: unregistered",
			attempt->process->id, (unsigned long long)attempt->fault->addr);
	uffd_unregister(attempt->process->uffd, attempt->fault->addr, PAGE_BYTES);
	wake_own(attempt);
	return RESOLVED;
}

enum resolved resolve(struct vm *vm, struct lane *lane, void *page, struct fault *fault)
{
	struct attempt attempt = { .vm = vm, .lane = lane, .page = page, .fault = fault };
	enum resolved result = RESOLVED;

	gate_pass(vm->gate, lane);
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
	HELD_DROP(HELD_FILLING); /* released by now, or lost to a REMOVE */
	gate_leave(vm->gate, lane);
	if (attempt.lost)
		lost_look_around(vm, lane, attempt.page_idx);
	return result;
}
