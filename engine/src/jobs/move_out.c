/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "jobs/move_out.h"

#include <errno.h>
#include <string.h>
#include <time.h>

#include "base/failpoint.h"
#include "base/hash.h"
#include "base/held.h"
#include "jobs/move_back.h"
#include "vm/backing.h"
#include "vm/page.h"

#define SERVED_NS 20000 /* a page fault takes about as long */

/* The pages of one window on their way out, in ascending order. */
struct moving {
	struct evictor *evictor;
	const struct region *region;
	int place;
	size_t n;
	uint64_t idx[CHUNK_PAGES];
	uint64_t words[CHUNK_PAGES]; /* the mark; after step 3, the page's word */
	uint64_t slots[CHUNK_PAGES];
	const void *page[CHUNK_PAGES]; /* its bytes, in the evictor's buffer */
	bool zero[CHUNK_PAGES];
	uint64_t wanted[VMMSWAP_WINDOW_WORDS], moved[VMMSWAP_WINDOW_WORDS], busy[VMMSWAP_WINDOW_WORDS];
};

static uint64_t addr_of(const struct moving *moving, size_t i)
{
	return region_offset_of(moving->region, moving->idx[i]);
}

/* Which page of its window. */
static uint64_t bit_of(const struct moving *moving, size_t i)
{
	return pages_of_bytes(addr_of(moving, i) % CHUNK_BYTES);
}

static bool has_bit(const uint64_t *words, uint64_t bit)
{
	return words[bit / 64] >> (bit % 64) & 1;
}

static size_t run_length(const struct moving *moving, size_t from)
{
	size_t n = 1;

	while (from + n < moving->n && moving->idx[from + n] == moving->idx[from] + n)
		n++;
	return n;
}

/* True if the VMM has the page where the region says, and whoever misses it there waits for us: it may have
 * moved guest memory, or mapped something else in its place, with no event. */
static bool is_guest_memory(const struct moving *moving, uint64_t page_idx)
{
	const struct vm *vm = moving->evictor->vm;
	struct process *process = address_space_find(&vm->spaces, 0);
	uint64_t addr = region_offset_of(moving->region, page_idx), at;

	return process && process_addr_of(process, page_idx, 1, &at) && at == addr &&
	       uffd_is_registered(process->uffd, addr) != UFFD_NO;
}

/* A page that is being served, or that was given up a moment ago, stays: as in evict.c. */
static bool may_move(const struct moving *moving, uint64_t page_idx, uint64_t word)
{
	struct vm *vm = moving->evictor->vm;

	return page_state_of(word) == PAGE_IN_MEMFD && !(word & PAGE_FLAGS) &&
	       !vm_may_be_punched_yet(vm, page_idx, word) && !removals_have(&vm->removals, page_idx, 1);
}

static void want(uint64_t *words, uint64_t bit)
{
	words[bit / 64] |= (uint64_t)1 << (bit % 64);
}

/* The kernel moves adjacent pages only if they are in one mapping: one look for each run will do. */
static void mark(struct moving *moving, const struct window *window, uint64_t joined)
{
	struct vm *vm = moving->evictor->vm;
	bool in_run = false, is_guest = false;

	gate_pass(vm->gate, moving->evictor->lane);
	for (uint64_t idx = window->page_idx; idx < window->page_idx + window->pages; idx++) {
		uint64_t word = page_word(vm, idx);
		bool wanted = window_has_data(window, idx) && may_move(moving, idx, word);

		if (wanted && !in_run)
			is_guest = atomic_load(&vm->joined) == joined && is_guest_memory(moving, idx);
		in_run = wanted;
		if (!wanted || !is_guest || !page_mark_moving(vm, idx, &word))
			continue;
		moving->idx[moving->n] = idx;
		moving->words[moving->n++] = word;
	}
	gate_leave(vm->gate, moving->evictor->lane);
	for (size_t i = 0; i < moving->n; i++)
		want(moving->wanted, bit_of(moving, i));
}

/* There is no thread that would say what it has moved. What guest memory does not have, it has moved, or it
 * was a hole. */
static void look_what_moved(struct moving *moving)
{
	for (size_t i = 0; i < moving->n; i++)
		if (!moving->region->backing->has_page(moving->region, moving->idx[i]))
			want(moving->moved, bit_of(moving, i));
}

