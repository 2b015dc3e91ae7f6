/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "vm/page.h"

#include <stdio.h>
#include <stdlib.h>

#include "base/held.h"
#include "vm/poison.h"

#ifdef VMMSWAP_FAILPOINTS
static void is_a_bug(const char *text, uint64_t word)
{
	fprintf(stderr, "bug: %s: %#llx\n", text, (unsigned long long)word);
	abort();
}
#define MUST_BE(holds, text, word) ((holds) ? (void)0 : is_a_bug(text, word))
#else
#define MUST_BE(holds, text, word) ((void)0)
#endif

#define STATE(state) (1u << PAGE_##state)
#define STATES_OUT (STATE(STORED) | STATE(POISONED) | STATE(MOVED))

/* The word that a change begins with: in one of these states, with these flags and no other but WAITER. */
static inline void begins_with(uint64_t word, unsigned states, uint64_t flags)
{
	MUST_BE(states >> page_state_of(word) & 1, "a page cannot go this way from its state", word);
	MUST_BE((word & (PAGE_FLAGS & ~PAGE_WAITER)) == flags, "a page cannot go this way with its flags",
		word);
	(void)word;
	(void)states;
	(void)flags;
}

/* The word that follows `word`: a new state, slot and flags, the next generation. */
static uint64_t word_after(uint64_t word, enum page_state state, uint64_t slot_idx, uint64_t flags)
{
	uint64_t generation = (word & ~(PAGE_GENERATION_ONE - 1)) + PAGE_GENERATION_ONE;
	uint64_t next = generation | flags | ((uint64_t)state << PAGE_STATE_SHIFT) | page_slot_bits(slot_idx);

	MUST_BE(page_word_is_sane(state, slot_idx, flags), "state, slot and flags do not go together", next);
	return next;
}

/* The same page, with other flags. */
static uint64_t with_flags(uint64_t word, uint64_t flags)
{
	return word_after(word, page_state_of(word), page_slot_of(word), flags | (word & PAGE_GIVEN_UP));
}

static _Atomic uint64_t *counter_of(struct vm *vm, uint64_t word)
{
	switch (page_state_of(word)) {
	case PAGE_STORED:
	case PAGE_MOVED: /* nobody but scratch has it */
		return &vm->stored_pages;
	case PAGE_POISONED:
		return &vm->poisoned_pages;
	case PAGE_KEPT:
		return &vm->kept_pages;
	case PAGE_IN_MEMFD:
	case PAGE_PROTECTED:
		break;
	}
	return NULL;
}

static void count_in(struct vm *vm, uint64_t from, uint64_t to)
{
	_Atomic uint64_t *counter = counter_of(vm, to);

	if (counter && counter != counter_of(vm, from))
		atomic_fetch_add(counter, 1);
}

static void count_out(struct vm *vm, uint64_t from, uint64_t to)
{
	_Atomic uint64_t *counter = counter_of(vm, from);

	if (counter && counter != counter_of(vm, to))
		atomic_fetch_sub(counter, 1);
}

/* PAGE_SLOT_NONE: none. */
static uint64_t named_slot(uint64_t word)
{
	enum page_state state = page_state_of(word);

	return state == PAGE_STORED || state == PAGE_POISONED || state == PAGE_KEPT ? page_slot_of(word) :
										      PAGE_SLOT_NONE;
}

static uint64_t unnamed_slot(uint64_t from, uint64_t to)
{
	return named_slot(from) != named_slot(to) ? named_slot(from) : PAGE_SLOT_NONE;
}

static void drop_slot(struct vm *vm, uint64_t slot_idx)
{
	if (slot_idx != PAGE_SLOT_NONE)
		store_drop(vm->store, &slot_idx, 1);
}

static void wake_waiter(struct vm *vm, uint64_t page_idx, uint64_t from, uint64_t to)
{
	if ((from & PAGE_WAITER) && !(to & PAGE_WAITER))
		vm_wake(vm, page_idx, 1);
}

/* From the very word that the caller saw. */
static bool change(struct vm *vm, uint64_t page_idx, uint64_t from, uint64_t to)
{
	uint64_t seen = from;

	count_in(vm, from, to);
	if (!atomic_compare_exchange_strong(page_map_word(vm->map, page_idx), &seen, to)) {
		count_out(vm, to, from);
		return false;
	}
	count_out(vm, from, to);
	wake_waiter(vm, page_idx, from, to);
	drop_slot(vm, unnamed_slot(from, to));
	return true;
}

