/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "jobs/ahead.h"

#include <errno.h>
#include <string.h>

#include "base/failpoint.h"
#include "base/held.h"
#include "vm/page.h"

/* Page i's bytes are at buffer + i * PAGE_BYTES. */
struct batch {
	struct vm *vm;
	char *buffer;
	size_t n, back_n;
	uint64_t idx[AHEAD_PAGES_MAX];
	uint64_t claimed[AHEAD_PAGES_MAX]; /* 0: no longer ours */
	uint64_t slots[AHEAD_PAGES_MAX];
	bool keeps[AHEAD_PAGES_MAX]; /* write-protected, with its copy */
};

static bool is_wanted(struct vm *vm, uint64_t page_idx, uint64_t word)
{
	return page_is_out(word) && memory_region_of(&vm->memory, page_idx) &&
	       !removals_have(&vm->removals, page_idx, 1);
}

static void claim(struct batch *batch, const struct wake_page *pages, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		uint64_t idx = pages[i].page_idx, word = page_word(batch->vm, idx);

		if (!is_wanted(batch->vm, idx, word) ||
		    !page_claim(batch->vm, idx, word, &batch->claimed[batch->n]))
			continue;
		batch->idx[batch->n] = idx;
		batch->slots[batch->n] = page_slot_of(word);
		batch->keeps[batch->n++] = !pages[i].is_written;
	}
	if (batch->n)
		HELD_TAKE(HELD_FILLING);
}

static void release(struct batch *batch, size_t i)
{
	if (batch->claimed[i])
		page_release(batch->vm, batch->idx[i], batch->claimed[i]);
	batch->claimed[i] = 0;
}

/* A page that is not right is left to its page fault, which tries again and tells. */
static void release_what_is_wrong(struct batch *batch, int read_rc)
{
	for (size_t i = 0; i < batch->n; i++) {
		uint64_t idx = batch->idx[i];

		if (!is_claim(page_word(batch->vm, idx), batch->claimed[i]))
			batch->claimed[i] = 0; /* given up meanwhile: the slot may have another page by now */
		else if (read_rc || removals_have(&batch->vm->removals, idx, 1) ||
			 !vm_is_right(batch->vm, batch->buffer + i * PAGE_BYTES,
				      *page_map_hash(batch->vm->map, idx)))
			release(batch, i);
	}
}

static void is_back(struct batch *batch, const struct process *process, size_t i)
{
	struct vm *vm = batch->vm;

	if (!vm_has_landed(vm, process, batch->idx[i])) {
		release(batch, i);
		return;
	}
	if (batch->keeps[i])
		page_kept(vm, batch->idx[i], batch->claimed[i]);
	else
		page_filled(vm, batch->idx[i], batch->claimed[i]);
	batch->claimed[i] = 0;
	batch->back_n++;
}

/* How many pages at i are neighbours, ours, and come back in the same way. */
static size_t run_length(const struct batch *batch, size_t i)
{
	size_t n = 1;

	while (i + n < batch->n && batch->claimed[i + n] && batch->idx[i + n] == batch->idx[i] + n &&
	       batch->keeps[i + n] == batch->keeps[i])
		n++;
	return n;
}

/* Copy pages at i, n at most, through the first process that maps them. *done: how many were dealt with, at
 * least 1. */
static int copy_run(struct batch *batch, size_t i, size_t n, size_t *done)
{
	struct vm *vm = batch->vm;
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
		outcome = uffd_copy(process->uffd, addr, batch->buffer + i * PAGE_BYTES, bytes_of_pages(run),
				    batch->keeps[i], &copied_bytes);
		for (size_t page = 0; page < pages_of_bytes(copied_bytes); page++)
			is_back(batch, process, i + page);
		if (outcome == UFFD_GONE)
			vm_process_gone(vm, process);
	}
	*done = pages_of_bytes(copied_bytes);
	if (*done == 0) {
		release(batch, i);
		*done = 1;
	}
	return outcome == UFFD_NO_MEMORY ? -ENOMEM : outcome == UFFD_RETRY ? -EAGAIN : 0;
}

static int copy(struct batch *batch)
{
	int rc = 0;

	for (size_t i = 0; i < batch->n; i++)
		batch->keeps[i] = batch->keeps[i] && atomic_load(&batch->vm->keeps);
	for (size_t i = 0, done; i < batch->n && !rc; i += done) {
		done = 1;
		if (batch->claimed[i])
			rc = copy_run(batch, i, run_length(batch, i), &done);
	}
	for (size_t i = 0; i < batch->n; i++)
		release(batch, i);
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

int ahead_fill_holes(struct ahead *ahead, const struct wake_page *pages, size_t n, size_t *pages_back)
{
	struct vm *vm = ahead->vm;
	enum uffd_outcome outcome = UFFD_DONE;

	*pages_back = 0;
	gate_pass(vm->gate, ahead->lane);
	for (size_t i = 0; i < n && outcome != UFFD_NO_MEMORY && outcome != UFFD_RETRY; i++) {
		uint64_t idx = pages[i].page_idx, word = page_word(vm, idx), claimed;

		if (!may_be_hole(vm, idx, word) || !page_claim(vm, idx, word, &claimed))
			continue;
		HELD_TAKE(HELD_FILLING);
		outcome = fill_hole(vm, idx);
		if (outcome == UFFD_DONE)
			page_filled(vm, idx, claimed);
		else
			page_release(vm, idx, claimed);
		HELD_DROP(HELD_FILLING);
		*pages_back += outcome == UFFD_DONE;
	}
	gate_leave(vm->gate, ahead->lane);
	return outcome == UFFD_NO_MEMORY ? -ENOMEM : outcome == UFFD_RETRY ? -EAGAIN : 0;
}

int ahead_bring(struct ahead *ahead, const struct wake_page *pages, size_t n, size_t *pages_back)
{
	struct vm *vm = ahead->vm;
	struct batch batch = { .vm = vm, .buffer = ahead->buffer };
	int rc;

	*pages_back = 0;
	gate_pass(vm->gate, ahead->lane);
	claim(&batch, pages, n);
	gate_leave(vm->gate, ahead->lane);
	if (!batch.n)
		return 0;
	FAILPOINT_HERE("ahead.claimed");
	rc = store_get(vm->store, batch.slots, batch.n, ahead->buffer);
	FAILPOINT_HERE("ahead.fetched");
	gate_pass(vm->gate, ahead->lane);
	release_what_is_wrong(&batch, rc);
	rc = copy(&batch);
	FAILPOINT_HERE("ahead.copied");
	HELD_DROP(HELD_FILLING);
	gate_leave(vm->gate, ahead->lane);
	*pages_back = batch.back_n;
	return rc;
}
