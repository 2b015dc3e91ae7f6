/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "vm/check.h"

#ifdef VMMSWAP_FAILPOINTS
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "vm/backing.h"
#include "vm/page.h"

struct check {
	struct vm *vm;
	enum check_when when;
	struct error *err;
	uint64_t stored_pages, poisoned_pages, kept_pages;
	const struct backing *backing; /* of the pages being checked */
	uint64_t *slots;	       /* all slots that words name */
	size_t slots_n, slots_room;
	size_t shared_slots_n; /* of these, slots of a snapshot: always in use, for all its clones */
};

static int is_wrong(struct check *check, uint64_t page_idx, uint64_t word, const char *what)
{
	return error_set(check->err, EPROTO, "page %" PRIu64 " has word %#" PRIx64 ": %s", page_idx, word,
			 what);
}

static int note_slot(struct check *check, uint64_t slot_idx)
{
	if (check->slots_n == check->slots_room) {
		size_t room = check->slots_room ? check->slots_room * 2 : 1024;
		uint64_t *grown = realloc(check->slots, room * sizeof *grown);

		if (!grown)
			return error_set(check->err, ENOMEM, "no memory to check the slots");
		check->slots = grown;
		check->slots_room = room;
	}
	check->slots[check->slots_n++] = slot_idx;
	check->shared_slots_n += check->backing->stays != NULL;
	return 0;
}

static const char *wrong_flags(const struct check *check, uint64_t word)
{
	/* The VMM's thread may have been stopped in the middle of a move: only a successor can wait for
	 * it. */
	if (check->when != CHECK_ANY_TIME && (word & PAGE_PUNCHING) && page_state_of(word) != PAGE_MOVED)
		return "PUNCHING, and no job is under way";
	if (check->when != CHECK_ANY_TIME && (word & PAGE_BACKGROUND))
		return "a swap-in has it, and no job is under way";
	if (check->when == CHECK_AT_REST && (word & PAGE_FILLING))
		return "FILLING, and no thread could be filling it";
	if ((word & PAGE_WAITER) && !(word & (PAGE_FILLING | PAGE_PUNCHING)) && !is_being_lifted(word))
		return "somebody waits, and nobody will wake it";
	return NULL;
}

/* Nobody lifts markers of a page outside these. While threads run, one may have taken the range. */
static bool will_be_lifted(const struct check *check, uint64_t page_idx)
{
	const struct vm *vm = check->vm;

	return check->when != CHECK_AT_REST || (atomic_load(&vm->lift_wanted) &&
						page_idx >= vm->lift_from_idx && page_idx < vm->lift_end_idx);
}

static const char *wrong_state(struct check *check, uint64_t page_idx, uint64_t word)
{
	const struct vm *vm = check->vm;

	switch (page_state_of(word)) {
	case PAGE_STORED:
	case PAGE_MOVED:
		check->stored_pages++;
		return vm->tracking ? NULL : "it is out, and guest memory is not registered";
	case PAGE_POISONED:
		check->poisoned_pages++;
		if (is_being_lifted(word) && !will_be_lifted(check, page_idx))
			return "its markers are to be lifted, and nobody will";
		return vm->tracking ? NULL : "it is out, and guest memory is not registered";
	case PAGE_KEPT:
		check->kept_pages++;
		return vm->tracking && !check->backing->stays ? NULL :
								"a copy is kept where writes are not seen";
	case PAGE_IN_MEMFD:
	case PAGE_PROTECTED:
		break;
	}
	return NULL;
}

static int check_page(struct check *check, uint64_t page_idx, uint64_t word)
{
	enum page_state state = page_state_of(word);
	uint64_t slot_idx = page_slot_of(word);
	const char *wrong;

	if (!page_word_is_sane(state, slot_idx, word & (PAGE_FLAGS | PAGE_GIVEN_UP)))
		return is_wrong(check, page_idx, word, "state, slot and flags do not go together");
	wrong = wrong_flags(check, word);
	if (!wrong)
		wrong = wrong_state(check, page_idx, word);
	if (wrong)
		return is_wrong(check, page_idx, word, wrong);
	if (state == PAGE_STORED || state == PAGE_KEPT ||
	    (state == PAGE_POISONED && slot_idx != PAGE_SLOT_NONE))
		return note_slot(check, slot_idx);
	return 0;
}

static int check_pages(struct check *check)
{
	struct vm *vm = check->vm;

	for (size_t i = 0; i < vm->memory.regions_n; i++) {
		const struct region *region = &vm->memory.regions[i];
		uint64_t end_idx = region->page_idx + region->pages;

		check->backing = region->backing;
		for (struct used_pages at = used_pages(vm->map, region->page_idx, end_idx);
		     used_pages_next(&at);) {
			int rc = check_page(check, at.page_idx, page_word(vm, at.page_idx));

			if (rc)
				return rc;
		}
	}
	return 0;
}