/* From our claim, whoever waits for it. The slot that is not named any more is the caller's to drop. */
static bool end_claim_only(struct vm *vm, uint64_t page_idx, uint64_t claimed, uint64_t to)
{
	_Atomic uint64_t *at = page_map_word(vm->map, page_idx);
	uint64_t seen = claimed;

	HELD_NEEDS(HELD_GATE | HELD_GATE_ALONE);
	count_in(vm, claimed, to);
	while (!atomic_compare_exchange_weak(at, &seen, to)) {
		if (!is_claim(seen, claimed)) {
			count_out(vm, to, claimed);
			return false;
		}
	}
	count_out(vm, claimed, to);
	wake_waiter(vm, page_idx, seen, to);
	return true;
}

static bool end_claim(struct vm *vm, uint64_t page_idx, uint64_t claimed, uint64_t to)
{
	if (!end_claim_only(vm, page_idx, claimed, to))
		return false;
	drop_slot(vm, unnamed_slot(claimed, to));
	return true;
}

/* STORED first: a page that is poisoned meanwhile is then found among the POISONED. */
uint64_t pages_out(const struct vm *vm)
{
	uint64_t stored_pages = atomic_load(&vm->stored_pages);

	return stored_pages + atomic_load(&vm->poisoned_pages);
}

bool page_protect(struct vm *vm, uint64_t page_idx, uint64_t word)
{
	begins_with(word, STATE(IN_MEMFD) | STATE(PROTECTED), 0);
	HELD_NEEDS(HELD_GATE | HELD_GATE_ALONE);
	return change(vm, page_idx, word, word_after(word, PAGE_PROTECTED, 0, 0));
}

void page_let_go(struct vm *vm, uint64_t page_idx, uint64_t word)
{
	begins_with(word, STATE(PROTECTED), 0);
	change(vm, page_idx, word, word_after(word, PAGE_IN_MEMFD, 0, 0));
}

static bool mark(struct vm *vm, uint64_t page_idx, uint64_t *word, uint64_t marked)
{
	HELD_NEEDS(HELD_GATE | HELD_GATE_ALONE);
	if (!change(vm, page_idx, *word, marked))
		return false;
	*word = marked;
	return true;
}

bool page_mark_out(struct vm *vm, uint64_t page_idx, uint64_t *word, uint64_t slot_idx)
{
	begins_with(*word, STATE(PROTECTED) | STATE(KEPT), 0);
	return mark(vm, page_idx, word, word_after(*word, PAGE_STORED, slot_idx, PAGE_PUNCHING));
}

bool page_mark_zero(struct vm *vm, uint64_t page_idx, uint64_t *word)
{
	begins_with(*word, STATE(PROTECTED), 0);
	return mark(vm, page_idx, word, word_after(*word, PAGE_IN_MEMFD, 0, PAGE_PUNCHING));
}

bool page_mark_moving(struct vm *vm, uint64_t page_idx, uint64_t *word)
{
	begins_with(*word, STATE(IN_MEMFD), 0);
	return mark(vm, page_idx, word, word_after(*word, PAGE_MOVED, 0, PAGE_PUNCHING));
}

bool page_move_out(struct vm *vm, uint64_t page_idx, uint64_t word, uint64_t slot_idx)
{
	begins_with(word, STATE(MOVED), 0);
	HELD_NEEDS(HELD_GATE | HELD_GATE_ALONE);
	return change(vm, page_idx, word,
		      slot_idx == PAGE_SLOT_NONE ? word_after(word, PAGE_IN_MEMFD, 0, 0) :
						   word_after(word, PAGE_STORED, slot_idx, 0));
}

/* The mark is ours still, also where a REMOVE took the page: it alone changes a page that is PUNCHING. */
static void end_given_up_mark(struct vm *vm, uint64_t page_idx)
{
	_Atomic uint64_t *at = page_map_word(vm->map, page_idx);
	uint64_t seen = atomic_load(at);

	while (!atomic_compare_exchange_weak(at, &seen, seen & ~(PAGE_PUNCHING | PAGE_WAITER)))
		;
	wake_waiter(vm, page_idx, seen, 0);
}

void page_punched(struct vm *vm, uint64_t page_idx, uint64_t marked)
{
	begins_with(marked, STATE(STORED) | STATE(IN_MEMFD) | STATE(MOVED), PAGE_PUNCHING);
	if (!end_claim(vm, page_idx, marked, marked & ~PAGE_PUNCHING))
		end_given_up_mark(vm, page_idx);
}

void page_not_punched(struct vm *vm, uint64_t page_idx, uint64_t marked)
{
	begins_with(marked, STATE(STORED) | STATE(IN_MEMFD) | STATE(MOVED), PAGE_PUNCHING);
	if (!end_claim(vm, page_idx, marked, word_after(marked, PAGE_IN_MEMFD, 0, 0)))
		end_given_up_mark(vm, page_idx);
}

