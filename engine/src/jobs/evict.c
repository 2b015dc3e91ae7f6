/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "jobs/evict.h"

#include <errno.h>
#include <string.h>
#include <time.h>

#include "base/failpoint.h"
#include "base/hash.h"
#include "base/held.h"
#include "jobs/batch.h"
#include "jobs/protect.h"
#include "jobs/punch.h"
#include "vm/backing.h"

#define PROTECT_RETRY_NS 50000
void evict_abandon(struct evictor *evictor, const struct window *window)
{
	for (uint64_t idx = window->page_idx; idx < window->page_idx + window->pages; idx++) {
		uint64_t word = page_word(evictor->vm, idx);

		if (page_state_of(word) == PAGE_PROTECTED)
			batch_let_go(evictor, idx, word);
	}
}

/* Only pages with data: a hole would need page tables for its markers, and has nothing to store. A page with
 * flags is being served to a fault right now, so it is in use. */
static void select_resident(struct evictor *evictor, const struct window *window, uint64_t *first_idx,
			    uint64_t *end_idx)
{
	*first_idx = *end_idx = window->page_idx;
	for (uint64_t idx = window->page_idx; idx < window->page_idx + window->pages; idx++) {
		uint64_t word;

		if (!window_has_data(window, idx))
			continue;
		word = page_word(evictor->vm, idx);
		/* PROTECTED is left over from a cancelled pass; the protection may be gone since. */
		if ((page_state_of(word) != PAGE_IN_MEMFD && page_state_of(word) != PAGE_PROTECTED) ||
		    (word & PAGE_FLAGS) || vm_may_be_punched_yet(evictor->vm, idx, word) ||
		    !page_protect(evictor->vm, idx, word))
			continue;
		if (*first_idx == *end_idx)
			*first_idx = idx;
		*end_idx = idx + 1;
	}
}

static void leave_sealed(struct evictor *evictor, const struct window *window)
{
	struct error why;

	error_set(&why, EPERM,
		  "a memfd of the VM is sealed against writing, so nothing can be punched out of it");
	for (uint64_t idx = window->page_idx; idx < window->page_idx + window->pages; idx++)
		if (window_has_data(window, idx))
			left_add(evictor->left, idx, 1, &why);
	left_none(evictor->left); /* the next window may be in another memfd */
}

/* Mark and protect in one passage of the gate. So a process that forks is either protected here, and its
 * child with it, or its unread FORK event makes the ioctl fail with EAGAIN. */
int evict_protect(struct evictor *evictor, const struct window *window, struct error *err)
{
	struct vm *vm = evictor->vm;
	uint64_t until_ns = monotonic_ns() + VM_STUCK_NS;

	if (!window->region.backing->may_leave(&window->region)) {
		leave_sealed(evictor, window);
		return 0;
	}
	while (monotonic_ns() < until_ns) {
		enum uffd_outcome outcome = UFFD_DONE;
		uint64_t first_idx, end_idx;

		gate_pass(vm->gate, evictor->lane);
		select_resident(evictor, window, &first_idx, &end_idx);
		FAILPOINT_HERE("evict.selected");
		if (first_idx < end_idx)
			outcome = protect_everywhere(evictor, first_idx, end_idx - first_idx);
		gate_leave(vm->gate, evictor->lane);
		FAILPOINT_HERE("evict.protected");
		if (outcome == UFFD_DONE)
			return 0;
		evict_abandon(evictor, window);
		if (outcome != UFFD_RETRY)
			return error_set(err, ENOTSUP, "cannot write-protect guest memory of page %llu: %s",
					 (unsigned long long)first_idx, uffd_outcome_text(outcome));
		HELD_MAY_WAIT(WAIT_TIME);
		nanosleep(&(struct timespec){ .tv_nsec = PROTECT_RETRY_NS }, NULL);
	}
	return error_set(err, EAGAIN,
			 "a process of the VM is stuck in the middle of changing its memory mappings; "
			 "is it stopped (SIGSTOP, a debugger)?");
}

