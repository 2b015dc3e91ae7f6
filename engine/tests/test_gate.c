/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Who may go before whom at the gate: all bounds are counted, none is a time. */
#include "vm/gate.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <time.h>

#include "base/failpoint.h"
#include "harness.h"

#define PASSERS 3
#define PATIENCE_MS 60000

static struct gate *gate;
static _Atomic bool alone;	/* somebody holds the gate alone */
static _Atomic uint32_t inside; /* so many pass */

struct passer {
	pthread_t thread;
	_Atomic pid_t tid;
	_Atomic bool stop;
	_Atomic uint64_t passages;
};

static void *pass_again_and_again(void *argument)
{
	struct passer *self = argument;
	struct lane *lane;

	self->tid = gettid();
	CHECK_OK(gate_join(gate, &lane));
	while (!self->stop) {
		gate_pass(gate, lane);
		atomic_fetch_add(&inside, 1);
		CHECK(!alone);
		self->passages++;
		atomic_fetch_sub(&inside, 1);
		gate_leave(gate, lane);
	}
	gate_part(gate, lane);
	return NULL;
}

static void start_passer(struct passer *passer)
{
	CHECK_EQ(pthread_create(&passer->thread, NULL, pass_again_and_again, passer), 0);
	while (!passer->passages)
		sched_yield();
}

static void stop_passer(struct passer *passer)
{
	passer->stop = true;
	pthread_join(passer->thread, NULL);
}

static bool sleeps(pid_t tid)
{
	char path[64], text[256] = "";
	int fd;

	snprintf(path, sizeof path, "/proc/self/task/%d/stat", tid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	CHECK(fd >= 0 && read(fd, text, sizeof text - 1) > 0);
	close(fd);
	return strstr(text, ") S ") != NULL;
}

static void wait_until_it_sleeps(pid_t tid)
{
	for (int ms = 0; !sleeps(tid); ms++) {
		CHECK(ms < PATIENCE_MS);
		nanosleep(&(struct timespec){ .tv_nsec = 1000000 }, NULL);
	}
}

static void hold(void)
{
	gate_hold_alone(gate);
	CHECK(!inside);
	CHECK(!atomic_exchange(&alone, true));
}

static void release(void)
{
	alone = false;
	gate_release(gate);
}

static void *hold_once(void *argument)
{
	(void)argument;
	hold();
	release();
	return NULL;
}

/* The holder has closed the lanes and goes no further, for as long as the passers like. */
TEST(one_passage_of_each_lane_at_most_comes_before_a_holder)
{
	struct passer passers[PASSERS] = { 0 };
	uint64_t before[PASSERS];
	pthread_t holder;

	CHECK_OK(gate_create(&gate));
	for (int i = 0; i < PASSERS; i++)
		start_passer(&passers[i]);
	CHECK_OK(failpoint_arm("gate.closed=stall"));
	CHECK_EQ(pthread_create(&holder, NULL, hold_once, NULL), 0);
	while (!failpoint_hits("gate.closed"))
		sched_yield();
	for (int i = 0; i < PASSERS; i++)
		before[i] = passers[i].passages;
	for (int i = 0; i < PASSERS; i++)
		wait_until_it_sleeps(passers[i].tid);
	for (int i = 0; i < PASSERS; i++)
		CHECK(passers[i].passages <= before[i] + 1);

	CHECK_OK(failpoint_arm("gate.closed=off"));
	pthread_join(holder, NULL);
	for (int i = 0; i < PASSERS; i++)
		stop_passer(&passers[i]);
	gate_destroy(gate);
}

/* On one CPU, who waits does not run before the holder sleeps, and without its right to be next that is
 * never. */
TEST(a_passage_is_overtaken_by_a_bounded_number_of_holders)
{
	struct passer passer = { 0 };
	uint64_t before;
	cpu_set_t one;

	CPU_ZERO(&one);
	CPU_SET(sched_getcpu(), &one);
	CHECK_OK(gate_create(&gate));
	start_passer(&passer);
	for (int round = 0; round < 100; round++) {
		hold();
		wait_until_it_sleeps(passer.tid);
		CHECK_SYS(sched_setaffinity(0, sizeof one, &one));
		CHECK_SYS(sched_setaffinity(passer.tid, sizeof one, &one));
		before = passer.passages;
		for (int n = 0; n < GATE_OVERTAKES_MAX; n++) {
			release();
			hold();
		}
		CHECK(passer.passages > before);
		release();
	}
	stop_passer(&passer);
	gate_destroy(gate);
}

/* Who is woken up may get the processor of the thread that wakes it up, for a whole time slice. */
TEST(who_opens_the_lanes_keeps_no_holder_waiting_while_it_wakes_others_up)
{
	struct passer passer = { 0 };
	pthread_t first;

	CHECK_OK(gate_create(&gate));
	start_passer(&passer);
	CHECK_OK(failpoint_arm("gate.closed=stall"));
	CHECK_EQ(pthread_create(&first, NULL, hold_once, NULL), 0);
	while (!failpoint_hits("gate.closed"))
		sched_yield();
	wait_until_it_sleeps(passer.tid);
	CHECK_OK(failpoint_arm("gate.opened=stall;gate.closed=off"));
	while (!failpoint_hits("gate.opened"))
		sched_yield();
	hold();
	alone = false;
	CHECK_OK(failpoint_arm("gate.opened=off"));
	gate_release(gate);
	pthread_join(first, NULL);
	stop_passer(&passer);
	gate_destroy(gate);
}

struct holder {
	pthread_t thread;
	_Atomic pid_t tid;
	uint32_t place;
};

static _Atomic uint32_t held_n;

static void *hold_in_turn(void *argument)
{
	struct holder *self = argument;

	self->tid = gettid();
	hold();
	self->place = held_n++;
	release();
	return NULL;
}

TEST(holders_come_in_the_order_in_which_they_asked)
{
	struct holder holders[8] = { 0 };

	CHECK_OK(gate_create(&gate));
	hold();
	for (int i = 0; i < 8; i++) {
		CHECK_EQ(pthread_create(&holders[i].thread, NULL, hold_in_turn, &holders[i]), 0);
		while (!holders[i].tid)
			sched_yield();
		wait_until_it_sleeps(holders[i].tid);
	}
	release();
	for (uint32_t i = 0; i < 8; i++) {
		pthread_join(holders[i].thread, NULL);
		CHECK_EQ(holders[i].place, i);
	}
	gate_destroy(gate);
}

#define ROUNDS 2000

static void *hold_again_and_again(void *argument)
{
	uint64_t *counter = argument;

	for (int i = 0; i < ROUNDS; i++) {
		hold();
		++*counter; /* a data race, were it not held alone */
		release();
	}
	return NULL;
}

TEST(alone_is_alone_while_threads_join_and_part)
{
	struct passer passers[PASSERS] = { 0 };
	uint64_t counter = 0;
	pthread_t holders[2];

	CHECK_OK(gate_create(&gate));
	for (int i = 0; i < PASSERS; i++)
		start_passer(&passers[i]);
	for (int i = 0; i < 2; i++)
		CHECK_EQ(pthread_create(&holders[i], NULL, hold_again_and_again, &counter), 0);
	for (int i = 0; i < 50; i++) {
		struct passer visitor = { 0 };

		start_passer(&visitor);
		stop_passer(&visitor);
	}
	for (int i = 0; i < 2; i++)
		pthread_join(holders[i], NULL);
	CHECK_EQ(counter, 2 * ROUNDS);
	for (int i = 0; i < PASSERS; i++)
		stop_passer(&passers[i]);
	gate_destroy(gate);
}
