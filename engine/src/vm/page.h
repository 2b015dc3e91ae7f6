/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The life of a page. All changes of a page's word are made here. page_map.h says what the parts of a word
 * mean.
 *
 * The way out, and how it ends early:
 *
 *   IN_MEMFD --page_protect--> PROTECTED --page_mark_out--> STORED + PUNCHING --page_punched--> STORED
 *      ^                           |                               |
 *      +--------page_let_go--------+-------page_not_punched--------+
 *
 * A page that is KEPT goes this way from page_mark_out on. One that is all zeros becomes IN_MEMFD + PUNCHING
 * by page_mark_zero, and then IN_MEMFD.
 *
 * The way back:
 *
 *   STORED --page_claim--> STORED + FILLING --page_filled--> IN_MEMFD
 *      ^                    |    |     |                         ^
 *      +----page_release----+    |     +--page_kept--> KEPT -----+ page_drop_copy, or page_claim by a write
 *                                |
 *                           page_poison
 *                                |
 *                                v
 *                            POISONED --page_claim--> POISONED + FILLING --page_filled--> POISONED without a slot
 *                                                                                              |
 *                                                         IN_MEMFD <--page_lifted--page_claim--+
 *
 * Private memory goes out another way (jobs/move_out.h), and comes back from each of these states as from
 * STORED:
 *
 *   IN_MEMFD --page_mark_moving--> MOVED + PUNCHING --page_punched--> MOVED --page_move_out--> STORED
 *      ^                                |                               |
 *      +------page_not_punched----------+          IN_MEMFD <-----------+ page_move_out, of zeros
 *
 * From every state page_give_up leads to IN_MEMFD + GIVEN_UP, or from POISONED to POISONED without a slot.
 *
 * The changes, and what must be held for each. "Gate": passed or held alone. "Alone": held alone. A claim is
 * the word that page_claim() and page_claim_background() give. Only a REMOVE can take it away, and a demand
 * fault if it is BACKGROUND. A mark is the word that page_mark_out() and page_mark_zero() give.
 *
 *   function               from -> to                                     held
 *   page_protect           IN_MEMFD, PROTECTED -> PROTECTED               gate, until the kernel protects it
 *   page_let_go            PROTECTED -> IN_MEMFD                          nothing
 *   page_mark_out          PROTECTED, KEPT -> STORED + PUNCHING           gate; the slot has the page's bytes
 *   page_mark_zero         PROTECTED -> IN_MEMFD + PUNCHING               gate; the page is all zeros
 *   page_mark_moving       IN_MEMFD -> MOVED + PUNCHING                  gate; a place in scratch is recorded
 *   page_move_out          MOVED -> STORED, IN_MEMFD                     gate; the slot has the page's bytes, or
 *                                                                        they are all zeros
 *   page_punched           PUNCHING ends                                  gate; the mark; there is a hole
 *   page_not_punched       PUNCHING ends -> IN_MEMFD                      gate; the mark
 *   page_claim             any but PUNCHING, FILLING -> + FILLING         gate, until it ends or is softened
 *   page_claim_background  STORED, POISONED -> + FILLING + BACKGROUND     nothing
 *   page_harden            BACKGROUND ends, FILLING stays                 gate, until it ends or is softened
 *   page_soften            + BACKGROUND                                   gate; the claim
 *   page_ask_for_wake      + WAITER                                       gate
 *   page_release           FILLING ends, all else stays                   gate; the claim
 *   page_filled            STORED, MOVED, FILLING -> IN_MEMFD                    gate; the claim; the memfd has it
 *                          POISONED, FILLING -> POISONED without a slot
 *   pages_filled           the same, for many pages
 *   page_kept              STORED, FILLING -> KEPT                        gate; the claim; it is protected
 *   page_poison            STORED, FILLING -> POISONED                    gate; the claim
 *   page_lifted            POISONED without a slot, FILLING -> IN_MEMFD   gate; the claim; no marker is left
 *   page_drop_copy         KEPT, STORED -> IN_MEMFD                       nothing; the memfd has the page
 *   page_give_up           any -> IN_MEMFD + GIVEN_UP, PUNCHING stays     alone
 *                          POISONED -> POISONED without a slot
 *   page_begin_out         a new page -> STORED                           alone
 *   page_recover_out       a predecessor's STORED, POISONED, MOVED: flags end    no other thread is there yet
 *   page_recover_resident  a predecessor's word -> IN_MEMFD,              no other thread is there yet
 *                          or POISONED without a slot
 *   page_relocate          STORED, KEPT -> the same with another slot     nothing; the bytes are in both slots
 *
 * The order in which a change takes effect
 * ----------------------------------------
 * Each change does this, in this order: count the page into its new state; change the word; count the page
 * out of its old state; wake threads that wait; drop the slot that the word no longer names.
 *
 * 1. A page is counted in before it is counted out, so no counter is ever too small. While pages_out() is 0,
 *    no page is out: a swap-in relies on this when it unregisters guest memory, as the guest would read zeros
 *    for a page that is out. While vm->kept_pages is 0, there is no kept copy. If a counter is too large for
 *    a moment, a job looks once more.
 * 2. One compare-and-swap decides. If it fails, nothing has changed: the count is undone. The thread that won
 *    drops the slot and wakes threads.
 * 3. Threads are woken after the word has changed: they fault again and must see the change. WAITER is also
 *    set by compare-and-swap. Either the change sees it, or setting it fails and the fault looks at the page
 *    again. WAITER is only cleared together with a wake.
 * 4. The slot is dropped last. While the word names it, a fault may read it; once it is free, it may get
 *    another page's bytes. For the same reason a slot is taken (store_put()) before the word names it. No
 *    thread waits for a slot to become free.
 *
 * After a crash at any point the words decide; a successor counts pages and marks slots anew
 * (jobs/recover.h).
 *
 * GIVEN_UP, with its time in place of the slot, survives a claim that ends by page_release(). So does a time
 * that only the page's chunk has (vm->given_up_ms). The generation grows with each change, except those of
 * BACKGROUND and WAITER, and page_punched(). */