/* A page with a kept copy that was punched without an event is only a hole: its copy must not come back. */
static void collect(struct batch *batch, const struct window *window)
{
	for (uint64_t idx = window->page_idx; idx < window->page_idx + window->pages; idx++) {
		uint64_t word = window_has_data(window, idx) ? page_word(batch->evictor->vm, idx) : 0;
		bool kept = page_state_of(word) == PAGE_KEPT && !(word & PAGE_FLAGS) &&
			    !batch->region->backing->is_hole(batch->region, idx);

		if (page_state_of(word) != PAGE_PROTECTED && !kept)
			continue;
		batch->idx[batch->n] = idx;
		batch->kept[batch->n] = kept;
		batch->slots[batch->n] = page_slot_of(word);
		batch->claimed[batch->n++] = word;
	}
}

/* Move page `from` of the batch to place *to. */
static void keep(struct batch *batch, size_t from, size_t *to)
{
	batch->idx[*to] = batch->idx[from];
	batch->claimed[*to] = batch->claimed[from];
	batch->kept[*to] = batch->kept[from];
	batch->slots[*to] = batch->slots[from];
	(*to)++;
}

static void let_all_go(struct batch *batch)
{
	for (size_t i = 0; i < batch->n; i++)
		batch_let_go(batch->evictor, batch->idx[i], batch->claimed[i]);
	batch->n = 0;
}

/* The batch has lost pages. If folios have several pages, none of the others may be evicted. */
static void shrink_to(struct batch *batch, size_t n)
{
	bool lost = n < batch->n;

	batch->n = n;
	if (lost && batch->whole)
		let_all_go(batch);
}

/* Drop the slots that this batch took for pages up to n. */
static void drop_slots(struct batch *batch, size_t n)
{
	for (size_t i = 0; i < n; i++)
		if (batch_must_store(batch, i) && !batch->failed[i])
			store_drop(batch->evictor->vm->store, &batch->slots[i], 1);
}

static int leave_pinned(struct batch *batch, const struct window *window, struct error *err)
{
	struct evictor *evictor = batch->evictor;
	const struct region *region = batch->region;
	uint64_t start_bytes = region->offset_bytes + bytes_of_pages(window->page_idx - region->page_idx);
	uint64_t chunk_bytes = start_bytes & ~(CHUNK_BYTES - 1); /* the check wants whole chunks */
	uint64_t lead = pages_of_bytes(start_bytes - chunk_bytes);
	struct pins_chunk seen;
	size_t kept_n = 0;
	int rc;

	batch->whole = atomic_load(&evictor->vm->large_folios);
	if (!evictor->pins || !batch->n)
		return 0;
	rc = pins_check(evictor->pins, region->fd, chunk_bytes, (uint32_t)(lead + window->pages), &seen);
	if (rc)
		return error_set(err, -rc, "cannot tell whether I/O is in flight into guest memory: %s",
				 strerror(-rc));
	if (seen.sees_folios) {
		batch->whole = false;
		for (size_t word = 0; word < PINS_WORDS; word++)
			batch->whole |= seen.large[word] != 0;
	}
	for (size_t i = 0; i < batch->n; i++) {
		uint64_t bit = lead + batch->idx[i] - window->page_idx;
		bool held = seen.held[bit / 64] >> (bit % 64) & 1;
		bool absent = seen.sees_folios && !(seen.present[bit / 64] >> (bit % 64) & 1);

		evictor->counts.pinned_pages += held;
		if (held || absent)
			batch_let_go(evictor, batch->idx[i], batch->claimed[i]);
		else
			keep(batch, i, &kept_n);
	}
	shrink_to(batch, kept_n);
	return 0;
}

/* A folio of several pages is evicted as a whole or not at all: punching a part of one zeroes that part in
 * place. If we do not know where folios lie, all resident pages of the chunk are evicted together, and a
 * chunk that is only partly in the region stays. */
