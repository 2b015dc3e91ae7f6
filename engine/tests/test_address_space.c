/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Where processes map guest memory, against a model that has one entry for each address; and the walk over
 * that: process by process, in runs that are contiguous there. */
#include "vm/address_space.h"

#include <sys/eventfd.h>

#include "base/held.h"
#include "harness.h"

static struct address_spaces spaces;

struct step {
	uint32_t process_id;
	uint64_t addr, pages;
};

static struct process *add_process(void)
{
	struct process *process = address_space_add(&spaces, (int)CHECK_SYS(eventfd(0, EFD_CLOEXEC)));

	CHECK(process);
	return process;
}

static void check_steps(struct mapped at, const struct step *steps, size_t steps_n)
{
	size_t n = 0;

	for (; mapped_next(&at); n++) {
		CHECK(n < steps_n);
		CHECK_EQ(at.process->id, steps[n].process_id);
		CHECK_EQ(at.addr, steps[n].addr);
		CHECK_EQ(at.pages, steps[n].pages);
	}
	CHECK_EQ(n, steps_n);
}

#define CHECK_STEPS(walk, ...)                                  \
	check_steps(walk, (const struct step[]){ __VA_ARGS__ }, \
		    sizeof((const struct step[]){ __VA_ARGS__ }) / sizeof(struct step))

/* Process 0 maps pages 0 to 15 in two places with a gap in between, 1 none, 2 all in one, 3 is gone. */
static void begin(void)
{
	struct process *process;

	HELD_TAKE(HELD_GATE_ALONE); /* nobody else is there */
	process = add_process();
	CHECK_OK(process_add_range(process, (struct range){ 0x100000, 8, 8 }));
	CHECK_OK(process_add_range(process, (struct range){ 0x200000, 0, 6 }));
	add_process();
	CHECK_OK(process_add_range(add_process(), (struct range){ 0x300000, 0, 16 }));
	process = add_process();
	CHECK_OK(process_add_range(process, (struct range){ 0x400000, 0, 16 }));
	process->gone = true;
}

static void end(void)
{
	address_spaces_destroy(&spaces);
	HELD_DROP(HELD_GATE_ALONE);
}

TEST(everywhere)
{
	begin();
	CHECK_STEPS(mapped_everywhere(&spaces, 0, 16), { 0, 0x200000, 6 }, { 0, 0x100000, 8 },
		    { 2, 0x300000, 16 });
	CHECK_STEPS(mapped_everywhere(&spaces, 5, 4), { 0, 0x205000, 1 }, { 0, 0x100000, 1 },
		    { 2, 0x305000, 4 });
	CHECK_STEPS(mapped_everywhere(&spaces, 6, 1), { 2, 0x306000, 1 });
	check_steps(mapped_everywhere(&spaces, 16, 4), NULL, 0);
	check_steps(mapped_everywhere(&spaces, 3, 0), NULL, 0);
	end();
}

TEST(in_one_process)
{
	begin();
	CHECK_STEPS(mapped_in(spaces.processes[0], 0, 16), { 0, 0x200000, 6 }, { 0, 0x100000, 8 });
	check_steps(mapped_in(spaces.processes[1], 0, 16), NULL, 0);
	check_steps(mapped_in(spaces.processes[3], 0, 16), NULL, 0);
	end();
}

/* An ioctl says ESRCH in the middle of a walk. */
TEST(a_process_that_ends_meanwhile)
{
	struct mapped at;

	begin();
	at = mapped_everywhere(&spaces, 0, 16);
	CHECK(mapped_next(&at));
	at.process->gone = true;
	CHECK_STEPS(at, { 2, 0x300000, 16 });
	end();
}

/* --- ranges come, move and go */

#define BASE ((uint64_t)1 << 30)
#define PLACES 96 /* addresses that are tried, a page each */
#define NOT_MAPPED UINT64_MAX

static uint64_t model[PLACES]; /* the page that is mapped at BASE + i pages */

static uint64_t addr_of(uint64_t place)
{
	return BASE + bytes_of_pages(place);
}

static uint64_t random_below(uint64_t *state, uint64_t end)
{
	*state = *state * 6364136223846793005u + 1442695040888963407u;
	return (*state >> 33) % end;
}

static bool is_free(uint64_t place, uint64_t pages)
{
	for (uint64_t i = place; i < place + pages; i++)
		if (model[i] != NOT_MAPPED)
			return false;
	return true;
}

static void unmap(uint64_t place, uint64_t pages)
{
	for (uint64_t i = place; i < place + pages; i++)
		model[i] = NOT_MAPPED;
}

static void check_ranges(const struct process *process)
{
	for (size_t i = 0; i < process->ranges_n; i++) {
		const struct range *range = &process->ranges[i];

		CHECK(range->pages > 0);
		CHECK(i == 0 || process->ranges[i - 1].addr + bytes_of_pages(process->ranges[i - 1].pages) <=
					range->addr);
	}
}

