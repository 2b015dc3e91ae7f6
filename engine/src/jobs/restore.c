/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "jobs/restore.h"

#include <errno.h>
#include <string.h>
#include <time.h>

#include "base/failpoint.h"
#include "base/held.h"
#include "vm/backing.h"
#include "vm/own_mapping.h"
#include "vm/page.h"

/* The number of pages copied in one passage of the gate: readers of events wait no longer than that takes. */
#define PIECE_PAGES 32
#define COPY_RETRY_NS 50000

/* The pages of a chunk while they are swapped in; page i's bytes are at buffer + i * PAGE_BYTES. */
struct batch {
	struct restorer *restorer;
	uint64_t page_idx, pages; /* the window */
	struct own_mapping own;	  /* of the window; opened where it is needed */
	size_t n;
	uint64_t idx[CHUNK_PAGES];
	uint64_t claimed[CHUNK_PAGES]; /* 0: no longer ours */
	uint64_t slots[CHUNK_PAGES];
	bool bad[CHUNK_PAGES];
};

static void give_back(struct batch *batch, size_t i)
{
	if (batch->claimed[i])
		page_release(batch->restorer->vm, batch->idx[i], batch->claimed[i]);
	batch->claimed[i] = 0;
}

static void give_back_from(struct batch *batch, size_t from)
{
	struct vm *vm = batch->restorer->vm;

	gate_pass(vm->gate, batch->restorer->lane);
	for (size_t i = from; i < batch->n; i++)
		give_back(batch, i);
	gate_leave(vm->gate, batch->restorer->lane);
}

/* STORED or POISONED: a poisoned page may be readable by now. */
static bool is_wanted(uint64_t word)
{
	return (page_state_of(word) == PAGE_STORED || page_state_of(word) == PAGE_POISONED) &&
	       !(word & PAGE_FLAGS) && !is_being_lifted(word);
}

uint64_t restore_wanted(const struct vm *vm, uint64_t page_idx, uint64_t end_idx)
{
	uint64_t pages = 0;

	for (uint64_t idx = page_idx; idx < end_idx; idx++)
		pages += is_wanted(page_word(vm, idx));
	return pages;
}

/* Returns where it stopped: there are no more pages, or max_pages are claimed. */
static uint64_t claim_stored(struct batch *batch, uint64_t max_pages)
{
	struct vm *vm = batch->restorer->vm;
	uint64_t idx = batch->page_idx, end_idx = batch->page_idx + batch->pages;

	for (; idx < end_idx && batch->n < max_pages; idx++) {
		uint64_t word = page_word(vm, idx);

		if (!is_wanted(word) || !page_claim_background(vm, idx, word, &batch->claimed[batch->n]))
			continue;
		batch->idx[batch->n] = idx;
		batch->slots[batch->n++] = page_slot_of(word);
	}
	return idx;
}

static bool reads_right(struct batch *batch, size_t i)
{
	struct vm *vm = batch->restorer->vm;

	return vm_is_right(vm, batch->restorer->buffer + i * PAGE_BYTES,
			   *page_map_hash(vm->map, batch->idx[i]));
}

/* Read all in one call; if that fails, page by page, so that one bad block fails only one page. A page that
 * was taken from us meanwhile may hold anything and is not counted. Returns how many were read. */
static uint64_t fetch(struct batch *batch)
{
	struct restorer *restorer = batch->restorer;
	struct vm *vm = restorer->vm;
	uint64_t read_pages = batch->n;
	int all = store_get(vm->store, batch->slots, batch->n, restorer->buffer);

	FAILPOINT_HERE("restore.fetched");
	/* a failing disk is slow, and every fault would wait for it in the gate */
	for (size_t i = 0; i < batch->n; i++) {
		batch->bad[i] = all || !reads_right(batch, i);
		if (batch->bad[i])
			batch->bad[i] = store_get(vm->store, &batch->slots[i], 1,
						  restorer->buffer + i * PAGE_BYTES) ||
					!reads_right(batch, i);
	}
	gate_pass(vm->gate, restorer->lane);
	for (size_t i = 0; i < batch->n; i++) {
		if (!batch->bad[i])
			continue;
		read_pages--;
		if (is_claim(page_word(vm, batch->idx[i]), batch->claimed[i]))
			restorer->unreadable_pages++;
		give_back(batch, i);
	}
	gate_leave(vm->gate, restorer->lane);
	return read_pages;
}

