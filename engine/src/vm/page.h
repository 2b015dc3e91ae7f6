/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The life of a page. Every change of a page's word happens here; page_map.h says what the parts of a word mean.
 *
 *              page_protect               page_mark_out
 *   IN_MEMFD ---------------> PROTECTED ----------------> STORED, PUNCHING        (zeros: IN_MEMFD, PUNCHING,
 *      ^  ^  <---------------     ^                          |         |           by page_mark_zero)
 *      |  |     page_let_go       | also from KEPT           |         | page_not_punched
 *      |  |                                     page_punched |         +--------------------------> IN_MEMFD
 *      |  |                                                  v
 *      |  |  page_filled                  page_claim, page_claim_background
 *      |  +---------------- STORED, FILLING <--------------- STORED
 *      |                    |      |     |  ---------------> ^
 *      |          page_kept |      |     |    page_release   | page_claim
 *      |                    v      |     | page_poison       |
 *      +-------------------KEPT    |     +-----------> POISONED (slot) <-> POISONED, FILLING
 *      |  page_drop_copy           |                                           | page_filled
 *      |                           | page_give_up                              v
 *      +---------------------------+----------------------- POISONED (no slot: markers are being lifted)
 *         (from any state: GIVEN_UP)                           page_lifted
 *
 * What each takes, and what must be held. "Gate": passed or held alone. "Alone": the gate is held alone. A claim is the word
 * that page_claim() and its like give: nobody but a REMOVE takes it away, and a demand fault if it is BACKGROUND.
 *
 *   function               from -> to                                        held
 *   page_protect           IN_MEMFD, PROTECTED -> PROTECTED                  gate, until the kernel has protected it
 *   page_let_go            PROTECTED -> IN_MEMFD                             nothing
 *   page_mark_out          PROTECTED, KEPT -> STORED + PUNCHING              gate; the page's bytes are in the slot
 *   page_mark_zero         PROTECTED -> IN_MEMFD + PUNCHING                  gate; the page holds nothing but zeros
 *   page_punched           PUNCHING ends, the hole is there                  gate; the mark
 *   page_not_punched       PUNCHING ends -> IN_MEMFD                         gate; the mark
 *   page_claim             any but PUNCHING, FILLING -> + FILLING            gate, until it is released or BACKGROUND
 *   page_claim_background  STORED, POISONED -> + FILLING + BACKGROUND        nothing
 *   page_harden            BACKGROUND ends, FILLING stays                    gate, until it is released or softened
 *   page_soften            + BACKGROUND                                      gate; the claim
 *   page_ask_for_wake      + WAITER                                          gate
 *   page_release           FILLING ends, all else stays                      gate; the claim
 *   page_filled            STORED, FILLING -> IN_MEMFD                       gate; the claim; the memfd has the page
 *                          POISONED, FILLING -> POISONED without a slot
 *   pages_filled           the same, for many pages
 *   page_kept              STORED, FILLING -> KEPT                           gate; the claim; the page is write-protected
 *   page_poison            STORED, FILLING -> POISONED                       gate; the claim
 *   page_lifted            POISONED without a slot, FILLING -> IN_MEMFD      gate; the claim; no process has a marker
 *   page_drop_copy         KEPT, STORED -> IN_MEMFD                          nothing; the memfd has the page
 *   page_give_up           any -> IN_MEMFD + GIVEN_UP, PUNCHING stays        alone
 *                          POISONED -> POISONED without a slot
 *   page_begin_out         a new page -> STORED                              alone
 *   page_recover_out       a predecessor's STORED, POISONED -> the same      nobody else is there yet
 *   page_recover_resident  a predecessor's word -> IN_MEMFD, or POISONED without a slot
 *
 * The order in which a change takes effect
 * ----------------------------------------
 * Each change goes: count the page into its new state; change the word; count it out of the old one; wake who waits; drop the slot
 * that the word does not name any more.
 *
 * 1. Counted in first, counted out last: so no counter is ever too small. While pages_out() says 0 no page is out, and a swap-in
 *    that trusts this unregisters nothing that a guest would then read as zeros. While vm->kept_pages is 0 there is no kept copy.
 *    A counter that is too large for a moment makes somebody look once more.
 * 2. One compare-and-swap decides. Who loses it has changed nothing: its count is undone, and the winner sees to the slot and
 *    to who waits.
 * 3. Waking comes after the word: the thread faults again and must find the change. Whoever sets WAITER does so by
 *    compare-and-swap too: the change either sees it, or makes that one fail and look again. WAITER goes only with a wake.
 * 4. The slot comes last: as long as the word names it, a fault may read it, and a slot that is free may hold another page's
 *    bytes at once. A slot is taken before the word names it (store_put()), for the same reason. Nobody waits for it to be free.
 *
 * A crash at any point leaves the word to decide; counters and slots are found out anew from the map (jobs/recover.h).
 *
 * What stays with a word. GIVEN_UP, with the time in place of the slot, stays over a claim that ends by page_release(), and so does
 * what only the page's chunk said (vm->given_up_ms). The generation grows with each change but those of BACKGROUND and WAITER, and
 * the end of PUNCHING. */
