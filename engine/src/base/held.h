/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What this thread holds that a page fault needs, and a check that it meanwhile waits for nothing that a
 * guest, a disk or another process can delay. The rules are in vm/vm.h; this makes a test fail if one is
 * broken.
 *
 * Only compiled in with -DVMMSWAP_FAILPOINTS. Then a broken rule aborts the process, with both places
 * named. */
#ifndef VMMSWAP_HELD_H
#define VMMSWAP_HELD_H

enum held {
	HELD_GATE = 1,	     /* the gate is passed */
	HELD_GATE_ALONE = 2, /* the gate is held alone */
	HELD_FILLING = 4,    /* a page is FILLING and not BACKGROUND: no demand fault may take it over */
	HELD_PUNCHING = 8,   /* pages are PUNCHING */
};

enum wait_for {
	WAIT_INODE, /* the lock of a guest memfd's inode: lseek, fallocate, ftruncate, write */
	WAIT_PUNCH, /* the same lock, for the call that punches pages that are PUNCHING (jobs/punch.c) */
	WAIT_READ,  /* the store's disk, for bytes */
	WAIT_WRITE, /* the store's disk, for space */
	WAIT_TIME,  /* a clock, a condition, another thread or process */
};

#ifdef VMMSWAP_FAILPOINTS
void held_take(enum held what, const char *file, int line);
void held_drop(enum held what);
void held_may_wait(enum wait_for what, const char *file, int line);
void held_needs(unsigned any_of, const char *file, int line);
#define HELD_TAKE(what) held_take(what, __FILE__, __LINE__)
#define HELD_DROP(what) held_drop(what)
#define HELD_MAY_WAIT(what) held_may_wait(what, __FILE__, __LINE__)
/* At least one of these must be held: HELD_NEEDS(HELD_GATE | HELD_GATE_ALONE). */
#define HELD_NEEDS(any_of) held_needs(any_of, __FILE__, __LINE__)
#else
#define HELD_TAKE(what) ((void)0)
#define HELD_DROP(what) ((void)0)
#define HELD_MAY_WAIT(what) ((void)0)
#define HELD_NEEDS(any_of) ((void)0)
#endif

#endif