/* From here until the copy is done, a demand fault waits instead of taking over the page. False: a demand
 * fault or a REMOVE has already taken it. */
static bool harden(struct batch *batch, size_t i)
{
	if (!batch->claimed[i] || !page_harden(batch->restorer->vm, batch->idx[i], &batch->claimed[i]))
		return false;
	HELD_TAKE(HELD_FILLING);
	return true;
}

static void now_resident(struct batch *batch, size_t from, size_t n)
{
	pages_filled(batch->restorer->vm, &batch->idx[from], &batch->claimed[from], n);
	memset(&batch->claimed[from], 0, n * sizeof batch->claimed[0]);
	batch->restorer->restored_pages += n;
}

/* No process took the page. refused: a process maps it, but the kernel refused the copy. */
static int restore_unmapped(struct batch *batch, size_t i, bool refused)
{
	struct vm *vm = batch->restorer->vm;
	const struct region *region = memory_region_of(&vm->memory, batch->idx[i]);

	return region ? region->backing->put_unmapped(vm, &batch->own, batch->idx[i],
						      batch->restorer->buffer + i * PAGE_BYTES, refused) :
			0;
}

/* Returns how many of the n pages copied at i are now the guest's, counted up to the first that is not. Pages
 * after that one which did land are set resident one by one. */
static size_t landed_run(struct batch *batch, const struct process *process, size_t i, size_t n, int *rc)
{
	size_t landed = n;

	for (size_t page = 0; page < n; page++) {
		int page_rc = 0;

		if (!vm_has_landed(batch->restorer->vm, process, batch->idx[i + page]))
			page_rc = restore_unmapped(batch, i + page, false);
		if (page_rc && landed == n) {
			landed = page;
			*rc = page_rc;
		} else if (!page_rc && landed < n) {
			now_resident(batch, i + page, 1);
		}
	}
	return landed;
}

/* The kernel says that the process already has something at page i. 1 if the page is dealt with. */
static size_t found_there(struct batch *batch, const struct process *process, size_t i, int *rc)
{
	struct vm *vm = batch->restorer->vm;

	if (vm_has_page(vm, batch->idx[i])) {
		vm_found_present(vm, batch->idx[i]);
		return 1;
	}
	if (process->id == 0 || vm_has_landed(vm, process, batch->idx[i]))
		return 0; /* not for long */
	*rc = restore_unmapped(batch, i, false);
	return *rc ? 0 : 1;
}

/* Copy the run of n pages at i through the first process that can take it. Returns how many were copied; 0
 * with *rc 0 means that events must be read first. */
static size_t copy_run(struct batch *batch, size_t i, size_t n, int *rc)
{
	struct vm *vm = batch->restorer->vm;
	char *bytes = batch->restorer->buffer + i * PAGE_BYTES;
	bool refused = false;

	*rc = 0;
	for (size_t p = 0; p < vm->spaces.n; p++) {
		struct process *process = vm->spaces.processes[p];
		uint64_t addr, copied_bytes, run;
		enum uffd_outcome outcome;

		if (process->gone || vm_has_copy(vm, process))
			continue;
		run = process_addr_of(process, batch->idx[i], n, &addr);
		if (!run)
			continue;
		outcome = uffd_copy(process->uffd, addr, bytes, bytes_of_pages(run), false, &copied_bytes);
		switch (outcome) {
		case UFFD_DONE:
		case UFFD_RETRY:
			return landed_run(batch, process, i, pages_of_bytes(copied_bytes), rc);
		case UFFD_EXISTS:
			return found_there(batch, process, i, rc);
		case UFFD_NO_MEMORY:
			*rc = -ENOMEM;
			return 0;
		case UFFD_GONE:
			vm_process_gone(vm, process);
			continue;
		default:
			/* The kernel reports the same for a run that crosses from one mapping to the next:
			 * mprotect(), madvise() and a balloon that maps memory anew may split mappings
			 * anywhere. */
			if (run > 1)
				return copy_run(batch, i, run / 2, rc);
			/* this process has unmapped it, or mapped something else there */
			refused = refused || outcome != UFFD_UNMAPPED;
			continue;
		}
	}
	*rc = restore_unmapped(batch, i, refused);
	return *rc ? 0 : 1;
}

