/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "jobs/ahead.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/failpoint.h"
#include "base/held.h"
#include "vm/page.h"

#define BATCH_BYTES (AHEAD_PAGES_MAX * PAGE_BYTES + NEAR_RAW_BYTES)
#define AGAIN_MS 1 /* the kernel takes no more reads now */

int ahead_create(struct vm *vm, struct lane *lane, size_t depth, struct readers *readers, bool uring,
		 struct ahead **out)
{
	struct ahead *ahead = calloc(1, sizeof *ahead);
	int rc = 0;

	if (!ahead)
		return -ENOMEM;
	ahead->vm = vm;
	ahead->lane = lane;
	ahead->depth = depth;
	ahead->buffers =
		mmap(NULL, depth * BATCH_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (ahead->buffers == MAP_FAILED)
		rc = -errno;
	else if (depth > 1)
		rc = reads_create(readers, AHEAD_DEPTH_MAX * NEAR_PAGES_MAX, uring, &ahead->reads);
	if (rc) {
		ahead_destroy(ahead);
		return rc;
	}
	for (size_t i = 0; i < depth; i++) {
		struct near_reads *reads = &ahead->batches[i].reads;

		reads->store = vm->store;
		reads->pages = ahead->buffers + i * BATCH_BYTES;
		reads->raw = reads->pages + AHEAD_PAGES_MAX * PAGE_BYTES;
	}
	*out = ahead;
	return 0;
}

void ahead_destroy(struct ahead *ahead)
{
	if (!ahead)
		return;
	reads_destroy(ahead->reads);
	if (ahead->buffers != MAP_FAILED)
		munmap(ahead->buffers, ahead->depth * BATCH_BYTES);
	free(ahead);
}

static char *page_of(const struct ahead_batch *batch, size_t i)
{
	return batch->reads.pages + bytes_of_pages(i);
}

static bool is_wanted(struct vm *vm, uint64_t page_idx, uint64_t word)
{
	return page_is_out(word) && memory_region_of(&vm->memory, page_idx) &&
	       !removals_have(&vm->removals, page_idx, 1);
}

/* A page fault may take these pages over. */
static void claim(struct vm *vm, struct ahead_batch *batch)
{
	batch->n = batch->back_n = 0;
	batch->awaits_device = false;
	for (size_t i = 0; i < batch->wanted_n; i++) {
		uint64_t idx = batch->wanted[i].page_idx, word = page_word(vm, idx);

		if (!is_wanted(vm, idx, word) ||
		    !page_claim_background(vm, idx, word, &batch->claimed[batch->n]))
			continue;
		batch->idx[batch->n] = idx;
		batch->slots[batch->n] = page_slot_of(word);
		batch->keeps[batch->n++] = !batch->wanted[i].is_written;
	}
}

static void release(struct vm *vm, struct ahead_batch *batch, size_t i)
{
	if (batch->claimed[i])
		page_release(vm, batch->idx[i], batch->claimed[i]);
	batch->claimed[i] = 0;
}

/* From here on a page fault waits for the page. False: one has taken it over, or the guest gave it up: the
 * slot may have another page by now. */
static bool harden(struct vm *vm, struct ahead_batch *batch, size_t i)
{
	if (!batch->claimed[i] || !page_harden(vm, batch->idx[i], &batch->claimed[i]))
		return false;
	HELD_TAKE(HELD_FILLING);
	return true;
}

static bool has_some_to_read(const struct ahead_batch *batch)
{
	for (size_t i = 0; i < batch->n; i++)
		if (batch->reads.result[i] == 1)
			return true;
	return false;
}

/* A page fault that came now would read the same bytes once more, and hardly have them sooner. */
static void harden_what_a_device_has(struct ahead *ahead, struct ahead_batch *batch)
{
	struct vm *vm = ahead->vm;

	if (!has_some_to_read(batch))
		return;
	gate_pass(vm->gate, ahead->lane);
	for (size_t i = 0; i < batch->n; i++)
		if (batch->reads.result[i] == 1 && harden(vm, batch, i))
			batch->awaits_device = true;
	gate_leave(vm->gate, ahead->lane);
	ahead->claiming_n += batch->awaits_device;
}

/* A page that is not right is left to its page fault, which tries again and tells. */
static void harden_what_is_right(struct vm *vm, struct ahead_batch *batch, size_t i, size_t n,
				 const bool *right)
{
	for (size_t k = i; k < i + n; k++)
		if (harden(vm, batch, k) && (!right[k - i] || removals_have(&vm->removals, batch->idx[k], 1)))
			release(vm, batch, k);
}

static void is_back(struct vm *vm, struct ahead_batch *batch, const struct process *process, size_t i)
{
	if (!vm_has_landed(vm, process, batch->idx[i])) {
		release(vm, batch, i);
		return;
	}
	if (batch->keeps[i])
		page_kept(vm, batch->idx[i], batch->claimed[i]);
	else
		page_filled(vm, batch->idx[i], batch->claimed[i]);
	batch->claimed[i] = 0;
	batch->back_n++;
}

/* How many pages at i, before `end`, are neighbours, ours, and come back in the same way. */
static size_t run_length(const struct ahead_batch *batch, size_t i, size_t end)
{
	size_t n = 1;

	while (i + n < end && batch->claimed[i + n] && batch->idx[i + n] == batch->idx[i] + n &&
	       batch->keeps[i + n] == batch->keeps[i])
		n++;
	return n;
}

/* Copy pages at i, n at most, through the first process that maps them. *done: how many were dealt with, at
 * least 1. */
static int copy_run(struct vm *vm, struct ahead_batch *batch, size_t i, size_t n, size_t *done)
{
	enum uffd_outcome outcome = UFFD_UNMAPPED;
	uint64_t copied_bytes = 0;

	for (size_t p = 0; p < vm->spaces.n && (outcome == UFFD_UNMAPPED || outcome == UFFD_GONE); p++) {
		struct process *process = vm->spaces.processes[p];
		uint64_t addr, run;

		if (process->gone || vm_has_copy(vm, process))
			continue;
		run = process_addr_of(process, batch->idx[i], n, &addr);
		if (!run)
			continue;
		outcome = uffd_copy(process->uffd, addr, page_of(batch, i), bytes_of_pages(run),
				    batch->keeps[i], &copied_bytes);
		for (size_t page = 0; page < pages_of_bytes(copied_bytes); page++)
			is_back(vm, batch, process, i + page);
		if (outcome == UFFD_GONE)
			vm_process_gone(vm, process);
	}
	*done = pages_of_bytes(copied_bytes);
	if (*done == 0) {
		release(vm, batch, i);
		*done = 1;
	}
	return outcome == UFFD_NO_MEMORY ? -ENOMEM : outcome == UFFD_RETRY ? -EAGAIN : 0;
}

static int copy(struct vm *vm, struct ahead_batch *batch, size_t i, size_t n)
{
	size_t end = i + n;
	int rc = 0;

	for (size_t k = i; k < end; k++)
		batch->keeps[k] = batch->keeps[k] && atomic_load(&vm->keeps);
	for (size_t done; i < end && !rc; i += done) {
		done = 1;
		if (batch->claimed[i])
			rc = copy_run(vm, batch, i, run_length(batch, i, end), &done);
	}
	return rc;
}

static bool is_waited_for(const struct vm *vm, const struct ahead_batch *batch, size_t i)
{
	return batch->claimed[i] && (page_word(vm, batch->idx[i]) & PAGE_WAITER);
}

/* The next page to put in place: one that a page fault waits for, if there is any. batch->n: there is none
 * left. */
static size_t next_page(const struct vm *vm, const struct ahead_batch *batch)
{
	size_t first = batch->n;

	for (size_t i = batch->n; i-- > 0;) {
		if (is_waited_for(vm, batch, i))
			return i;
		first = batch->claimed[i] ? i : first;
	}
	return first;
}

/* One passage of the gate, for neighbours: page faults are read by threads that want it alone. */
static int put_in_place(struct ahead *ahead, struct ahead_batch *batch, size_t i, size_t n)
{
	struct vm *vm = ahead->vm;
	bool right[AHEAD_PAGES_MAX];
	int rc;

	for (size_t k = 0; k < n; k++)
		right[k] = !near_reads_end(&batch->reads, i + k) &&
			   vm_is_right(vm, page_of(batch, i + k), *page_map_hash(vm->map, batch->idx[i + k]));
	FAILPOINT_HERE("ahead.fetched");
	gate_pass(vm->gate, ahead->lane);
	harden_what_is_right(vm, batch, i, n, right);
	rc = copy(vm, batch, i, n);
	FAILPOINT_HERE("ahead.copied");
	for (size_t k = 0; k < (rc ? batch->n : n); k++)
		release(vm, batch, rc ? k : i + k);
	if (!ahead->claiming_n)
		HELD_DROP(HELD_FILLING);
	gate_leave(vm->gate, ahead->lane);
	return rc;
}

/* A hole that the guest has touched before. What it gave up stays a hole: its memory is the host's. If the
 * page is there after all, the kernel says so. */
static bool may_be_hole(struct vm *vm, uint64_t page_idx, uint64_t word)
{
	return page_state_of(word) == PAGE_IN_MEMFD && !(word & PAGE_FLAGS) &&
	       !vm_given_up_ms(vm, page_idx, word) && memory_region_of(&vm->memory, page_idx) &&
	       !removals_have(&vm->removals, page_idx, 1);
}

/* Through the first process that maps it. The page is claimed. */
static enum uffd_outcome fill_hole(struct vm *vm, uint64_t page_idx)
{
	enum uffd_outcome outcome = UFFD_UNMAPPED;
	struct mapped at = mapped_everywhere(&vm->spaces, page_idx, 1);