/* Pages that were not moved are resident as before, those that were can be served; who waits is woken. */
static void settle(struct moving *moving)
{
	struct evict_counts *counts = &moving->evictor->counts;
	struct vm *vm = moving->evictor->vm;
	size_t moved_n = 0;

	gate_pass(vm->gate, moving->evictor->lane);
	for (size_t i = 0; i < moving->n; i++) {
		if (!has_bit(moving->moved, bit_of(moving, i))) {
			counts->pinned_pages += has_bit(moving->busy, bit_of(moving, i));
			page_not_punched(vm, moving->idx[i], moving->words[i]);
			continue;
		}
		page_punched(vm, moving->idx[i], moving->words[i]);
		moving->idx[moved_n] = moving->idx[i];
		moving->words[moved_n++] = moving->words[i] & ~PAGE_PUNCHING;
	}
	moving->n = moved_n;
	gate_leave(vm->gate, moving->evictor->lane);
}

/* Once more than half of what was wanted cannot be moved for another reason than that it is in use, the
 * reason is reported. */
static void report_unmoved(struct moving *moving, size_t wanted_n, int why)
{
	struct error error;

	if (!why || moving->n * 2 > wanted_n)
		return;
	error_set(&error, why, "the VMM cannot move pages of its memory: %s", strerror(why));
	left_add(moving->evictor->left, moving->idx[0], wanted_n - moving->n, &error);
}

/* A mapping ends in the middle of pages that were wanted together. Those with even numbers, and those with
 * odd ones, are not adjacent, and each is looked at. */
static int move_one_by_one(struct moving *moving, unsigned parity, int *why)
{
	struct vm *vm = moving->evictor->vm;
	uint64_t wanted[VMMSWAP_WINDOW_WORDS] = { 0 }, moved[VMMSWAP_WINDOW_WORDS],
		 busy[VMMSWAP_WINDOW_WORDS];
	int rc;

	gate_pass(vm->gate, moving->evictor->lane);
	for (size_t i = 0; i < moving->n; i++) {
		uint64_t bit = bit_of(moving, i);

		if (bit % 2 == parity && !has_bit(moving->moved, bit) && !has_bit(moving->busy, bit) &&
		    is_guest_memory(moving, moving->idx[i]))
			want(wanted, bit);
	}
	gate_leave(vm->gate, moving->evictor->lane);
	rc = mover_move(vm->mover, moving->place, wanted, moved, busy, why, &vm->stopping);
	for (size_t i = 0; i < VMMSWAP_WINDOW_WORDS && !rc; i++) {
		moving->moved[i] |= moved[i];
		moving->busy[i] |= busy[i];
	}
	return rc;
}

static int ask_to_move(struct moving *moving, int *why)
{
	struct vm *vm = moving->evictor->vm;
	int rc = mover_move(vm->mover, moving->place, moving->wanted, moving->moved, moving->busy, why,
			    &vm->stopping);

	if (rc || *why != EINVAL)
		return rc;
	rc = move_one_by_one(moving, 0, why);
	return rc ? rc : move_one_by_one(moving, 1, why);
}

static int move(struct moving *moving, struct error *err)
{
	uint64_t since_ns = monotonic_ns(), stop_ns;
	size_t wanted_n = moving->n;
	int why = 0, rc = ask_to_move(moving, &why);

	FAILPOINT_HERE("move.moved");
	if (rc)
		error_set(err, -rc, "cannot move guest memory: %s", mover_error_text(rc));
	if (rc == -ECANCELED)
		return rc; /* only a successor can know */
	if (rc == -ESRCH)
		look_what_moved(moving);
	settle(moving);
	report_unmoved(moving, wanted_n, why);
	stop_ns = monotonic_ns() - since_ns;
	if (stop_ns > moving->evictor->counts.longest_stop_ns)
		moving->evictor->counts.longest_stop_ns = stop_ns;
	return rc;
}

/* The VMM may have mapped memory anew since it was registered, with no event: what is moved from there is not
 * waited for by who touches it. The kernel moves pages of one mapping in one call, so each run is looked at
 * where it begins. */