bool page_claim(struct vm *vm, uint64_t page_idx, uint64_t word, uint64_t *claimed)
{
	uint64_t flags = PAGE_FILLING | (word & PAGE_WAITER);
	uint32_t since_ms = vm_given_up_ms(vm, page_idx, word);
	bool out = STATES_OUT >> page_state_of(word) & 1;

	MUST_BE(!page_is_held(word), "a page that another has was claimed", word);
	HELD_NEEDS(HELD_GATE | HELD_GATE_ALONE);
	*claimed = out ? with_flags(word, flags) :
			 word_after(word, PAGE_IN_MEMFD, since_ms, flags | (since_ms ? PAGE_GIVEN_UP : 0));
	return change(vm, page_idx, word, *claimed);
}

bool page_claim_background(struct vm *vm, uint64_t page_idx, uint64_t word, uint64_t *claimed)
{
	begins_with(word, STATE(STORED) | STATE(POISONED), 0);
	*claimed = with_flags(word, PAGE_FILLING | PAGE_BACKGROUND);
	return change(vm, page_idx, word, *claimed);
}

bool page_harden(struct vm *vm, uint64_t page_idx, uint64_t *claimed)
{
	_Atomic uint64_t *at = page_map_word(vm->map, page_idx);
	uint64_t seen = *claimed;

	HELD_NEEDS(HELD_GATE | HELD_GATE_ALONE);
	do {
		if (!is_claim(seen, *claimed)) {
			*claimed = 0;
			return false;
		}
	} while (!atomic_compare_exchange_weak(at, &seen, seen & ~PAGE_BACKGROUND));
	*claimed &= ~PAGE_BACKGROUND;
	return true;
}

/* Who waits for us need not any more. */
bool page_soften(struct vm *vm, uint64_t page_idx, uint64_t *claimed)
{
	uint64_t soft = *claimed | PAGE_BACKGROUND;
	bool ours;

	begins_with(*claimed, STATE(STORED) | STATE(POISONED), PAGE_FILLING);
	ours = end_claim(vm, page_idx, *claimed, soft);
	*claimed = ours ? soft : 0;
	return ours;
}

bool page_ask_for_wake(struct vm *vm, uint64_t page_idx, uint64_t word)
{
	HELD_NEEDS(HELD_GATE | HELD_GATE_ALONE);
	return (word & PAGE_WAITER) ||
	       atomic_compare_exchange_strong(page_map_word(vm->map, page_idx), &word, word | PAGE_WAITER);
}

bool page_release(struct vm *vm, uint64_t page_idx, uint64_t claimed)
{
	MUST_BE(claimed & PAGE_FILLING, "a page that nobody claimed was released", claimed);
	return end_claim(vm, page_idx, claimed, with_flags(claimed, 0));
}

/* The hole of a page that was GIVEN_UP was there, or there will be none: the page has been filled since. */
static uint64_t filled(uint64_t claimed)
{
	return page_state_of(claimed) == PAGE_POISONED ?
		       word_after(claimed, PAGE_POISONED, PAGE_SLOT_NONE, 0) :
		       word_after(claimed, PAGE_IN_MEMFD, 0, 0);
}

/* In other processes a marker may be yet. */
static void filled_is_over(struct vm *vm, uint64_t page_idx, uint64_t claimed)
{
	if (page_state_of(claimed) == PAGE_POISONED)
		poison_lift_later(vm, page_idx, 1);
}

bool page_filled(struct vm *vm, uint64_t page_idx, uint64_t claimed)
{
	begins_with(claimed, STATE(IN_MEMFD) | STATES_OUT, PAGE_FILLING);
	if (!end_claim(vm, page_idx, claimed, filled(claimed)))
		return false;
	filled_is_over(vm, page_idx, claimed);
	return true;
}

void pages_filled(struct vm *vm, const uint64_t *page_idx, const uint64_t *claimed, size_t n)
{
	uint64_t slots[CHUNK_PAGES];
	size_t slots_n = 0;

	for (size_t i = 0; i < n; i++) {
		begins_with(claimed[i], STATE(STORED) | STATE(POISONED), PAGE_FILLING);
		if (!end_claim_only(vm, page_idx[i], claimed[i], filled(claimed[i])))
			continue;
		if (unnamed_slot(claimed[i], filled(claimed[i])) != PAGE_SLOT_NONE)
			slots[slots_n++] = page_slot_of(claimed[i]);
		filled_is_over(vm, page_idx[i], claimed[i]);
	}
	if (slots_n)
		store_drop(vm->store, slots, slots_n);
}

bool page_kept(struct vm *vm, uint64_t page_idx, uint64_t claimed)
{
	begins_with(claimed, STATE(STORED), PAGE_FILLING);
	return end_claim(vm, page_idx, claimed, word_after(claimed, PAGE_KEPT, page_slot_of(claimed), 0));
}

