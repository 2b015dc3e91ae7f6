/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "base/failpoint.h"
#include "harness.h"
#include "linux/holders.h"

#include <fcntl.h>
#include <sched.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>

static int memfd;
static void make_memfd(void)
{
	memfd = (int)CHECK_SYS(memfd_create("guest", MFD_CLOEXEC));
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

	CHECK_OK(holders_find(&memfd, 1, &list));
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
	CHECK_OK(holders_find(&memfd, 1, &list));
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
	CHECK_OK(holders_find(&memfd, 1, &list));
	CHECK_EQ(list.holders_n, 0);
	holders_free(&list);
	end(pid);
}

static void open_anew(void)
{
	char path[64];

	snprintf(path, sizeof path, "/proc/self/fd/%d", memfd);
	CHECK_SYS(close(0));
	CHECK_EQ(open(path, O_RDWR), 0);
	close(memfd);
}

static void open_anew_in_another_root(void)
{
	CHECK_SYS(unshare(CLONE_NEWNS));
	open_anew();
	CHECK_SYS(chroot("/proc"));
}

/* By a description of its own, where all else is the process's own, too. */
TEST(who_has_opened_it_anew)
{
	pid_t holder;

	make_memfd();
	holder = start(open_anew);
	check_held_by(holder);
	end(holder);
	if (geteuid() != 0)
		return;
	holder = start(open_anew_in_another_root);
	check_held_by(holder);
	end(holder);
}

/* Such a name may be anybody's: the inode counts. */
static void hold_with_another_of_that_name(void)
{
	CHECK_EQ(dup2((int)CHECK_SYS(memfd_create("guest", MFD_CLOEXEC)), 1), 1);
	hold();
}

TEST(memfds_with_the_same_name_are_told_apart)
{
	pid_t holder;

	make_memfd();
	holder = start(hold_with_another_of_that_name);
	check_held_by(holder);
	end(holder);
}

/* With more than one name, and each process may have opened it by another. */
TEST(a_file_that_has_names)
{
	char one[] = "/tmp/vmmswap-holders-XXXXXX", other[sizeof one + 2];
	struct holder_list list;
	bool found = false;
	int opened[2];
	pid_t holder;

	opened[0] = (int)CHECK_SYS(mkstemp(one));
	snprintf(other, sizeof other, "%s-2", one);
	CHECK_SYS(link(one, other));
	memfd = (int)CHECK_SYS(open(other, O_RDWR | O_CLOEXEC));
	opened[1] = (int)CHECK_SYS(memfd_create("guest", MFD_CLOEXEC));
	holder = start(hold);
	CHECK_OK(holders_find(opened, 2, &list));
	for (size_t i = 0; i < list.holders_n; i++)
		found |= list.holders[i].pid == holder && list.holders[i].fd == 0 &&
			 list.holders[i].file_idx == 0;
	CHECK(found);
	holders_free(&list);
	end(holder);
	CHECK_SYS(unlink(one));
	CHECK_SYS(unlink(other));
}

#define OTHERS_N 900

static void hold_many_others(void)
{
	for (int i = 0; i < OTHERS_N; i++)
		CHECK_SYS(i % 2 ? memfd_create("other", 0) : eventfd(0, 0));
}

static uint64_t fdinfo_reads(void)
{
	uint64_t before = failpoint_hits("holders.fdinfo");
	struct holder_list list;

	CHECK_OK(holders_find(&memfd, 1, &list));
	holders_free(&list);
	return failpoint_hits("holders.fdinfo") - before;
}

/* Else each look of each VM's monitor would read the fdinfo of all fds of all others. */
TEST(other_files_cost_one_system_call)
{
	uint64_t without, with;
	pid_t other;

	make_memfd();
	CHECK_OK(failpoint_arm("holders.fdinfo=count"));
	without = fdinfo_reads();
	other = start(hold_many_others);
	with = fdinfo_reads();
	CHECK(with < without + OTHERS_N / 2); /* other processes come and go */
	end(other);
}

/* Else guest memory would go out under another process's hands. */
TEST(a_look_that_is_short_of_fds_fails_or_finds_all)
{
	struct holder_list list;
	pid_t holder;
	int fds[8], rc = 0;

	make_memfd();
	holder = start(hold);
	test_use_up_fds(fds, 8);
	for (int i = 0; i < 8; i++) {
		rc = holders_find(&memfd, 1, &list);
		if (rc) {
			CHECK_EQ(rc, -EMFILE);
		} else {
			holders_free(&list);
			check_held_by(holder);
		}
		close(fds[i]);
	}
	CHECK_OK(rc);
	end(holder);
}