static int check_registration(struct moving *moving, struct error *err)
{
	struct vm *vm = moving->evictor->vm;
	int rc = 0;

	gate_pass(vm->gate, moving->evictor->lane);
	for (size_t i = 0; i < moving->n && !rc; i += run_length(moving, i)) {
		const struct process *process = address_space_find(&vm->spaces, 0);

		if (process && uffd_is_registered(process->uffd, addr_of(moving, i)) == UFFD_NO)
			rc = error_set(
				err, EINVAL,
				"guest memory at %#llx is not registered any more: the VMM has mapped it anew",
				(unsigned long long)addr_of(moving, i));
	}
	gate_leave(vm->gate, moving->evictor->lane);
	return rc;
}

static int read_pages(struct moving *moving, struct error *err)
{
	struct evictor *evictor = moving->evictor;
	int rc = 0;

	for (size_t i = 0, n; i < moving->n && !rc; i += n) {
		n = run_length(moving, i);
		rc = mover_read(evictor->vm->mover, moving->place, bit_of(moving, i), n,
				evictor->buffer + i * PAGE_BYTES);
	}
	return rc ? error_set(err, -rc, "cannot read what was moved from guest memory: %s",
			      rc == -ESRCH ? "the VMM has ended" : strerror(-rc)) :
		    0;
}

/* Zeros first: then the others can be stored together. Returns how many are zeros. */
static size_t zeros_first(struct moving *moving)
{
	const char *buffer = moving->evictor->buffer;
	uint64_t idx[CHUNK_PAGES], words[CHUNK_PAGES];
	size_t zeros_n = 0;

	for (size_t i = 0; i < moving->n; i++) {
		moving->zero[i] = page_is_zero(buffer + i * PAGE_BYTES);
		zeros_n += moving->zero[i];
	}
	memcpy(idx, moving->idx, sizeof idx);
	memcpy(words, moving->words, sizeof words);
	for (size_t i = 0, zero_i = 0, other_i = zeros_n; i < moving->n; i++) {
		size_t to = moving->zero[i] ? zero_i++ : other_i++;

		moving->idx[to] = idx[i];
		moving->words[to] = words[i];
		moving->page[to] = buffer + i * PAGE_BYTES;
	}
	for (size_t i = 0; i < moving->n; i++)
		moving->slots[i] = PAGE_SLOT_NONE;
	return zeros_n;
}

/* A page that cannot be stored has no slot, and goes back. */
static int store_one_by_one(struct moving *moving, size_t from, bool *stays, struct error *err)
{
	struct evictor *evictor = moving->evictor;
	int rc = 0;

	for (size_t i = from; i < moving->n && !rc; i++) {
		struct error why;

		rc = store_put(evictor->vm->store, &moving->page[i], &moving->idx[i], 1, &moving->slots[i],
			       &why);
		if (!rc) {
			left_none(evictor->left);
			continue;
		}
		stays[i] = true;
		moving->slots[i] = PAGE_SLOT_NONE;
		left_add(evictor->left, moving->idx[i], 1, &why);
		if (rc == -EIO && !left_too_many(evictor->left))
			rc = 0;
		else
			*err = why;
	}
	return rc;
}

/* stays[i]: page i could not be stored. On error those that have a slot go out all the same. */
static int store_pages(struct moving *moving, size_t from, bool *stays, struct error *err)
{
	struct evictor *evictor = moving->evictor;
	size_t n = moving->n - from;
	int rc;

	if (!n)
		return 0;
	rc = store_put(evictor->vm->store, &moving->page[from], &moving->idx[from], n, &moving->slots[from],
		       err);
	for (size_t i = from; rc && i < moving->n; i++)
		moving->slots[i] = PAGE_SLOT_NONE; /* whatever it wrote there */
	if (rc == -EIO)
		rc = store_one_by_one(moving, from, stays, err);
	for (size_t i = from; i < moving->n; i++) {
		if (rc && moving->slots[i] == PAGE_SLOT_NONE)
			stays[i] = true;
		if (!stays[i])
			*page_map_hash(evictor->vm->map, moving->idx[i]) = page_hash(moving->page[i]);
	}
	return rc;
}