	while ((outcome == UFFD_UNMAPPED || outcome == UFFD_GONE) && mapped_next(&at)) {
		if (vm_has_copy(vm, at.process))
			continue;
		outcome = uffd_zeropage(at.process->uffd, at.addr);
		if (outcome == UFFD_GONE)
			vm_process_gone(vm, at.process);
		if (outcome == UFFD_DONE && !vm_has_landed(vm, at.process, page_idx))
			outcome = UFFD_REFUSED;
	}
	return outcome;
}

/* True if it came. *outcome: of the last one that was tried. */
static bool fill_if_hole(struct ahead *ahead, uint64_t page_idx, enum uffd_outcome *outcome)
{
	struct vm *vm = ahead->vm;
	uint64_t word = page_word(vm, page_idx), claimed;

	if (!may_be_hole(vm, page_idx, word) || !page_claim(vm, page_idx, word, &claimed))
		return false;
	HELD_TAKE(HELD_FILLING);
	*outcome = fill_hole(vm, page_idx);
	if (*outcome == UFFD_DONE)
		page_filled(vm, page_idx, claimed);
	else
		page_release(vm, page_idx, claimed);
	if (!ahead->claiming_n)
		HELD_DROP(HELD_FILLING);
	return *outcome == UFFD_DONE;
}

int ahead_fill_holes(struct ahead *ahead, const struct wake_page *pages, size_t n, size_t *pages_back)
{
	enum uffd_outcome outcome = UFFD_DONE;

	*pages_back = 0;
	for (size_t i = 0; i < n && outcome != UFFD_NO_MEMORY && outcome != UFFD_RETRY; i++) {
		gate_pass(ahead->vm->gate, ahead->lane);
		*pages_back += fill_if_hole(ahead, pages[i].page_idx, &outcome);
		gate_leave(ahead->vm->gate, ahead->lane);
	}
	return outcome == UFFD_NO_MEMORY ? -ENOMEM : outcome == UFFD_RETRY ? -EAGAIN : 0;
}

static struct ahead_batch *free_batch(struct ahead *ahead)
{
	struct ahead_batch *batch = ahead->batches;