#ifndef VMMSWAP_PAGE_H
#define VMMSWAP_PAGE_H

#include "vm/vm.h"

static inline uint64_t page_word(const struct vm *vm, uint64_t page_idx)
{
	return atomic_load(page_map_word(vm->map, page_idx));
}

/* True if `word` is still this claim or mark, with or without WAITER. */
static inline bool is_claim(uint64_t word, uint64_t claimed)
{
	return ((word ^ claimed) & ~PAGE_WAITER) == 0;
}

/* True if the page is claimed or marked, and a demand fault cannot take it over. */
static inline bool page_is_held(uint64_t word)
{
	return (word & PAGE_PUNCHING) || ((word & PAGE_FILLING) && !(word & PAGE_BACKGROUND));
}

/* True if only the store has the page, and it is not claimed or marked. */
static inline bool page_is_out(uint64_t word)
{
	return page_state_of(word) == PAGE_STORED && !(word & PAGE_FLAGS);
}

/* True if the memfd has the page again, but some process may still have a poison marker. */
static inline bool is_being_lifted(uint64_t word)
{
	return page_state_of(word) == PAGE_POISONED && page_slot_of(word) == PAGE_SLOT_NONE;
}

/* How many pages are STORED, MOVED or POISONED. 0 only if none is. */
uint64_t pages_out(const struct vm *vm);

/* Swap-out. `word` is what the caller saw: false if it has changed since. */
bool page_protect(struct vm *vm, uint64_t page_idx, uint64_t word);
void page_let_go(struct vm *vm, uint64_t page_idx, uint64_t word);

/* Mark a page that goes out; *word becomes the mark. A page that is KEPT has the slot already. False if the
 * word has changed: the page stays, and the slot is still the caller's. */
bool page_mark_out(struct vm *vm, uint64_t page_idx, uint64_t *word, uint64_t slot_idx);
bool page_mark_zero(struct vm *vm, uint64_t page_idx, uint64_t *word);

/* The same for private memory: mark a page that is moved. It is out from then on. */
bool page_mark_moving(struct vm *vm, uint64_t page_idx, uint64_t *word);

/* A page that was moved is in the slot now; PAGE_SLOT_NONE: it is all zeros. False if the word has changed:
 * the slot is still the caller's. */
bool page_move_out(struct vm *vm, uint64_t page_idx, uint64_t word, uint64_t slot_idx);

/* End a mark. A REMOVE may have given the page up since, but the mark stays until here. */
void page_punched(struct vm *vm, uint64_t page_idx, uint64_t marked);
void page_not_punched(struct vm *vm, uint64_t page_idx, uint64_t marked);

/* Claim a page: no other thread fills, protects or evicts it until the claim ends. The word must not be
 * page_is_held(). A page that is neither STORED nor POISONED becomes IN_MEMFD and loses its kept copy. False
 * if the word has changed: look again. */
bool page_claim(struct vm *vm, uint64_t page_idx, uint64_t word, uint64_t *claimed);
bool page_claim_background(struct vm *vm, uint64_t page_idx, uint64_t word, uint64_t *claimed);

/* *claimed becomes what the claim is now; 0, and false, if it was lost. */
bool page_harden(struct vm *vm, uint64_t page_idx, uint64_t *claimed);
bool page_soften(struct vm *vm, uint64_t page_idx, uint64_t *claimed);

/* Ask whoever has the page to wake its waiting threads at the end of the claim or mark. False if the word has
 * changed. */
bool page_ask_for_wake(struct vm *vm, uint64_t page_idx, uint64_t word);

/* End a claim. False if it was lost before. */
bool page_release(struct vm *vm, uint64_t page_idx, uint64_t claimed);
bool page_filled(struct vm *vm, uint64_t page_idx, uint64_t claimed);
bool page_kept(struct vm *vm, uint64_t page_idx, uint64_t claimed);
bool page_poison(struct vm *vm, uint64_t page_idx, uint64_t claimed);
bool page_lifted(struct vm *vm, uint64_t page_idx, uint64_t claimed);

/* page_filled() for n pages, CHUNK_PAGES at most. Takes the store's lock only once. */
void pages_filled(struct vm *vm, const uint64_t *page_idx, const uint64_t *claimed, size_t n);

/* Drop the copy in the store of a page that the memfd has. False if the word has changed. */
bool page_drop_copy(struct vm *vm, uint64_t page_idx, uint64_t word);

/* Note that the guest gave the page up. Its hole may come later. */
void page_give_up(struct vm *vm, uint64_t page_idx, uint32_t now_ms);

/* Change the slot of a page that nobody has claimed: a relocate_page of the store's, with the VM as context.
 * The old slot is the caller's to drop. */
bool page_relocate(void *context, uint64_t page_idx, uint64_t from_idx, uint64_t to_idx);

/* Begin the life of a snapshot's page: the slot is its place in the snapshot's file. */
void page_begin_out(struct vm *vm, uint64_t page_idx, uint64_t slot_idx);

/* `word`: as the predecessor left it. -errno of store_mark_used(). */
int page_recover_out(struct vm *vm, uint64_t page_idx, uint64_t word);
void page_recover_resident(struct vm *vm, uint64_t page_idx, uint64_t word);

#endif
