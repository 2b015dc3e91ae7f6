/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The changes of a page's word: what each counts, which slot it drops, and that no others can be made. */
#include "vm/page.h"

#include "base/held.h"
#include "harness.h"
#include "vm/poison.h"

static struct vm vm;
static _Alignas(PAGE_BYTES) char bytes[PAGE_BYTES];

/* Nobody else is there: the gate is held alone. */
static void begin(void)
{
	struct error err = { 0 };
	uint64_t first_idx;

	HELD_TAKE(HELD_GATE_ALONE);
	pthread_mutex_init(&vm.lift_lock, NULL);
	vm.given_up_ms = calloc(1, sizeof *vm.given_up_ms);
	CHECK(vm.given_up_ms);
	CHECK_OK(page_map_create(&vm.map, &err));
	CHECK_OK(page_map_add_pages(vm.map, 8, &first_idx, &err));
	HELD_DROP(HELD_GATE_ALONE);
	CHECK_OK(store_create(test_dir(), &vm.store, &err));
	HELD_TAKE(HELD_GATE_ALONE);
}

static void end(void)
{
	HELD_DROP(HELD_GATE_ALONE);
	page_map_destroy(vm.map);
	store_destroy(vm.store);
	free(vm.given_up_ms);
}

static uint64_t put(void)
{
	struct error err = { 0 };
	uint64_t slot_idx;

	HELD_DROP(HELD_GATE_ALONE);
	CHECK_OK(store_put(vm.store, &(const void *){ bytes }, NULL, 1, &slot_idx, &err));
	HELD_TAKE(HELD_GATE_ALONE);
	return slot_idx;
}

static void adopt_store(void)
{
	struct store *old = vm.store;
	struct error err = { 0 };

	CHECK_OK(store_adopt(store_fd(old), &vm.store, &err));
	store_destroy(old);
}

static void check_counts(uint64_t stored, uint64_t poisoned, uint64_t kept, uint64_t slots)
{
	struct store_account account;

	store_account(vm.store, &account);
	CHECK_EQ(atomic_load(&vm.stored_pages), stored);
	CHECK_EQ(atomic_load(&vm.poisoned_pages), poisoned);
	CHECK_EQ(atomic_load(&vm.kept_pages), kept);
	CHECK_EQ(pages_out(&vm), stored + poisoned);
	CHECK_EQ(account.used_slots, slots);
}

static void check_state(uint64_t page_idx, enum page_state state, uint64_t flags)
{
	CHECK_EQ(page_state_of(page_word(&vm, page_idx)), state);
	CHECK_EQ(page_word(&vm, page_idx) & (PAGE_FLAGS | PAGE_GIVEN_UP), flags);
}

static uint64_t mark_out(uint64_t page_idx)
{
	uint64_t word;

	CHECK(page_protect(&vm, page_idx, page_word(&vm, page_idx)));
	check_state(page_idx, PAGE_PROTECTED, 0);
	word = page_word(&vm, page_idx);
	CHECK(page_mark_out(&vm, page_idx, &word, put()));
	check_state(page_idx, PAGE_STORED, PAGE_PUNCHING);
	return word;
}

static void go_out(uint64_t page_idx)
{
	page_punched(&vm, page_idx, mark_out(page_idx));
	check_state(page_idx, PAGE_STORED, 0);
}

static uint64_t claim(uint64_t page_idx)
{
	uint64_t claimed;

	CHECK(page_claim(&vm, page_idx, page_word(&vm, page_idx), &claimed));
	CHECK_EQ(page_word(&vm, page_idx), claimed);
	return claimed;
}

TEST(out_and_back)
{
	begin();
	go_out(1);
	check_counts(1, 0, 0, 1);
	CHECK(page_filled(&vm, 1, claim(1)));
	check_state(1, PAGE_IN_MEMFD, 0);
	check_counts(0, 0, 0, 0);
	page_not_punched(&vm, 1, mark_out(1));
	check_state(1, PAGE_IN_MEMFD, 0);
	check_counts(0, 0, 0, 0);
	end();
}

