/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What becomes of a fault once the bytes of its page were read, or could not be. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/failpoint.h"
#include "base/held.h"
#include "serve/attempt.h"
#include "vm/page.h"
#include "vm/poison.h"

/* The number of tries for a page that cannot be read; each waits four times as long as the last: 1, 4, 16, 64
 * ms. */
#define READ_TRIES 5

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
		attempt_release(attempt);
		return poison_mark(attempt->vm, attempt->page_idx) ? RESOLVED : RETRY_SOON;
	}
	if (tries < READ_TRIES) {
		attempt_release(attempt);
		return attempt_later(attempt, (uint64_t)FIRST_RETRY_NS << (2 * (tries - 1)));
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
	attempt_release(attempt);
	attempt_wake_own(attempt);
}

/* We hold the claim on a page that is out, and yet it is present. From here on the present contents are the
 * truth; the stored copy would only hide what happened. */
enum resolved attempt_found_present(struct attempt *attempt)
{
	if (!vm_has_page(attempt->vm, attempt->page_idx)) {
		if (attempt->process->id == 0 ||
		    vm_has_landed(attempt->vm, attempt->process, attempt->page_idx)) {
			attempt_release(attempt);
			return RETRY_SOON;
		}
		leave_other_memory(attempt);
		return RESOLVED;
	}
	attempt->lost = vm_found_present(attempt->vm, attempt->page_idx);
	attempt_filled(attempt);
	if (attempt->process->protects)
		uffd_unprotect(attempt->process->uffd, attempt->fault->addr, PAGE_BYTES);
	attempt_wake_own(attempt);
	return RESOLVED;
}

/* A child has a copy of private memory as it was at the fork. What is out has been so since then: nothing
 * goes out while there is a child with guest memory. What is not may have come back and have been written to:
 * it is not known what the child is to see, and it gets SIGBUS. */
bool attempt_is_a_copy(const struct attempt *attempt)
{
	return vm_has_copy(attempt->vm, attempt->process);
}

enum resolved attempt_copy(struct attempt *attempt, bool was_poisoned, const void *page)
{
	struct vm *vm = attempt->vm;
	bool keep = !was_poisoned && vm->keeps && !(attempt->fault->flags & UFFD_PAGEFAULT_FLAG_WRITE);
	uint64_t copied_bytes;
	enum uffd_outcome outcome;

	FAILPOINT_HERE("resolve.fetched");
	outcome = uffd_copy(attempt->process->uffd, attempt->fault->addr, page, PAGE_BYTES, keep,
			    &copied_bytes);
	FAILPOINT_HERE("resolve.copied");
	if (attempt_is_a_copy(attempt)) { /* the VMM's own page is still out */
		attempt_release(attempt);
		if (outcome == UFFD_EXISTS)
			attempt_wake_own(attempt);
		return outcome == UFFD_DONE || outcome == UFFD_EXISTS ? RESOLVED :
									attempt_unfilled(attempt, outcome);
	}
	if (outcome == UFFD_DONE && !vm_has_landed(vm, attempt->process, attempt->page_idx)) {
		attempt_release(attempt);
		return RESOLVED;
	}
	if (outcome == UFFD_DONE) {
		if (keep)
			page_kept(vm, attempt->page_idx, attempt->claimed);
		else
			attempt_filled(attempt);
		atomic_fetch_add(&page_map_header(vm->map)->copied_pages, 1);
		vm_touched(vm, attempt->page_idx, true, attempt->fault->flags & UFFD_PAGEFAULT_FLAG_WRITE);
		return RESOLVED;
	}
	if (outcome == UFFD_EXISTS)
		return attempt_found_present(attempt);
	attempt_release(attempt);
	return attempt_unfilled(attempt, outcome);
}

/* Reading takes milliseconds, and happened outside of the gate. Meanwhile a REMOVE can have taken the page
 * from us, and its slot may hold another page by now. So check the claim before using the bytes. */
enum resolved attempt_put_back(struct attempt *attempt, bool was_poisoned, int rc, const void *page)
{
	struct vm *vm = attempt->vm;
	uint64_t page_idx;

	if (!is_claim(page_word(vm, attempt->page_idx), attempt->claimed))
		return RETRY_SOON;
	if (removals_have(&vm->removals, attempt->page_idx, 1)) { /* given up while we read */
		attempt_release(attempt);
		return RETRY_SOON;
	}
	attempt->process = address_space_find(&vm->spaces, attempt->fault->process_id);
	if (attempt->process && (!process_page_at(attempt->process, attempt->fault->addr, &page_idx) ||
				 page_idx != attempt->page_idx)) { /* moved or unmapped meanwhile */
		attempt_release(attempt);
		attempt_wake_own(attempt);
		return RESOLVED;
	}
	if (!attempt->process || attempt->process->gone) {
		attempt_release(attempt);
		return RESOLVED;
	}
	return rc ? unreadable(attempt, rc, was_poisoned) : attempt_copy(attempt, was_poisoned, page);
}

static int check(const struct vm *vm, const struct fetch *fetch, int rc, const void *page)
{
	return !rc && !vm_is_right(vm, page, fetch->hash) ? -EBADMSG : rc;
}

enum resolved resolve_fetched(struct vm *vm, const struct means *means, struct fetch *fetch,
			      struct fault *fault)
{
	struct attempt attempt = { .vm = vm,
				   .means = means,
				   .fault = fault,
				   .page_idx = fetch->page_idx,
				   .claimed = fetch->claimed };
	enum resolved result;
	void *page;
	int rc;

	*fault = fetch->fault;
	store_was_read(vm->store, &fetch->read);
	rc = store_end_read(vm->store, &fetch->read, fetch->file.result, fetch->file.bytes, means->page,
			    &page);
	rc = check(vm, fetch, rc, page);
	gate_pass(vm->gate, means->lane);
	HELD_TAKE(HELD_FILLING);
	result = attempt_end(&attempt, attempt_put_back(&attempt, fetch->was_poisoned, rc, page));
	fetches_give_back(means->fetches, fetch);
	return result;
}