#ifndef VMMSWAP_PAGE_H
#define VMMSWAP_PAGE_H

#include "vm/vm.h"

static inline uint64_t page_word(const struct vm *vm, uint64_t page_idx)
{
	return atomic_load(page_map_word(vm->map, page_idx));
}

/* True if `word` is still the claim or mark that we made, whoever waits for it. */
static inline bool is_claim(uint64_t word, uint64_t claimed)
{
	return ((word ^ claimed) & ~PAGE_WAITER) == 0;
}

/* True if somebody else has the page, and does not let a demand fault take it over. */
static inline bool page_is_held(uint64_t word)
{
	return (word & PAGE_PUNCHING) || ((word & PAGE_FILLING) && !(word & PAGE_BACKGROUND));
}

/* True if the page's bytes are in the store and nowhere else, and nobody has it. */
static inline bool page_is_out(uint64_t word)
{
	return page_state_of(word) == PAGE_STORED && !(word & PAGE_FLAGS);
}

/* True if the memfd holds the page, and some process may have a poison marker yet. */
static inline bool is_being_lifted(uint64_t word)
{
	return page_state_of(word) == PAGE_POISONED && page_slot_of(word) == PAGE_SLOT_NONE;
}

/* How many pages are STORED or POISONED: 0 only if none is. */
uint64_t pages_out(const struct vm *vm);

/* Swap-out. `word` is what the caller saw: false if it has changed since. */
bool page_protect(struct vm *vm, uint64_t page_idx, uint64_t word);
void page_let_go(struct vm *vm, uint64_t page_idx, uint64_t word);

/* *word becomes the mark. A page that was KEPT has the slot already. False if the guest was faster: the page stays, and the slot
 * is the caller's. */
bool page_mark_out(struct vm *vm, uint64_t page_idx, uint64_t *word, uint64_t slot_idx);
bool page_mark_zero(struct vm *vm, uint64_t page_idx, uint64_t *word);

/* A REMOVE may have come since and taken the page, but not the mark. */
void page_punched(struct vm *vm, uint64_t page_idx, uint64_t marked);
void page_not_punched(struct vm *vm, uint64_t page_idx, uint64_t marked);

/* Nobody else fills, protects or evicts the page until it is released. The word must not be page_is_held(). What is not STORED or
 * POISONED is IN_MEMFD then, without its kept copy. False if the word has changed: look again. */
bool page_claim(struct vm *vm, uint64_t page_idx, uint64_t word, uint64_t *claimed);
bool page_claim_background(struct vm *vm, uint64_t page_idx, uint64_t word, uint64_t *claimed);

/* *claimed becomes what the claim is now; 0, and false, if it was lost. */
bool page_harden(struct vm *vm, uint64_t page_idx, uint64_t *claimed);
bool page_soften(struct vm *vm, uint64_t page_idx, uint64_t *claimed);

/* The end of our claim or mark will wake who waits. False if the page changed: look again. */
bool page_ask_for_wake(struct vm *vm, uint64_t page_idx, uint64_t word);

/* How a claim ends. False if it was lost before that. */
bool page_release(struct vm *vm, uint64_t page_idx, uint64_t claimed);
bool page_filled(struct vm *vm, uint64_t page_idx, uint64_t claimed);
bool page_kept(struct vm *vm, uint64_t page_idx, uint64_t claimed);
bool page_poison(struct vm *vm, uint64_t page_idx, uint64_t claimed);
bool page_lifted(struct vm *vm, uint64_t page_idx, uint64_t claimed);

/* page_filled() for n pages, CHUNK_PAGES at most, that takes the store's lock once. */
void pages_filled(struct vm *vm, const uint64_t *page_idx, const uint64_t *claimed, size_t n);

/* The memfd has the page: its copy in the store is not needed. False if the word has changed. */
bool page_drop_copy(struct vm *vm, uint64_t page_idx, uint64_t word);

/* The guest gave the page up; the hole comes later. */
void page_give_up(struct vm *vm, uint64_t page_idx, uint32_t now_ms);

/* A page of a snapshot that has its bytes in the snapshot's file. */
void page_begin_out(struct vm *vm, uint64_t page_idx, uint64_t slot_idx);

/* `word`: as the predecessor left it. -errno of store_mark_used(). */
int page_recover_out(struct vm *vm, uint64_t page_idx, uint64_t word);
void page_recover_resident(struct vm *vm, uint64_t page_idx, uint64_t word);

#endif
