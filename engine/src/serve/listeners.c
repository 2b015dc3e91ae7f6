/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "serve/listeners.h"

#include <limits.h>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "base/failpoint.h"
#include "base/held.h"

#define NAP_NS 2000000
#define PAUSE_NS NAP_NS	   /* the guest did something else, or waited for its processor */
#define PACE_NS_MAX 100000 /* a guest that raises page faults more seldom does not wait for them */
#define TURN_READS 20	   /* before it is decided anew who listens */
#define ENOUGH_TIMED 4	   /* to see that a way is no good */
#define FIRST_TIMED 3	   /* those before it may still have woken the threads of the turn before */
/* How many turns before all ways are tried again: few at first, as what was timed may have been disturbed;
 * then twice as many each time. */
#define TURNS_FIRST 16
#define TURNS_MAX 512
#define SLOW_MAX 3 /* turns in a row, and they are as well */

void listeners_start(struct listeners *listeners, size_t n)
{
	listeners->n = n;
	listeners->turn_way = (uint32_t)n;
	listeners->turns_max = TURNS_FIRST;
	atomic_init(&listeners->way, (uint32_t)n);
}

static void begin_turn(struct listeners *listeners, uint32_t way)
{
	listeners->turn_way = way;
	listeners->turn_reads_n = 0;
	listeners->turn_timed_n = 0;
	listeners->turn_ns = 0;
}

static void set_way(struct listeners *listeners, uint32_t way)
{
	begin_turn(listeners, way);
	if (atomic_exchange(&listeners->way, way) != way)
		syscall(SYS_futex, &listeners->way, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
}

static void try_all_again(struct listeners *listeners, unsigned turns_max)
{
	for (size_t i = 0; i <= listeners->n; i++)
		listeners->pace_ns[i] = 0;
	listeners->slow_n = 0;
	listeners->turns_n = 0;
	listeners->turns_max = turns_max < TURNS_MAX ? turns_max : TURNS_MAX;
}

/* The first one that is to be tried, else the fastest. All listen unless a thread alone is faster by an
 * eighth. */
static uint32_t choose(const struct listeners *listeners)
{
	const uint32_t *pace_ns = listeners->pace_ns;
	uint32_t best = (uint32_t)listeners->n, best_ns = pace_ns[best] - pace_ns[best] / 8;

	for (uint32_t i = 0; i < listeners->n; i++) {
		if (!pace_ns[i])
			return i;
		if (pace_ns[i] < best_ns) {
			best = i;
			best_ns = pace_ns[i];
		}
	}
	return best;
}

static uint32_t turn_pace_ns(const struct listeners *listeners)
{
	if (!listeners->turn_timed_n)
		return PACE_NS_MAX;
	return (uint32_t)(listeners->turn_ns / listeners->turn_timed_n) + 1;
}

/* A way that is tried, and takes twice as long as another. */
static bool is_hopeless(const struct listeners *listeners)
{
	if (listeners->pace_ns[listeners->turn_way] || listeners->turn_timed_n < ENOUGH_TIMED)
		return false;
	for (size_t i = 0; i <= listeners->n; i++)
		if (listeners->pace_ns[i] && turn_pace_ns(listeners) / 2 > listeners->pace_ns[i])
			return true;
	return false;
}

/* One slow turn may be chance. */
static bool became_slower(struct listeners *listeners, uint32_t now_ns)
{
	uint32_t before_ns = listeners->pace_ns[listeners->turn_way];

	if (!before_ns || now_ns <= before_ns + before_ns / 2)
		listeners->slow_n = 0;
	else if (++listeners->slow_n == SLOW_MAX) {
		listeners->slow_n = 0;
		return true;
	}
	return false;
}

static void end_turn(struct listeners *listeners)
{
	uint32_t now_ns = turn_pace_ns(listeners);

	if (FAILPOINT("listeners.turn")) {
		begin_turn(listeners, listeners->turn_way);
		return;
	}
	if (++listeners->turns_n > listeners->turns_max)
		try_all_again(listeners, 2 * listeners->turns_max);
	else if (became_slower(listeners, now_ns))
		try_all_again(listeners, listeners->turns_max);
	if (!listeners->slow_n)
		listeners->pace_ns[listeners->turn_way] = now_ns;
	set_way(listeners, choose(listeners));
}

/* Its turn is over, and none of the page faults that waited was timed: they look like a pause. Once may be
 * chance, unless it is all that is known of it. */
static void note_stuck(struct listeners *listeners)
{
	uint32_t stuck = atomic_exchange(&listeners->stuck, 0), *pace_ns;

	if (!stuck)
		return;
	pace_ns = &listeners->pace_ns[stuck - 1];
	*pace_ns = *pace_ns && *pace_ns < PACE_NS_MAX / 2 ? *pace_ns + *pace_ns / 2 : PACE_NS_MAX + 1;
}

void listeners_note(struct listeners *listeners, size_t waiting_n, uint64_t now_ns)
{
	uint64_t took_ns = now_ns - listeners->last_ns;
	uint32_t way = atomic_load(&listeners->way);

	if (listeners->n == 1)
		return;
	listeners->last_ns = now_ns;
	note_stuck(listeners);
	if (waiting_n > 1) {
		set_way(listeners, (uint32_t)listeners->n);
		return;
	}
	if (way != listeners->turn_way) /* a nap has ended that */
		begin_turn(listeners, way);
	if (++listeners->turn_reads_n > FIRST_TIMED && took_ns < PAUSE_NS) {
		listeners->turn_ns += took_ns < PACE_NS_MAX ? took_ns : PACE_NS_MAX;
		listeners->turn_timed_n++;
	}
	if (listeners->turn_reads_n == TURN_READS || is_hopeless(listeners))
		end_turn(listeners);
}

bool listeners_nap(struct listeners *listeners, size_t number, const _Atomic uint64_t *reads_n,
		   uint32_t *silent)
{
	uint32_t way = atomic_load_explicit(&listeners->way, memory_order_relaxed);
	uint64_t seen = atomic_load_explicit(reads_n, memory_order_relaxed);
	struct timespec most = { .tv_nsec = NAP_NS };

	if (number >= listeners->n || way == listeners->n || way == number)
		return false;
	FAILPOINT_HERE("listeners.nap");
	HELD_MAY_WAIT(WAIT_TIME);
	syscall(SYS_futex, &listeners->way, FUTEX_WAIT_PRIVATE, way, &most, NULL, 0);
	*silent = (uint32_t)listeners->n;
	if (atomic_load(reads_n) == seen && /* the guest pauses, or whoever listens is stuck */
	    atomic_compare_exchange_strong(&listeners->way, &way, (uint32_t)listeners->n))
		*silent = way;
	return true;
}

void listeners_stuck(struct listeners *listeners, uint32_t silent)
{
	if (silent < listeners->n)
		atomic_store(&listeners->stuck, silent + 1);
}