bool page_poison(struct vm *vm, uint64_t page_idx, uint64_t claimed)
{
	begins_with(claimed, STATE(STORED), PAGE_FILLING);
	return end_claim(vm, page_idx, claimed, word_after(claimed, PAGE_POISONED, page_slot_of(claimed), 0));
}

bool page_lifted(struct vm *vm, uint64_t page_idx, uint64_t claimed)
{
	begins_with(claimed, STATE(POISONED), PAGE_FILLING);
	MUST_BE(is_being_lifted(claimed), "a marker is needed yet", claimed);
	return end_claim(vm, page_idx, claimed, word_after(claimed, PAGE_IN_MEMFD, 0, 0));
}

bool page_drop_copy(struct vm *vm, uint64_t page_idx, uint64_t word)
{
	begins_with(word, STATE(STORED) | STATE(KEPT), 0);
	return change(vm, page_idx, word, word_after(word, PAGE_IN_MEMFD, 0, 0));
}

/* A hole that is being punched stays marked: whoever faults there must wait until it is done, or the punch
 * would take what the guest writes next. A page that is POISONED holds zeros from now on, once all markers
 * are lifted: who waits, waits for that. */
static uint64_t given_up(uint64_t word, uint32_t now_ms)
{
	uint64_t flags = word & PAGE_PUNCHING ? word & (PAGE_PUNCHING | PAGE_WAITER) : 0;

	if (is_being_lifted(word))
		return word;
	if (page_state_of(word) == PAGE_POISONED)
		return word_after(word, PAGE_POISONED, PAGE_SLOT_NONE, word & PAGE_WAITER);
	return word_after(word, PAGE_IN_MEMFD, now_ms, flags | PAGE_GIVEN_UP);
}

void page_give_up(struct vm *vm, uint64_t page_idx, uint32_t now_ms)
{
	_Atomic uint64_t *at = page_map_word(vm->map, page_idx);
	uint64_t seen = atomic_load(at), to;

	HELD_NEEDS(HELD_GATE_ALONE);
	do {
		to = given_up(seen, now_ms);
	} while (!atomic_compare_exchange_weak(at, &seen, to));
	count_out(vm, seen, to); /* and counted in nowhere: only what was POISONED is so still */
	wake_waiter(vm, page_idx, seen, to);
	drop_slot(vm, unnamed_slot(seen, to));
	if (to != seen && is_being_lifted(to))
		poison_lift_later(vm, page_idx, 1);
}

/* Whoever claims the page does so by compare-and-swap from the word that it read, and so never with the old
 * slot once this is done; whoever has it claimed keeps the old one. page_idx comes from a record in RAM,
 * whose bits may have flipped. */
bool page_relocate(void *context, uint64_t page_idx, uint64_t from_idx, uint64_t to_idx)
{
	struct vm *vm = context;
	uint64_t word;
	enum page_state state;

	if (page_idx >= atomic_load(&page_map_header(vm->map)->pages_n))
		return false;
	word = page_word(vm, page_idx);
	state = page_state_of(word);
	return (state == PAGE_STORED || state == PAGE_KEPT) && !(word & PAGE_FLAGS) &&
	       page_slot_of(word) == from_idx &&
	       atomic_compare_exchange_strong(page_map_word(vm->map, page_idx), &word,
					      word_after(word, state, to_idx, 0));
}

/* The map is new there, and nobody else has it yet. */
void page_begin_out(struct vm *vm, uint64_t page_idx, uint64_t slot_idx)
{
	uint64_t word = word_after(0, PAGE_STORED, slot_idx, 0);

	HELD_NEEDS(HELD_GATE_ALONE);
	atomic_fetch_add_explicit(counter_of(vm, word), 1, memory_order_relaxed);
	atomic_store_explicit(page_map_word(vm->map, page_idx), word, memory_order_relaxed);
}

static void recover_as(struct vm *vm, uint64_t page_idx, uint64_t word)
{
	count_in(vm, 0, word);
	atomic_store(page_map_word(vm->map, page_idx), word);
	if (is_being_lifted(word))
		poison_lift_later(vm, page_idx, 1);
}

int page_recover_out(struct vm *vm, uint64_t page_idx, uint64_t word)
{
	bool in_store = page_state_of(word) != PAGE_MOVED && !is_being_lifted(word);
	int rc = !in_store ? 0 : store_mark_used(vm->store, page_slot_of(word));

	if (!rc)
		recover_as(vm, page_idx, with_flags(word, 0));
	return rc;
}

void page_recover_resident(struct vm *vm, uint64_t page_idx, uint64_t word)
{
	if (page_state_of(word) == PAGE_IN_MEMFD)
		recover_as(vm, page_idx, with_flags(word, 0));
	else
		recover_as(vm, page_idx, filled(word));
}
