/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The check of the whole engine finds what is wrong with it: here, what the test has planted in its page
 * map. */
#include "puppet.h"
#include "vm/page_map.h"

static const struct layout layout = { .memfd_pages = { 512 }, .regions = { { 0, 0, 512 } }, .full = 1 };

static struct rig rig;
static struct page_map *map; /* the engine's own memory, mapped once more */

static void begin(void)
{
	struct error err = { 0 };

	rig_start(&rig, &layout);
	CHECK_OK(page_map_adopt(engine_page_map_fd(rig.engine), &map, &err));
	rig_run_job(&rig, JOB_SWAP_OUT);
	if (engine_check(rig.engine, &err))
		FAIL("nothing is planted yet: %s", err.message);
}

static void end(void)
{
	page_map_destroy(map);
	rig_stop(&rig);
}

static uint64_t word_with(enum page_state state, uint64_t slot_idx, uint64_t flags)
{
	return (uint64_t)state << PAGE_STATE_SHIFT | slot_idx | flags;
}

/* Found as long as it is there. */
static void found(uint64_t page_idx, uint64_t word, const char *what)
{
	_Atomic uint64_t *at = page_map_word(map, page_idx);
	uint64_t before = atomic_exchange(at, word);
	struct error err = { 0 };

	CHECK_EQ(engine_check(rig.engine, &err), -EPROTO);
	CHECK_CONTAINS(err.message, what);
	atomic_store(at, before);
	CHECK_OK(engine_check(rig.engine, &err));
}

static uint64_t slot_of(uint64_t page_idx)
{
	return page_slot_of(atomic_load(page_map_word(map, page_idx)));
}

TEST(two_pages_in_one_slot)
{
	begin();
	found(3, word_with(PAGE_STORED, slot_of(4), 0), "two pages'");
	end();
}

TEST(a_counter_that_is_wrong)
{
	begin();
	found(3, word_with(PAGE_IN_MEMFD, 0, 0), "511 pages are stored, and 512 are counted");
	found(3, word_with(PAGE_POISONED, slot_of(3), 0), "511 pages are stored, and 512 are counted");
	puppet_do(&rig, 0, 0, (struct puppet_order){ .kind = ORDER_TOUCH, .page = 5 }); /* its copy is kept */
	rig_settle(&rig);
	found(5, word_with(PAGE_IN_MEMFD, 0, 0), "0 pages are kept, and 1 are counted");
	end();
}

TEST(a_word_that_cannot_be)
{
	begin();
	found(3, word_with(PAGE_KEPT, slot_of(3), PAGE_FILLING), "do not go together");
	found(3, word_with(PAGE_PROTECTED, 1, 0), "do not go together");
	found(3, word_with(7, 0, 0), "do not go together");
	end();
}

TEST(what_nobody_is_at)
{
	begin();
	found(3, word_with(PAGE_STORED, slot_of(3), PAGE_PUNCHING), "PUNCHING");
	found(3, word_with(PAGE_STORED, slot_of(3), PAGE_FILLING | PAGE_BACKGROUND), "a swap-in has it");
	found(3, word_with(PAGE_STORED, slot_of(3), PAGE_WAITER), "nobody will wake it");
	engine_stop(rig.engine);
	found(3, word_with(PAGE_STORED, slot_of(3), PAGE_FILLING), "FILLING");
	found(3, word_with(PAGE_POISONED, PAGE_SLOT_NONE, 0), "nobody will");
	end();
}

TEST(a_copy_that_must_not_be_kept)
{
	begin();
	rig_run_job(&rig, JOB_SWAP_IN); /* nothing is registered any more */
	found(3, word_with(PAGE_KEPT, 3, 0), "a copy is kept where writes are not seen");
	found(3, word_with(PAGE_STORED, 3, 0), "not registered");
	end();
}

/* The process that has it ends with that: no test of ours can pass over it. */
TEST(who_stops_the_engine_hears_of_it)
{
	char text[1024] = "";
	int ends[2], status;
	pid_t pid;

	CHECK_SYS(pipe(ends));
	pid = (pid_t)CHECK_SYS(fork());
	if (pid == 0) {
		begin();
		atomic_store(page_map_word(map, 3), word_with(PAGE_STORED, slot_of(4), 0));
		dup2(ends[1], STDERR_FILENO);
		engine_stop(rig.engine);
		_exit(0);
	}
	close(ends[1]);
	CHECK_EQ(waitpid(pid, &status, 0), pid);
	CHECK(WIFSIGNALED(status));
	CHECK_EQ(WTERMSIG(status), SIGABRT);
	CHECK_SYS(read(ends[0], text, sizeof text - 1));
	CHECK_CONTAINS(text, "bug: slot ");
	close(ends[0]);
}