static bool may_split_folio(const struct batch *batch, const struct window *window)
{
	const struct region *region = &window->region;
	uint64_t offset_bytes = region->offset_bytes + bytes_of_pages(window->page_idx - region->page_idx);
	size_t resident_n = 0;

	if (!batch->whole)
		return false;
	if (offset_bytes % CHUNK_BYTES || window->pages != CHUNK_PAGES)
		return true;
	for (uint64_t idx = window->page_idx; idx < window->page_idx + window->pages; idx++)
		resident_n += !region->backing->is_hole(region, idx);
	return resident_n != batch->n;
}

/* Page i stays; leave_failed() removes it from the batch. Returns an error after many failures in a row. */
static int fail_page(struct batch *batch, size_t i, const struct error *why, struct error *err)
{
	struct left *left = batch->evictor->left;

	batch->failed[i] = true;
	left_add(left, batch->idx[i], 1, why);
	if (!left_too_many(left))
		return 0;
	*err = *why;
	return -why->code;
}

/* Close the gaps that failed pages leave. with_slots: the other pages already have slots. */
static void leave_failed(struct batch *batch, bool with_slots)
{
	char *buffer = batch->evictor->buffer;
	size_t kept_n = 0;

	for (size_t i = 0; i < batch->n; i++) {
		if (batch->failed[i]) {
			batch_let_go(batch->evictor, batch->idx[i], batch->claimed[i]);
			continue;
		}
		if (kept_n != i)
			memcpy(buffer + kept_n * PAGE_BYTES, buffer + i * PAGE_BYTES, PAGE_BYTES);
		batch->zero[kept_n] = batch->zero[i];
		keep(batch, i, &kept_n);
	}
	memset(batch->failed, 0, sizeof batch->failed);
	if (kept_n < batch->n && batch->whole && with_slots)
		drop_slots(batch, kept_n);
	shrink_to(batch, kept_n);
}

static int read_page(struct batch *batch, size_t i, struct error *err)
{
	struct error why;
	int rc = batch->region->backing->read(batch->region, batch->idx[i], 1,
					      batch->evictor->buffer + i * PAGE_BYTES);

	if (!rc) {
		left_none(batch->evictor->left);
		return 0;
	}
	if (rc == -ERANGE)
		error_set(&why, EINVAL, "the VMM shrank its memfd below page %llu of its guest memory",
			  (unsigned long long)batch->idx[i]);
	else
		error_set(&why, -rc, "cannot read guest memory: %s", strerror(-rc));
	return fail_page(batch, i, &why, err);
}

/* Run by run; if a run fails, page by page. */
static int read_pages(struct batch *batch, struct error *err)
{
	int rc = 0;

	for (size_t i = 0, n; i < batch->n && !rc; i += n) {
		n = batch_run_length(batch, i);
		if (batch->region->backing->read(batch->region, batch->idx[i], n,
						 batch->evictor->buffer + i * PAGE_BYTES) != 0)
			for (size_t k = i; k < i + n && !rc; k++)
				rc = read_page(batch, k, err);
	}
	if (!rc)
		leave_failed(batch, false);
	return rc;
}

/* Write-protection says that a page with a kept copy is unchanged. But it cannot see some writes (pwrite() on
 * the memfd, a process that maps it without a userfaultfd), and those must not be lost: the bytes decide. A
 * page that was punched since it was collected is only a hole; whoever fills it takes the page from us. */
static bool is_unchanged(struct batch *batch, size_t i)
{
	struct vm *vm = batch->evictor->vm;
	bool punched;

	if (page_hash(batch->evictor->buffer + i * PAGE_BYTES) == *page_map_hash(vm->map, batch->idx[i]))
		return true;
	punched = batch->region->backing->is_hole(batch->region, batch->idx[i]);
	if (page_drop_copy(vm, batch->idx[i], batch->claimed[i]) && !punched)
		notices_odd(
			vm->notices, batch->idx[i],
			"a write-protected page changed without an event: something writes to the memfd itself, or maps it "
			"without a userfaultfd");
	return false;
}