static void drop_slot(struct moving *moving, size_t i)
{
	if (moving->slots[i] != PAGE_SLOT_NONE)
		store_drop(moving->evictor->vm->store, &moving->slots[i], 1);
}

/* True if a page fault has it at this moment, and may let go of it again: scratch must have it until then. */
static bool is_being_served(uint64_t word)
{
	return page_state_of(word) == PAGE_MOVED && (word & PAGE_FILLING);
}

/* Page i is out; or the guest was faster, and it is not ours any more. False: look at it again. */
static bool one_out(struct moving *moving, size_t i)
{
	struct evict_counts *counts = &moving->evictor->counts;
	struct vm *vm = moving->evictor->vm;
	uint64_t word = page_word(vm, moving->idx[i]);

	if (is_being_served(word))
		return false;
	if (page_state_of(word) == PAGE_MOVED && page_move_out(vm, moving->idx[i], word, moving->slots[i])) {
		counts->zero_pages += moving->slots[i] == PAGE_SLOT_NONE;
		counts->stored_pages += moving->slots[i] != PAGE_SLOT_NONE;
		return true;
	}
	if (page_state_of(page_word(vm, moving->idx[i])) == PAGE_MOVED)
		return false;
	drop_slot(moving, i);
	counts->written_pages++;
	return true;
}

static void out(struct moving *moving, const bool *stays)
{
	struct vm *vm = moving->evictor->vm;
	size_t left_n = moving->n;
	bool done[CHUNK_PAGES];

	memcpy(done, stays, sizeof done);
	while (left_n) {
		left_n = 0;
		gate_pass(vm->gate, moving->evictor->lane);
		for (size_t i = 0; i < moving->n; i++) {
			done[i] = done[i] || one_out(moving, i);
			left_n += !done[i];
		}
		gate_leave(vm->gate, moving->evictor->lane);
		if (left_n)
			nanosleep(&(struct timespec){ .tv_nsec = SERVED_NS }, NULL);
	}
}

/* Whatever is still MOVED goes back. Then the place is empty, or stays as it is for move_back_left(). */
static int clear(struct moving *moving, struct error *err)
{
	struct vm *vm = moving->evictor->vm;
	int rc = 0;

	for (size_t i = 0; i < moving->n && !rc; i++)
		rc = move_back(vm, moving->evictor->lane, moving->place, moving->idx[i], bit_of(moving, i),
			       1);
	if (rc)
		mover_leave_place(vm->mover, moving->place);
	else
		rc = move_back_end(vm, moving->place);
	if (!rc)
		return 0;
	return error_set(err, -rc, "cannot empty what guest memory was moved to: %s", mover_error_text(rc));
}

static int take_out(struct moving *moving, struct error *err)
{
	bool stays[CHUNK_PAGES] = { false };
	int rc = check_registration(moving, err);

	if (!rc)
		rc = read_pages(moving, err);
	FAILPOINT_HERE("move.read");
	if (rc)
		return rc;
	rc = store_pages(moving, zeros_first(moving), stays, err);
	FAILPOINT_HERE("move.stored");
	out(moving, stays);
	FAILPOINT_HERE("move.out");
	return rc;
}

int move_out(struct evictor *evictor, const struct window *window, uint64_t joined, struct error *err)
{
	struct moving moving = { .evictor = evictor, .region = &window->region };
	struct mover *mover = evictor->vm->mover;
	uint64_t window_addr = region_offset_of(&window->region, window->page_idx) & ~(CHUNK_BYTES - 1);
	struct error why;
	int rc = 0, clear_rc;

	moving.place = mover_take_place(mover, window_addr);
	if (moving.place < 0)
		return error_set(err, EBUSY,
				 "what was moved from guest memory before is still there: call Enable again");
	mark(&moving, window, joined);
	FAILPOINT_HERE("move.marked");
	if (!moving.n) {
		mover_give_place(mover, moving.place);
		return 0;
	}
	rc = move(&moving, err);
	if (rc == -ECANCELED) {
		mover_leave_place(mover, moving.place);
		return rc;
	}
	if (!rc && moving.n)
		rc = take_out(&moving, err);
	clear_rc = clear(&moving, rc ? &why : err);
	return rc ? rc : clear_rc;
}