/* While a job moves a page between counters, a counter may be too large but never too small: page.h. */
static int check_counter(struct check *check, const char *what, uint64_t counted, uint64_t found)
{
	if (counted == found || (check->when == CHECK_ANY_TIME && counted > found))
		return 0;
	return error_set(check->err, EPROTO, "%" PRIu64 " pages are %s, and %" PRIu64 " are counted", found,
			 what, counted);
}

static int by_slot(const void *one, const void *other)
{
	uint64_t a = *(const uint64_t *)one, b = *(const uint64_t *)other;

	return (a > b) - (a < b);
}

static int check_slots(struct check *check)
{
	struct store_account account;
	uint64_t found;

	if (check->slots_n)
		qsort(check->slots, check->slots_n, sizeof check->slots[0], by_slot);
	for (size_t i = 1; i < check->slots_n; i++)
		if (check->slots[i] == check->slots[i - 1] && !store_slot_is_shared(check->slots[i]))
			return error_set(check->err, EPROTO, "slot %" PRIu64 " is two pages'",
					 check->slots[i]);
	store_account(check->vm->store, &account);
	found = check->slots_n - check->shared_slots_n;
	/* Compaction asks nobody: it puts a page's new record before it drops the old one. */
	if (check->when != CHECK_AT_REST && account.used_slots > found)
		return 0;
	return check_counter(check, "in slots", account.used_slots, found);
}

static int check_counters(struct check *check)
{
	struct vm *vm = check->vm;
	int rc = check_counter(check, "stored", atomic_load(&vm->stored_pages), check->stored_pages);

	if (!rc)
		rc = check_counter(check, "poisoned", atomic_load(&vm->poisoned_pages),
				   check->poisoned_pages);
	if (!rc)
		rc = check_counter(check, "kept", atomic_load(&vm->kept_pages), check->kept_pages);
	return rc ? rc : check_slots(check);
}

static bool is_in_a_region(const struct vm *vm, uint64_t page_idx, uint64_t pages)
{
	const struct region *region = memory_region_of(&vm->memory, page_idx);

	return region && pages <= region->page_idx + region->pages - page_idx;
}

static int check_process(struct check *check, const struct process *process)
{
	for (size_t i = 0; i < process->ranges_n; i++) {
		const struct range *range = &process->ranges[i], *next = range + 1;

		if (!range->pages || !is_in_a_region(check->vm, range->page_idx, range->pages))
			return error_set(check->err, EPROTO,
					 "process %u has a range at %#" PRIx64 " that is no guest memory",
					 process->id, range->addr);
		if (i + 1 < process->ranges_n && next->addr < range->addr + bytes_of_pages(range->pages))
			return error_set(check->err, EPROTO, "process %u has two ranges at %#" PRIx64,
					 process->id, next->addr);
	}
	return 0;
}

static int check_processes(struct check *check)
{
	const struct address_spaces *spaces = &check->vm->spaces;
	uint64_t living = 0;

	for (size_t i = 0; i < spaces->n; i++) {
		int rc = check_process(check, spaces->processes[i]);

		if (rc)
			return rc;
		living += !spaces->processes[i]->gone;
	}
	if (living != atomic_load(&spaces->living))
		return error_set(check->err, EPROTO,
				 "%" PRIu64 " processes live, and %" PRIu64 " are counted", living,
				 atomic_load(&spaces->living));
	return 0;
}

static int check_rest(struct check *check)
{
	struct vm *vm = check->vm;

	if (vm->tracking != !!atomic_load(&page_map_header(vm->map)->tracking))
		return error_set(check->err, EPROTO,
				 "a successor would not know whether guest memory is registered");
	if (check->when != CHECK_ANY_TIME && vm->punching)
		return error_set(check->err, EPROTO,
				 "page %" PRIu64 " is listed as PUNCHING, and no job is under way",
				 vm->punching->page_idx);
	for (uint32_t i = 0; i < vm->removals.n; i++) {
		const struct removal *removal = &vm->removals.list[i];

		if (!is_in_a_region(vm, removal->page_idx, removal->end_idx - removal->page_idx))
			return error_set(check->err, EPROTO,
					 "page %" PRIu64 " was given up and is no guest memory",
					 removal->page_idx);
	}
	return 0;
}

int vm_check(struct vm *vm, enum check_when when, struct error *err)
{
	struct check check = { .vm = vm, .when = when, .err = err };
	int rc;

	gate_hold_alone(vm->gate);
	rc = check_pages(&check);
	if (!rc)
		rc = check_counters(&check);
	if (!rc)
		rc = check_processes(&check);
	if (!rc)
		rc = check_rest(&check);
	gate_release(vm->gate);
	free(check.slots);
	return rc;
}
#endif