/* Zeros need no slot. A trim releases the pages that would have to be written. */
static void sort_pages(struct batch *batch)
{
	struct evictor *evictor = batch->evictor;
	size_t kept_n = 0;

	for (size_t i = 0; i < batch->n; i++) {
		bool zero = !batch->kept[i] && page_is_zero(evictor->buffer + i * PAGE_BYTES);

		if (evictor->free_only && !zero && !batch->kept[i]) {
			batch_let_go(evictor, batch->idx[i], batch->claimed[i]);
			continue;
		}
		if (batch->kept[i] && !is_unchanged(batch, i))
			continue;
		if (kept_n != i)
			memcpy(evictor->buffer + kept_n * PAGE_BYTES, evictor->buffer + i * PAGE_BYTES,
			       PAGE_BYTES);
		batch->zero[kept_n] = zero;
		keep(batch, i, &kept_n);
	}
	shrink_to(batch, kept_n);
}

/* Pages of a batch that must be stored, gathered for one put. */
struct gathered {
	size_t n;
	size_t i[CHUNK_PAGES]; /* in the batch */
	const void *page[CHUNK_PAGES];
	uint64_t idx[CHUNK_PAGES];
	uint64_t slots[CHUNK_PAGES];
};

/* A bad place on the disk fails only the page that was to be put there. */
static int store_page(struct batch *batch, const struct gathered *all, size_t k, struct error *err)
{
	struct evictor *evictor = batch->evictor;
	struct error why;
	int rc =
		store_put(evictor->vm->store, &all->page[k], &all->idx[k], 1, &batch->slots[all->i[k]], &why);

	if (!rc)
		left_none(evictor->left);
	else if (rc == -EIO)
		rc = fail_page(batch, all->i[k], &why, err);
	else
		*err = why;
	return rc;
}

static int store_one_by_one(struct batch *batch, const struct gathered *all, struct error *err)
{
	for (size_t k = 0; k < all->n; k++) {
		int rc = store_page(batch, all, k, err);

		if (rc) { /* this one has no slot */
			drop_slots(batch, all->i[k]);
			return rc;
		}
	}
	return 0;
}

static void gather(const struct batch *batch, struct gathered *all)
{
	all->n = 0;
	for (size_t i = 0; i < batch->n; i++) {
		if (!batch_must_store(batch, i))
			continue;
		all->i[all->n] = i;
		all->page[all->n] = batch->evictor->buffer + i * PAGE_BYTES;
		all->idx[all->n++] = batch->idx[i];
	}
}

/* One put for all that must be stored, whatever lies between: a disk takes nearly as long for a page as for
 * 32. */
static int store_pages(struct batch *batch, struct error *err)
{
	struct vm *vm = batch->evictor->vm;
	struct gathered all;
	int rc;

	gather(batch, &all);
	rc = store_put(vm->store, all.page, all.idx, all.n, all.slots, err);
	for (size_t k = 0; k < all.n && !rc; k++)
		batch->slots[all.i[k]] = all.slots[k];
	if (rc == -EIO)
		rc = store_one_by_one(batch, &all, err);
	if (rc)
		return rc;
	for (size_t k = 0; k < all.n; k++)
		*page_map_hash(vm->map, all.idx[k]) = page_hash(all.page[k]);
	leave_failed(batch, true);
	return 0;
}

int evict_protected(struct evictor *evictor, const struct window *window, uint64_t joined, struct error *err)
{
	struct batch batch = { .evictor = evictor, .region = &window->region };
	int rc;

	collect(&batch, window);
	rc = leave_pinned(&batch, window, err);
	if (!rc && may_split_folio(&batch, window))
		let_all_go(&batch);
	FAILPOINT_HERE("evict.checked");
	if (!rc)
		rc = read_pages(&batch, err);
	FAILPOINT_HERE("evict.read");
	if (!rc)
		sort_pages(&batch);
	if (!rc && batch.n)
		rc = store_pages(&batch, err);
	FAILPOINT_HERE("evict.stored");
	if (rc || !batch.n) {
		let_all_go(&batch);
		return rc;
	}
	return punch_batch(&batch, joined, err);
}
