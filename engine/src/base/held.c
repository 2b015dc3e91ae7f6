/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "base/held.h"

#ifdef VMMSWAP_FAILPOINTS

#include <stdio.h>
#include <stdlib.h>

#define KINDS_N 4

static const char *const held_names[KINDS_N] = { "the gate, passed", "the gate, alone", "a page FILLING",
						 "pages PUNCHING" };

static const struct {
	const char *name;
	unsigned may_hold; /* enum held */
} waits[] = {
	[WAIT_INODE] = { "the lock of a memfd's inode", 0 },
	[WAIT_PUNCH] = { "the lock of a memfd's inode, to punch", HELD_PUNCHING },
	/* the bytes that the fault itself waits for */
	[WAIT_READ] = { "a read of the store", HELD_FILLING },
	[WAIT_WRITE] = { "a write to the store", 0 },
	[WAIT_TIME] = { "a clock or another thread", 0 },
};

static _Thread_local unsigned held_now;
static _Thread_local const char *files[KINDS_N];
static _Thread_local int lines[KINDS_N];

static void tell_held(void)
{
	for (int i = 0; i < KINDS_N; i++)
		if (held_now >> i & 1)
			fprintf(stderr, "  holds %s since %s:%d\n", held_names[i], files[i], lines[i]);
}

void held_take(enum held what, const char *file, int line)
{
	unsigned gate = HELD_GATE | HELD_GATE_ALONE;

	if ((what & gate) && (held_now & gate)) {
		fprintf(stderr, "bug: %s:%d takes the gate twice\n", file, line);
		tell_held();
		abort();
	}
	held_now |= what;
	for (int i = 0; i < KINDS_N; i++) {
		if (!((unsigned)what >> i & 1))
			continue;
		files[i] = file;
		lines[i] = line;
	}
}

void held_drop(enum held what)
{
	held_now &= ~(unsigned)what;
}

void held_may_wait(enum wait_for what, const char *file, int line)
{
	if (!(held_now & ~waits[what].may_hold))
		return;
	fprintf(stderr, "bug: %s:%d may wait for %s, and page faults would wait for that, too\n", file, line,
		waits[what].name);
	tell_held();
	abort();
}

void held_needs(unsigned any_of, const char *file, int line)
{
	if (held_now & any_of)
		return;
	fprintf(stderr, "bug: %s:%d needs one of these to be held:\n", file, line);
	for (int i = 0; i < KINDS_N; i++)
		if (any_of >> i & 1)
			fprintf(stderr, "  %s\n", held_names[i]);
	tell_held();
	abort();
}

#endif
