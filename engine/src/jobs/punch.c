/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "jobs/punch.h"

#include <errno.h>
#include <string.h>

#include "base/failpoint.h"
#include "base/hash.h"
#include "base/held.h"
#include "vm/backing.h"
#include "vm/incore.h"
#include "vm/own_mapping.h"

/* From here on the page map says that the store has the page. False if the guest was faster: the page stays. */
static bool mark_page(struct batch *batch, size_t i)
{
	struct vm *vm = batch->evictor->vm;

	batch->marked[i] = batch->zero[i] ?
				   page_mark_zero(vm, batch->idx[i], &batch->claimed[i]) :
				   page_mark_out(vm, batch->idx[i], &batch->claimed[i], batch->slots[i]);
	batch->evictor->counts.written_pages += !batch->marked[i];
	return batch->marked[i];
}

/* The page may be touched again. `out`: its hole is there. Otherwise it is resident as before, and its slot free. */
static void finish_page(struct batch *batch, size_t i, bool out)
{
	struct vm *vm = batch->evictor->vm;

	if (out)
		page_punched(vm, batch->idx[i], batch->claimed[i]);
	else
		page_not_punched(vm, batch->idx[i], batch->claimed[i]);
	batch->marked[i] = false;
}

/* What is marked from `from` to `end`. Waking looks at the processes: in the gate. */
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

/* False if nothing may be punched: a process joined that was not protected, or a large folio would be split. */
static bool mark(struct batch *batch, size_t from, size_t end, uint64_t joined)
{
	struct evictor *evictor = batch->evictor;
	struct vm *vm = evictor->vm;
	size_t marked_n = 0;
	bool alone;

	gate_pass(vm->gate, evictor->lane);
	alone = atomic_load(&vm->joined) == joined;
	for (size_t i = from; i < end; i++) {
		/* Given up, and not struck off yet: what somebody writes to the file there since must not be struck off with it. */
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

/* Zeros that are present after the punch were a part of a large folio that something referenced: zeroed in place. Writers wait
 * still, and we have the bytes: put them back. Readers may have seen zeros in between, which a person must know. Anything else
 * was written to the file by somebody else, and is the truth. mincore() may say so of a hole, incore.h: that reads as zeros too, and
 * is only a hole. */
static void repair(struct batch *batch, size_t i)
{
	_Alignas(PAGE_BYTES) char there[PAGE_BYTES];
	bool zeroed = batch->region->backing->read(batch->region, batch->idx[i], 1, there) == 0 &&
		      page_is_zero(there);

	if (zeroed &&
	    (batch->zero[i] || !own_mapping_region_overwrite(batch->region, batch->idx[i],
							     batch->evictor->buffer + i * PAGE_BYTES))) {
		finish(batch, i, i + 1, true);
		return;
	}
	finish(batch, i, i + 1, false);
	notices_odd(
		batch->evictor->vm->notices, batch->idx[i], "%s",
		zeroed ?
			"a page was still there after its hole was punched; its bytes were put back, but the guest "
			"may have read zeros: please report this with the kernel's version" :
			"a page was written while its hole was punched: something writes to the memfd itself, or maps "
			"it without a userfaultfd");
}

/* One run: a hole when this returns, or resident as before. */
static int punch_run(struct batch *batch, const struct incore *incore, size_t from, size_t n,
		     struct error *err)
{
	unsigned char found[CHUNK_PAGES];
	struct error why;
	int rc = memory_punch(batch->region, batch->idx[from], n), there;

	if (rc) { /* and nothing has happened */
		finish(batch, from, from + n, false);
		error_set(&why, -rc, "cannot punch guest memory out of its memfd: %s%s", strerror(-rc),
			  rc == -EPERM ? " (is it sealed against writing?)" : "");
		left_add(batch->evictor->left, batch->idx[from], n, &why);
		if (!left_too_many(batch->evictor->left))
			return 0;
		*err = why;
		return rc;
	}
	left_none(batch->evictor->left);
	FAILPOINT_HERE("evict.punched");
	there = incore_find(incore, batch->idx[from], n, found);
	if (there < 0) /* not known: each is looked at */
		memset(found, 1, n);
	if (there)
		for (size_t i = 0; i < n; i++)
			if (found[i] & 1)
				repair(batch, from + i);
	finish(batch, from, from + n, true);
	return 0;
}

/* Pages that go together or not at all, in one run or several. */
static int punch_group(struct batch *batch, const struct incore *incore, size_t from, size_t end,
		       uint64_t joined, struct error *err)
{
	struct vm *vm = batch->evictor->vm;
	struct punching punching = {
		.page_idx = batch->idx[from],
		.pages = batch->idx[end - 1] + 1 - batch->idx[from],
	};
	uint64_t since_ns;
	int rc = 0;

	memory_await_lock(batch->region, batch->idx[from]);
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
		rc = punch_run(batch, incore, i, n, err);
	}
	finish(batch, from, end, false); /* after an error */
	HELD_DROP(HELD_PUNCHING);
	vm_punching_end(vm, &punching);
	batch_stopped_for(batch->evictor, since_ns);
	return rc;
}

/* What was never marked stays. */
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
	struct incore incore;
	size_t from = 0, end;
	int rc = incore_open(&incore, batch->region, first_idx, end_idx - first_idx);

	if (rc)
		error_set(err, -rc, "cannot look at what is in guest memory: %s%s", strerror(-rc),
			  rc == -EACCES ? " (has its memfd been given another mode or owner?)" : "");
	memset(batch->marked, 0, sizeof batch->marked);
	for (; from < batch->n && !rc; from = end) {
		end = batch->whole ? batch->n : from + batch_run_length(batch, from);
		rc = punch_group(batch, &incore, from, end, joined, err);
	}
	incore_close(&incore);
	if (rc)
		leave_rest(batch, from);
	FAILPOINT_HERE("evict.finished");
	return rc;
}