TEST(many_come_back_at_once)
{
	uint64_t page_idx[4], claimed[4];

	begin();
	for (uint64_t i = 0; i < 4; i++) {
		go_out(i);
		page_idx[i] = i;
		CHECK(page_claim_background(&vm, i, page_word(&vm, i), &claimed[i]));
		CHECK(page_harden(&vm, i, &claimed[i]));
	}
	CHECK(page_soften(&vm, 3, &claimed[3]));
	check_state(3, PAGE_STORED, PAGE_FILLING | PAGE_BACKGROUND);
	check_counts(4, 0, 0, 4);
	pages_filled(&vm, page_idx, claimed, 3);
	check_counts(1, 0, 0, 1);
	CHECK(page_release(&vm, 3, claimed[3]));
	check_state(3, PAGE_STORED, 0);
	check_counts(1, 0, 0, 1);
	end();
}

TEST(a_copy_is_kept_until_the_page_is_written_to)
{
	uint64_t word;

	begin();
	go_out(1);
	CHECK(page_kept(&vm, 1, claim(1)));
	check_counts(0, 0, 1, 1);
	word = page_word(&vm, 1);
	CHECK(page_mark_out(&vm, 1, &word, page_slot_of(word)));
	page_punched(&vm, 1, word);
	check_counts(1, 0, 0, 1);
	CHECK(page_kept(&vm, 1, claim(1)));
	CHECK(page_release(&vm, 1, claim(1)));
	check_state(1, PAGE_IN_MEMFD, 0);
	check_counts(0, 0, 0, 0);
	go_out(1);
	CHECK(page_kept(&vm, 1, claim(1)));
	CHECK(page_drop_copy(&vm, 1, page_word(&vm, 1)));
	check_counts(0, 0, 0, 0);
	end();
}

TEST(a_poisoned_page_is_out_until_its_markers_are_lifted)
{
	begin();
	go_out(1);
	CHECK(page_poison(&vm, 1, claim(1)));
	check_counts(0, 1, 0, 1);
	CHECK(page_filled(&vm, 1, claim(1)));
	CHECK(is_being_lifted(page_word(&vm, 1)));
	CHECK(atomic_load(&vm.lift_wanted));
	check_counts(0, 1, 0, 0);
	page_give_up(&vm, 1, 7); /* nothing is left to give up */
	CHECK(is_being_lifted(page_word(&vm, 1)));
	CHECK(page_lifted(&vm, 1, claim(1)));
	check_state(1, PAGE_IN_MEMFD, 0);
	check_counts(0, 0, 0, 0);
	end();
}

TEST(what_is_given_up_stays_noted)
{
	uint64_t marked;

	begin();
	page_give_up(&vm, 0, 5);
	CHECK(page_release(&vm, 0, claim(0))); /* a write before the hole is there */
	check_state(0, PAGE_IN_MEMFD, PAGE_GIVEN_UP);
	CHECK_EQ(page_slot_of(page_word(&vm, 0)), 5);
	CHECK(page_filled(&vm, 0, claim(0))); /* the hole was there */
	check_state(0, PAGE_IN_MEMFD, 0);

	marked = mark_out(1); /* a punch under way goes on */
	page_give_up(&vm, 1, 7);
	check_state(1, PAGE_IN_MEMFD, PAGE_GIVEN_UP | PAGE_PUNCHING);
	check_counts(0, 0, 0, 0);
	page_punched(&vm, 1, marked);
	check_state(1, PAGE_IN_MEMFD, PAGE_GIVEN_UP);

	atomic_store(&vm.given_up_ms[0], 9); /* of all pages that nothing else is known of */
	CHECK(page_release(&vm, 3, claim(3)));
	check_state(3, PAGE_IN_MEMFD, PAGE_GIVEN_UP);
	CHECK_EQ(page_slot_of(page_word(&vm, 3)), 9);

	go_out(2); /* as do markers */
	CHECK(page_poison(&vm, 2, claim(2)));
	page_give_up(&vm, 2, 7);
	CHECK(is_being_lifted(page_word(&vm, 2)));
	check_counts(0, 1, 0, 0);
	end();
}