	while (batch->number)
		batch++;
	return batch;
}

void ahead_begin(struct ahead *ahead, const struct wake_page *pages, size_t n)
{
	struct vm *vm = ahead->vm;
	struct ahead_batch *batch = free_batch(ahead);

	batch->number = ++ahead->last_number;
	ahead->in_use_n++;
	memcpy(batch->wanted, pages, n * sizeof *pages);
	batch->wanted_n = n;
	gate_pass(vm->gate, ahead->lane);
	claim(vm, batch);
	gate_leave(vm->gate, ahead->lane);
	near_reads_find(&batch->reads, batch->slots, batch->n);
	harden_what_a_device_has(ahead, batch);
	if (batch->n)
		FAILPOINT_HERE("ahead.claimed");
	near_reads_begin(&batch->reads, ahead->reads);
}

/* Of those that have been read, one that page faults wait for, or else the one that began first; NULL: none
 * has. */
static struct ahead_batch *first_read(struct ahead *ahead)
{
	struct ahead_batch *first = NULL;

	for (size_t i = 0; i < ahead->depth; i++) {
		struct ahead_batch *batch = &ahead->batches[i];
		size_t next;

		if (!batch->number || batch->reads.pending_n)
			continue;
		next = next_page(ahead->vm, batch);
		if (next < batch->n && is_waited_for(ahead->vm, batch, next))
			return batch;
		if (!first || batch->number < first->number)
			first = batch;
	}
	return first;
}

/* False: the kernel does not take all of them now. In this order: the rest of a read that was cut short has
 * not begun. */
static bool take_and_submit(struct ahead *ahead)
{
	struct file_read *file;

	while (ahead->reads && (file = reads_take(ahead->reads)))
		near_reads_run_ended(file);
	return !ahead->reads || reads_submit(ahead->reads);
}

bool ahead_has_ended(struct ahead *ahead)
{
	take_and_submit(ahead);
	return first_read(ahead);
}

/* Page faults that wait meanwhile wait for these very reads. */
static struct ahead_batch *await_batch(struct ahead *ahead)
{
	struct ahead_batch *batch;

	for (;;) {
		bool all_begun = take_and_submit(ahead);

		batch = first_read(ahead);
		if (batch)
			return batch;
		HELD_MAY_WAIT(WAIT_READ);
		poll(&(struct pollfd){ .fd = reads_fd(ahead->reads), .events = POLLIN }, 1,
		     all_begun ? -1 : AGAIN_MS);
	}
}

struct ahead_end ahead_end(struct ahead *ahead)
{
	struct ahead_batch *batch = await_batch(ahead);
	int rc = 0;
	size_t i;

	while (!rc && (i = next_page(ahead->vm, batch)) < batch->n)
		rc = put_in_place(ahead, batch, i, run_length(batch, i, batch->n));
	if (batch->awaits_device && --ahead->claiming_n == 0)
		HELD_DROP(HELD_FILLING);
	batch->number = 0;
	ahead->in_use_n--;
	return (struct ahead_end){
		.rc = rc, .pages = batch->wanted, .n = batch->wanted_n, .back_n = batch->back_n
	};
}

int ahead_bring(struct ahead *ahead, const struct wake_page *pages, size_t n, size_t *pages_back)
{
	struct ahead_end end;

	ahead_begin(ahead, pages, n);
	end = ahead_end(ahead);
	*pages_back = end.back_n;
	return end.rc;
}
