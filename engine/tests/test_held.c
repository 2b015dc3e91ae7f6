/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A thread that waits while it holds what a page fault needs is caught where it does so. */
#include "base/held.h"
#include "harness.h"

static void take_gate_and_wait(void)
{
	HELD_TAKE(HELD_GATE);
	HELD_MAY_WAIT(WAIT_INODE);
}

static void hold_alone_and_wait(void)
{
	HELD_TAKE(HELD_GATE_ALONE);
	HELD_MAY_WAIT(WAIT_TIME);
}

static void fill_and_wait_for_the_inode(void)
{
	HELD_TAKE(HELD_FILLING);
	HELD_MAY_WAIT(WAIT_INODE);
}

static void punch_and_wait_for_a_disk(void)
{
	HELD_TAKE(HELD_PUNCHING);
	HELD_MAY_WAIT(WAIT_READ);
}

static void read_in_the_gate(void)
{
	HELD_TAKE(HELD_FILLING);
	HELD_TAKE(HELD_GATE);
	HELD_MAY_WAIT(WAIT_READ);
}

static void pass_twice(void)
{
	HELD_TAKE(HELD_GATE);
	HELD_TAKE(HELD_GATE_ALONE);
}

static void act_without_the_gate(void)
{
	HELD_TAKE(HELD_FILLING);
	HELD_NEEDS(HELD_GATE | HELD_GATE_ALONE);
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

TEST(each_broken_rule_is_caught)
{
	is_caught(take_gate_and_wait);
	is_caught(hold_alone_and_wait);
	is_caught(fill_and_wait_for_the_inode);
	is_caught(punch_and_wait_for_a_disk);
	is_caught(read_in_the_gate);
	is_caught(pass_twice);
	is_caught(act_without_the_gate);
}

TEST(what_is_allowed_is_not)
{
	HELD_MAY_WAIT(WAIT_INODE);
	HELD_MAY_WAIT(WAIT_WRITE);
	HELD_MAY_WAIT(WAIT_TIME);
	HELD_TAKE(HELD_FILLING);
	HELD_MAY_WAIT(WAIT_READ);
	HELD_TAKE(HELD_GATE);
	HELD_NEEDS(HELD_GATE | HELD_GATE_ALONE);
	HELD_DROP(HELD_GATE);
	HELD_DROP(HELD_FILLING);
	HELD_TAKE(HELD_PUNCHING);
	HELD_MAY_WAIT(WAIT_PUNCH);
	HELD_DROP(HELD_PUNCHING);
	HELD_MAY_WAIT(WAIT_INODE);
}