static void check_against_model(const struct process *process)
{
	for (uint64_t place = 0; place < PLACES; place++) {
		uint64_t page_idx = NOT_MAPPED, addr;

		CHECK_EQ(process_page_at(process, addr_of(place) + 4095, &page_idx),
			 model[place] != NOT_MAPPED);
		CHECK_EQ(page_idx, model[place]);
		if (page_idx == NOT_MAPPED)
			continue;
		CHECK_EQ(process_addr_of(process, page_idx, 1, &addr), 1);
		CHECK_EQ(addr, addr_of(place));
	}
	check_ranges(process);
}

/* Each page is mapped at one address at most, as the engine sees to. */
static void add_somewhere(struct process *process, uint64_t *state)
{
	static uint64_t next_page_idx;
	uint64_t place = random_below(state, PLACES - 12), pages = 1 + random_below(state, 12);
	struct range range = { addr_of(place), next_page_idx, pages };

	CHECK_EQ(process_add_range(process, range), is_free(place, pages) ? 0 : -EEXIST);
	if (!is_free(place, pages))
		return;
	CHECK(process_has_range(process, &range));
	next_page_idx += pages + 1;
	for (uint64_t i = 0; i < pages; i++)
		model[place + i] = range.page_idx + i;
}

static void forget_somewhere(struct process *process, uint64_t *state)
{
	uint64_t place = random_below(state, PLACES - 20), pages = 1 + random_below(state, 20);

	CHECK_OK(process_forget(process, addr_of(place), addr_of(place + pages)));
	unmap(place, pages);
}

/* mremap() takes away what was mapped at its destination; the two do not overlap. */
static void move_somewhere(struct process *process, uint64_t *state)
{
	uint64_t half = PLACES / 2, pages = 1 + random_below(state, 20);
	uint64_t from = random_below(state, half - 20), to = half + random_below(state, half - 20),
		 swap = from;
	uint64_t moved[20];

	if (random_below(state, 2)) {
		from = to;
		to = swap;
	}
	CHECK_OK(process_move(process, addr_of(from), addr_of(to), bytes_of_pages(pages)));
	memcpy(moved, &model[from], pages * sizeof *moved);
	unmap(from, pages);
	memcpy(&model[to], moved, pages * sizeof *moved);
}

TEST(ranges_are_followed)
{
	struct process process = { .uffd = -1 };
	uint64_t state = 1;

	unmap(0, PLACES);
	for (unsigned step = 0; step < 4000; step++) {
		switch (random_below(&state, 3)) {
		case 0:
			add_somewhere(&process, &state);
			break;
		case 1:
			forget_somewhere(&process, &state);
			break;
		default:
			move_somewhere(&process, &state);
		}
		check_against_model(&process);
	}
	free(process.ranges);
}

/* Ranges of one region, which is removed, among others. */
TEST(pages_of_a_region_are_forgotten)
{
	struct process process = { .uffd = -1 };
	uint64_t page_idx;

	CHECK_OK(process_add_range(&process, (struct range){ addr_of(0), 50, 4 }));
	CHECK_OK(process_add_range(&process, (struct range){ addr_of(10), 100, 4 }));
	CHECK_OK(process_add_range(&process, (struct range){ addr_of(20), 110, 4 }));
	CHECK_OK(process_add_range(&process, (struct range){ addr_of(30), 120, 4 }));
	process_forget_pages(&process, 100, 20);
	CHECK_EQ(process.ranges_n, 2);
	CHECK(process_page_at(&process, addr_of(3), &page_idx) && page_idx == 53);
	CHECK(process_page_at(&process, addr_of(30), &page_idx) && page_idx == 120);
	CHECK(!process_page_at(&process, addr_of(10), &page_idx) &&
	      !process_page_at(&process, addr_of(20), &page_idx));
	free(process.ranges);
}

/* A process's number is never used again: a fault that is on its way must not meet another process. */
TEST(processes_come_and_go)
{
	struct address_spaces all = { 0 };
	uint32_t ids[20];

	HELD_TAKE(HELD_GATE_ALONE);
	for (size_t i = 0; i < 20; i++)
		ids[i] = address_space_add(&all, dup(0))->id;
	for (size_t i = 0; i < 20; i += 2)
		address_space_remove(&all, ids[i]);
	CHECK_EQ(atomic_load(&all.living), 10);
	for (size_t i = 0; i < 20; i++)
		CHECK_EQ(address_space_find(&all, ids[i]) != NULL, i % 2);
	CHECK(address_space_add(&all, dup(0))->id > ids[19]);
	address_space_find(&all, ids[1])->gone = true;
	atomic_fetch_sub(&all.living, 1);
	address_space_remove(&all, ids[1]);
	CHECK_EQ(atomic_load(&all.living), 10);
	HELD_DROP(HELD_GATE_ALONE);
	address_spaces_destroy(&all);
}
