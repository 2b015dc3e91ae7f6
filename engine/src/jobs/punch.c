/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "jobs/punch.h"

#include <string.h>

#include "base/failpoint.h"
#include "base/held.h"
#include "vm/backing.h"

/* From here on the page map says that the store has the page. False if the guest was faster: the page
 * stays. */
static bool mark_page(struct batch *batch, size_t i)
{
	struct vm *vm = batch->evictor->vm;

	batch->marked[i] = batch->zero[i] ?
				   page_mark_zero(vm, batch->idx[i], &batch->claimed[i]) :
				   page_mark_out(vm, batch->idx[i], &batch->claimed[i], batch->slots[i]);
	batch->evictor->counts.written_pages += !batch->marked[i];
	return batch->marked[i];
}

/* The page may be touched again. `out`: its hole is punched. Otherwise it is resident as before, and its slot
 * is free. */
static void finish_page(struct batch *batch, size_t i, bool out)
{
	struct vm *vm = batch->evictor->vm;

	if (out)
		page_punched(vm, batch->idx[i], batch->claimed[i]);
	else
		page_not_punched(vm, batch->idx[i], batch->claimed[i]);
	batch->marked[i] = false;
}

/* Finish the marked pages in [from, end). Waking needs the list of processes, so this runs in the gate. */
static void finish(struct batch *batch, size_t from, size_t end, bool out)
{
	struct vm *vm = batch->evictor->vm;
	struct evict_counts *counts = &batch->evictor->counts;

	gate_pass(vm->gate, batch->evictor->lane);
	for (size_t i = from; i < end; i++) {
		if (!batch->marked[i])
			continue;
		finish_page(batch, i, out);
		counts->zero_pages += out && batch->zero[i];
		counts->kept_pages += out && batch->kept[i];
		counts->stored_pages += out && !batch->zero[i];
	}
	gate_leave(vm->gate, batch->evictor->lane);
}

/* False if nothing may be punched: an unprotected process joined, or a large folio would be split. */
static bool mark(struct batch *batch, size_t from, size_t end, uint64_t joined)
{
	struct evictor *evictor = batch->evictor;
	struct vm *vm = evictor->vm;
	size_t marked_n = 0;
	bool alone;

	gate_pass(vm->gate, evictor->lane);
	alone = atomic_load(&vm->joined) == joined;
	for (size_t i = from; i < end; i++) {
		/* Given up, but the map does not show it yet: what somebody writes to the file meanwhile must
		 * not be dropped with it. */
		bool stays = !alone || removals_have(&vm->removals, batch->idx[i], 1);

		if (!stays && mark_page(batch, i))
			marked_n++;
		else if (batch_must_store(batch, i))
			store_drop(vm->store, &batch->slots[i], 1);
	}
	gate_leave(vm->gate, evictor->lane);
	if (batch->whole && marked_n < batch->n)
		finish(batch, from, end, false);
	return marked_n && (!batch->whole || marked_n == batch->n);
}

/* Punch one run: when this returns it is out, or resident as before. */
static int take_run_out(struct batch *batch, struct leaving *leaving, size_t from, size_t n,
			struct error *err)
{
	struct evictor *evictor = batch->evictor;
	bool stays[CHUNK_PAGES];
	struct error why;
	int rc = batch->region->backing->take_out(evictor->vm, leaving, batch->idx[from], n,
						  evictor->buffer + from * PAGE_BYTES, stays, &why);

	if (rc) { /* nothing was changed */
		finish(batch, from, from + n, false);
		left_add(evictor->left, batch->idx[from], n, &why);
		if (!left_too_many(evictor->left))
			return 0;
		*err = why;
		return rc;
	}
	left_none(evictor->left);
	for (size_t i = 0; i < n; i++)
		if (stays[i])
			finish(batch, from + i, from + i + 1, false);
	finish(batch, from, from + n, true);
	return 0;
}

/* Punch pages that go together or not at all, in one run or several. */
static int punch_group(struct batch *batch, struct leaving *leaving, size_t from, size_t end, uint64_t joined,
		       struct error *err)
{
	struct vm *vm = batch->evictor->vm;
	struct punching punching = {
		.page_idx = batch->idx[from],
		.pages = batch->idx[end - 1] + 1 - batch->idx[from],
	};
	uint64_t since_ns;
	int rc = 0;

	batch->region->backing->await_others(batch->region, batch->idx[from]);
	since_ns = monotonic_ns();
	vm_punching_begin(vm, &punching);
	if (!mark(batch, from, end, joined)) {
		vm_punching_end(vm, &punching);
		return 0;
	}
	HELD_TAKE(HELD_PUNCHING);
	FAILPOINT_HERE("evict.marked");
	for (size_t i = from, n; i < end && !rc; i += n) {
		n = 1;
		if (!batch->marked[i])
			continue;
		while (i + n < end && batch->marked[i + n] && batch->idx[i + n] == batch->idx[i] + n)
			n++;
		rc = take_run_out(batch, leaving, i, n, err);
	}
	finish(batch, from, end, false); /* after an error */
	HELD_DROP(HELD_PUNCHING);
	vm_punching_end(vm, &punching);
	batch_stopped_for(batch->evictor, since_ns);
	return rc;
}

/* Pages that were never marked stay. */
static void leave_rest(struct batch *batch, size_t from)
{
	for (size_t i = from; i < batch->n; i++) {
		if (batch_must_store(batch, i))
			store_drop(batch->evictor->vm->store, &batch->slots[i], 1);
		batch_let_go(batch->evictor, batch->idx[i], batch->claimed[i]);
	}
}

int punch_batch(struct batch *batch, uint64_t joined, struct error *err)
{
	uint64_t first_idx = batch->idx[0], end_idx = batch->idx[batch->n - 1] + 1;
	const struct backing *backing = batch->region->backing;
	struct leaving leaving;
	size_t from = 0, end;
	int rc = backing->leave_begin(&leaving, batch->region, first_idx, end_idx - first_idx, err);

	memset(batch->marked, 0, sizeof batch->marked);
	for (; from < batch->n && !rc; from = end) {
		end = batch->whole ? batch->n : from + batch_run_length(batch, from);
		rc = punch_group(batch, &leaving, from, end, joined, err);
	}
	backing->leave_end(&leaving);
	if (rc)
		leave_rest(batch, from);
	FAILPOINT_HERE("evict.finished");
	return rc;
}