static size_t hardened_run(struct batch *batch, size_t i, size_t end)
{
	size_t n = 0;

	while (i + n < end && (n == 0 || batch->idx[i + n] == batch->idx[i] + n) && harden(batch, i + n))
		n++;
	return n;
}

/* The opposite of harden(): pages not copied now may wait for a process, and demand faults need not wait with
 * us. */
static void soften(struct batch *batch, size_t from, size_t end)
{
	struct vm *vm = batch->restorer->vm;

	for (size_t i = from; i < end; i++)
		if (batch->claimed[i] && !(batch->claimed[i] & PAGE_BACKGROUND))
			page_soften(vm, batch->idx[i], &batch->claimed[i]);
	HELD_DROP(HELD_FILLING);
}

/* Do not give the guest back what it gave up: removal.h. A demand fault may take over meanwhile. */
static void pass_when_removed(struct batch *batch, size_t from, size_t end)
{
	struct vm *vm = batch->restorer->vm;
	uint64_t page_idx = batch->idx[from], pages = batch->idx[end - 1] + 1 - page_idx;

	for (;;) {
		gate_pass(vm->gate, batch->restorer->lane);
		if (!removals_have(&vm->removals, page_idx, pages))
			return;
		gate_leave(vm->gate, batch->restorer->lane);
		FAILPOINT_HERE("restore.awaits-removal");
		HELD_MAY_WAIT(WAIT_TIME);
		nanosleep(&(struct timespec){ .tv_nsec = COPY_RETRY_NS }, NULL);
	}
}

/* One passage of the gate: pages from *next on, a piece at most. 0, -EAGAIN (nothing came on), -ENOMEM, or
 * -EIO. */
static int copy_piece(struct batch *batch, size_t *next)
{
	struct vm *vm = batch->restorer->vm;
	size_t start = *next, end = start + PIECE_PAGES < batch->n ? start + PIECE_PAGES : batch->n;
	int rc = 0;

	pass_when_removed(batch, start, end);
	while (*next < end && !rc) {
		size_t n = hardened_run(batch, *next, end), done;

		if (n == 0) {
			(*next)++; /* no longer ours */
			continue;
		}
		done = copy_run(batch, *next, n, &rc);
		now_resident(batch, *next, done);
		*next += done;
		if (done == 0 && !rc)
			rc = -EAGAIN;
	}
	soften(batch, *next, end);
	gate_leave(vm->gate, batch->restorer->lane);
	return rc == -EAGAIN && *next > start ? 0 : rc;
}

int restore_chunk(struct restorer *restorer, uint64_t *page_idx, uint64_t end_idx, uint64_t *budget_pages,
		  struct error *err)
{
	struct batch batch = { .restorer = restorer, .page_idx = *page_idx, .pages = end_idx - *page_idx };
	uint64_t stuck_since_ns = 0;
	size_t next = 0;
	int rc = 0;

	batch.own = (struct own_mapping){ .page_idx = batch.page_idx, .pages = batch.pages };
	*page_idx = claim_stored(&batch, *budget_pages);
	if (!batch.n)
		return 0;
	FAILPOINT_HERE("restore.claimed");
	*budget_pages -= fetch(&batch);
	while (next < batch.n && !rc) {
		rc = copy_piece(&batch, &next);
		FAILPOINT_HERE("restore.copied");
		if (rc != -EAGAIN) {
			stuck_since_ns = 0;
		} else if (!stuck_since_ns || monotonic_ns() - stuck_since_ns < VM_STUCK_NS) {
			stuck_since_ns = stuck_since_ns ? stuck_since_ns : monotonic_ns();
			nanosleep(&(struct timespec){ .tv_nsec = COPY_RETRY_NS }, NULL);
			rc = 0;
		}
	}
	own_mapping_close(&batch.own);
	if (!rc)
		return 0;
	give_back_from(&batch, next);
	if (rc == -EAGAIN)
		return error_set(
			err, EAGAIN,
			"a process of the VM is stuck in the middle of changing its memory mappings; "
			"is it stopped (SIGSTOP, a debugger)?");
	if (rc == -EIO)
		return error_set(err, EIO,
				 "the kernel refused pages for the VM's memory, which is unchanged: see the "
				 "journal");
	return error_set(
		err, -rc,
		"no memory left to bring the VM's pages back: free some on the host, raise the limits of "
		"the VMM's cgroup, or make room in the file system of guest memory");
}
