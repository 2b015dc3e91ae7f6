/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "vm/gate.h"

#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/failpoint.h"
#include "base/held.h"
#include "base/relax.h"

/* A lane's word. Its thread sets PASSING unless the lane is CLOSED; a holder closes the lane and waits until
 * nobody is PASSING. Only one of the two sleeps on the word at a time. */
#define PASSING 1u
#define CLOSED 2u
#define WAITS 4u /* the lane's thread wants to pass: it is being overtaken */
#define THREAD_SLEEPS 8u
#define HOLDER_SLEEPS 16u

#define LATE_WAKES_MAX 16

struct lane {
	_Alignas(64) _Atomic uint32_t word; /* a cache line each, so that passing costs no traffic */
	uint32_t overtaken; /* holders that have overtaken it since it waits; theirs to count */
	struct lane *next;
};

/* Holders take turns in the order of their arrival: `ticket` is the next one's number, `turn` is the one
 * whose turn it is. */
struct gate {
	_Atomic uint32_t ticket, turn, sleepers;
	struct lane *lanes; /* changes in a holder's turn */
};

static void futex_wait(_Atomic uint32_t *word, uint32_t seen)
{
	syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, seen, NULL, NULL, 0);
}

static void futex_wake(_Atomic uint32_t *word)
{
	syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
}

static void take_turn(struct gate *gate)
{
	uint32_t mine = atomic_fetch_add(&gate->ticket, 1), turn;

	for (unsigned spins = 0; (turn = atomic_load(&gate->turn)) != mine; spins++) {
		if (spins < RELAX_SPINS) {
			relax();
			continue;
		}
		atomic_fetch_add(&gate->sleepers, 1);
		futex_wait(&gate->turn, turn);
		atomic_fetch_sub(&gate->sleepers, 1);
	}
}

static void end_turn(struct gate *gate)
{
	atomic_fetch_add(&gate->turn, 1);
	if (atomic_load(&gate->sleepers))
		futex_wake(&gate->turn);
}

int gate_create(struct gate **out)
{
	*out = calloc(1, sizeof **out);
	return *out ? 0 : -ENOMEM;
}

void gate_destroy(struct gate *gate)
{
	free(gate);
}

int gate_join(struct gate *gate, struct lane **out)
{
	struct lane *lane = aligned_alloc(64, sizeof *lane);

	if (!lane)
		return -ENOMEM;
	atomic_init(&lane->word, 0);
	lane->overtaken = 0;
	take_turn(gate);
	lane->next = gate->lanes;
	gate->lanes = lane;
	end_turn(gate);
	*out = lane;
	return 0;
}

void gate_part(struct gate *gate, struct lane *lane)
{
	struct lane **at = &gate->lanes;

	if (!lane)
		return;
	take_turn(gate);
	while (*at != lane)
		at = &(*at)->next;
	*at = lane->next;
	end_turn(gate);
	free(lane);
}

/* Wait until the lane is open, or until a holder lets us pass before the next one. */
static void wait_to_pass(struct lane *lane)
{
	for (unsigned spins = 0;; spins++) {
		uint32_t seen = atomic_load(&lane->word);

		if (seen & PASSING)
			return;
		if (!(seen & CLOSED)) {
			if (atomic_compare_exchange_weak(&lane->word, &seen, PASSING))
				return;
		} else if (!(seen & WAITS)) {
			atomic_compare_exchange_weak(&lane->word, &seen, seen | WAITS);
		} else if (spins < RELAX_SPINS) {
			relax();
		} else if ((seen & THREAD_SLEEPS) ||
			   atomic_compare_exchange_weak(&lane->word, &seen, seen | THREAD_SLEEPS)) {
			futex_wait(&lane->word, seen | THREAD_SLEEPS);
		}
	}
}

void gate_pass(struct gate *gate, struct lane *lane)
{
	uint32_t open = 0;

	(void)gate;
	HELD_TAKE(HELD_GATE);
	if (!atomic_compare_exchange_strong_explicit(&lane->word, &open, PASSING, memory_order_acquire,
						     memory_order_relaxed))
		wait_to_pass(lane);
}

void gate_leave(struct gate *gate, struct lane *lane)
{
	uint32_t seen = atomic_fetch_sub_explicit(&lane->word, PASSING, memory_order_release);

	(void)gate;
	if (seen & HOLDER_SLEEPS) {
		atomic_fetch_and(&lane->word, ~HOLDER_SLEEPS);
		futex_wake(&lane->word);
	}
	HELD_DROP(HELD_GATE);
}

static void wait_until_passed(struct lane *lane)
{
	uint32_t seen;

	for (unsigned spins = 0; (seen = atomic_load(&lane->word)) & PASSING; spins++) {
		if (spins < RELAX_SPINS)
			relax();
		else if ((seen & HOLDER_SLEEPS) ||
			 atomic_compare_exchange_weak(&lane->word, &seen, seen | HOLDER_SLEEPS))
			futex_wait(&lane->word, seen | HOLDER_SLEEPS);
	}
}

void gate_hold_alone(struct gate *gate)
{
	HELD_TAKE(HELD_GATE_ALONE);
	take_turn(gate);
	for (struct lane *lane = gate->lanes; lane; lane = lane->next)
		atomic_fetch_or(&lane->word, CLOSED);
	FAILPOINT_HERE("gate.closed");
	for (struct lane *lane = gate->lanes; lane; lane = lane->next)
		wait_until_passed(lane);
}

/* Open the lane. A thread that was overtaken often enough is inside from now on, and the next holder waits
 * for it. True if the lane's thread sleeps. */
static bool open_lane(struct lane *lane)
{
	uint32_t seen = atomic_load(&lane->word), next;

	do {
		lane->overtaken = seen & WAITS ? lane->overtaken : 0;
		next = (seen & WAITS) && lane->overtaken + 1 >= GATE_OVERTAKES_MAX ?
			       PASSING :
			       seen & ~(CLOSED | THREAD_SLEEPS);
	} while (!atomic_compare_exchange_weak(&lane->word, &seen, next));
	lane->overtaken = (seen & WAITS) && next != PASSING ? lane->overtaken + 1 : 0;
	return seen & THREAD_SLEEPS;
}

/* Who is woken up may get this thread's processor, for a whole time slice. So the turn ends first: else the
 * next holder, who reads page faults, would wait for as long. By then a lane may have been given up, and its
 * thread woken up by nobody's call: the kernel only compares the address with those that threads sleep at. */
void gate_release(struct gate *gate)
{
	_Atomic uint32_t *asleep[LATE_WAKES_MAX];
	size_t asleep_n = 0;

	for (struct lane *lane = gate->lanes; lane; lane = lane->next) {
		if (!open_lane(lane))
			continue;
		if (asleep_n < LATE_WAKES_MAX)
			asleep[asleep_n++] = &lane->word;
		else
			futex_wake(&lane->word);
	}
	end_turn(gate);
	HELD_DROP(HELD_GATE_ALONE);
	FAILPOINT_HERE("gate.opened");
	for (size_t i = 0; i < asleep_n; i++)
		futex_wake(asleep[i]);
}