/* A REMOVE took it, and a fault that reads it now has what it came for. */
TEST(a_claim_that_was_lost_changes_nothing)
{
	uint64_t claimed, soft, word;

	begin();
	go_out(1);
	go_out(2);
	claimed = claim(1);
	CHECK(page_claim_background(&vm, 2, page_word(&vm, 2), &soft));
	page_give_up(&vm, 1, 7);
	page_give_up(&vm, 2, 7);
	go_out(1);
	check_counts(1, 0, 0, 1);
	CHECK(!page_filled(&vm, 1, claimed));
	CHECK(!page_kept(&vm, 1, claimed));
	CHECK(!page_poison(&vm, 1, claimed));
	CHECK(!page_release(&vm, 1, claimed));
	CHECK(!page_harden(&vm, 2, &soft));
	CHECK_EQ(soft, 0);
	word = claimed & ~PAGE_FILLING; /* as the page was once */
	CHECK(!page_claim(&vm, 1, word, &claimed));
	CHECK(!page_drop_copy(&vm, 1, word));
	check_counts(1, 0, 0, 1);
	end();
}

TEST(a_successor_counts_what_it_finds)
{
	uint64_t words[5];

	begin();
	go_out(0);
	go_out(1);
	go_out(2);
	go_out(3);
	words[0] = mark_out(4);
	words[1] = claim(1);
	CHECK(page_poison(&vm, 2, claim(2)));
	words[2] = page_word(&vm, 2);
	CHECK(page_kept(&vm, 3, claim(3)));
	words[3] = page_word(&vm, 3);
	page_give_up(&vm, 5, 9);
	vm.stored_pages = vm.poisoned_pages = vm.kept_pages = 0;
	adopt_store();
	CHECK_OK(page_recover_out(&vm, 4, words[0]));
	check_state(4, PAGE_STORED, 0);
	CHECK_OK(page_recover_out(&vm, 1, words[1]));
	check_state(1, PAGE_STORED, 0);
	CHECK_EQ(page_recover_out(&vm, 0, words[1]), -EEXIST);
	page_recover_resident(&vm, 2, words[2]);
	CHECK(is_being_lifted(page_word(&vm, 2)));
	page_recover_resident(&vm, 3, words[3]);
	check_state(3, PAGE_IN_MEMFD, 0);
	page_recover_resident(&vm, 5, page_word(&vm, 5));
	check_state(5, PAGE_IN_MEMFD, PAGE_GIVEN_UP);
	CHECK_EQ(atomic_load(&vm.stored_pages), 2);
	CHECK_EQ(atomic_load(&vm.poisoned_pages), 1);
	CHECK_EQ(atomic_load(&vm.kept_pages), 0);
	end();
}

static void punch_what_is_filled(void)
{
	uint64_t claimed = claim(1);

	page_mark_out(&vm, 1, &claimed, 3);
}

static void claim_twice(void)
{
	claim(1);
	claim(1);
}

static void protect_what_is_out(void)
{
	page_protect(&vm, 1, page_word(&vm, 1));
}

static void keep_what_was_never_out(void)
{
	page_kept(&vm, 0, claim(0));
}

static void release_what_was_not_claimed(void)
{
	page_release(&vm, 2, page_word(&vm, 2));
}

static void name_a_slot_that_is_none(void)
{
	page_begin_out(&vm, 0, PAGE_SLOT_MASK + 1);
}

/* The process aborts, having said that it is a bug. */
static void is_caught(void (*run)(void))
{
	char text[1024] = "";
	int ends[2], status;
	pid_t pid;

	CHECK_SYS(pipe(ends));
	pid = (pid_t)CHECK_SYS(fork());
	if (pid == 0) {
		dup2(ends[1], STDERR_FILENO);
		run();
		_exit(0);
	}
	close(ends[1]);
	CHECK_EQ(waitpid(pid, &status, 0), pid);
	CHECK(WIFSIGNALED(status));
	CHECK_EQ(WTERMSIG(status), SIGABRT);
	CHECK_SYS(read(ends[0], text, sizeof text - 1));
	CHECK_CONTAINS(text, "bug: ");
	close(ends[0]);
}

TEST(a_way_that_there_is_not_is_caught)
{
	begin();
	go_out(1); /* the child's changes are in the map, too */
	go_out(2);
	is_caught(punch_what_is_filled);
	is_caught(claim_twice);
	is_caught(protect_what_is_out);
	is_caught(keep_what_was_never_out);
	is_caught(release_what_was_not_claimed);
	is_caught(name_a_slot_that_is_none);
	end();
}
