/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Where pages are mapped: process by process, in runs that are contiguous there. */
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
