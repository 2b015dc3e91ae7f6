/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "harness.h"
#include "linux/holders.h"

#include <fcntl.h>
#include <sched.h>
#include <sys/syscall.h>

static int memfd;
static struct mapped_file file;

static void make_memfd(void)
{
	memfd = (int)CHECK_SYS(memfd_create("guest", MFD_CLOEXEC));
	CHECK_OK(mappers_file_of(memfd, &file));
}

/* A child that does as it is told, and has done so when this returns. */
static pid_t start(void (*body)(void))
{
	int ends[2];
	char byte;
	pid_t pid;

	CHECK_SYS(pipe(ends));
	pid = (pid_t)CHECK_SYS(fork());
	if (pid == 0) {
		body();
		CHECK_EQ(write(ends[1], "", 1), 1);
		for (;;)
			pause();
	}
	CHECK_EQ(read(ends[0], &byte, 1), 1);
	close(ends[0]);
	close(ends[1]);
	return pid;
}

static void end(pid_t pid)
{
	kill(pid, SIGKILL);
	CHECK_SYS(waitpid(pid, NULL, 0));
}

static void hold(void)
{
	CHECK_EQ(dup2(memfd, 0), 0); /* any number counts, 0 too */
	close(memfd);
}

static void hold_as_nobody(void)
{
	hold();
	CHECK_SYS(setresuid(65534, 65534, 65534));
}

static void hold_nothing(void)
{
	close(memfd);
}

static void check_held_by(pid_t pid)
{
	struct holder_list list;

	CHECK_OK(holders_find(&file, 1, &list));
	CHECK_EQ(list.holders_n, 1);
	CHECK_EQ(list.holders[0].pid, pid);
	CHECK_EQ(list.holders[0].fd, 0);
	CHECK_EQ(list.holders[0].file_idx, 0);
	holders_free(&list);
}

TEST(who_has_it_open_without_a_mapping)
{
	struct holder_list list;
	pid_t holder, other;

	make_memfd();
	other = start(hold_nothing);
	holder = start(hold);
	check_held_by(holder);
	end(holder);
	CHECK_OK(holders_find(&file, 1, &list));
	CHECK_EQ(list.holders_n, 0);
	holders_free(&list);
	end(other);
}

TEST(another_users_process)
{
	pid_t holder;

	if (geteuid() != 0)
		test_skip("needs root to be somebody else");
	make_memfd();
	holder = start(hold_as_nobody);
	check_held_by(holder);
	end(holder);
}

/* As a monitor's keeper does. */
TEST(who_shares_our_fds_is_no_other)
{
	struct holder_list list;
	pid_t pid;

	make_memfd();
	pid = (pid_t)CHECK_SYS(syscall(SYS_clone, CLONE_FILES | SIGCHLD, 0, 0, 0, 0));
	if (pid == 0)
		for (;;)
			pause();
	CHECK_OK(holders_find(&file, 1, &list));
	CHECK_EQ(list.holders_n, 0);
	holders_free(&list);
	end(pid);
}
