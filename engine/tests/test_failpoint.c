/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "base/failpoint.h"
#include "harness.h"

#include <glob.h>
#include <pthread.h>
#include <stdatomic.h>

TEST(nothing_armed_nothing_happens)
{
	CHECK_EQ(FAILPOINT("store.write"), 0);
	FAILPOINT_HERE("store.write");
	CHECK_EQ(failpoint_hits("store.write"), 0);
	CHECK_EQ(failpoint_hits("no.such.point"), 0);
}

TEST(errno_every_time_until_off)
{
	CHECK_OK(failpoint_arm("store.write=ENOSPC"));
	CHECK_EQ(FAILPOINT("store.write"), -ENOSPC);
	CHECK_EQ(FAILPOINT("store.write"), -ENOSPC);
	CHECK_EQ(FAILPOINT("store.read"), 0);
	CHECK_OK(failpoint_arm("store.write=off"));
	CHECK_EQ(FAILPOINT("store.write"), 0);
}

TEST(once_and_skip)
{
	CHECK_OK(failpoint_arm("store.read=once:EIO@2;store.write=EDQUOT@1"));
	CHECK_EQ(FAILPOINT("store.read"), 0);
	CHECK_EQ(FAILPOINT("store.read"), 0);
	CHECK_EQ(FAILPOINT("store.read"), -EIO);
	CHECK_EQ(FAILPOINT("store.read"), 0);
	CHECK_EQ(FAILPOINT("store.write"), 0);
	CHECK_EQ(FAILPOINT("store.write"), -EDQUOT);
	CHECK_EQ(failpoint_hits("store.read"), 4);
	CHECK_EQ(failpoint_hits("store.write"), 2);
}

TEST(so_many_times)
{
	CHECK_OK(failpoint_arm("store.read=times:2:EIO@1"));
	CHECK_EQ(FAILPOINT("store.read"), 0);
	CHECK_EQ(FAILPOINT("store.read"), -EIO);
	CHECK_EQ(FAILPOINT("store.read"), -EIO);
	CHECK_EQ(FAILPOINT("store.read"), 0);
}

TEST(arming_replaces_only_what_is_named)
{
	CHECK_OK(failpoint_arm("store.read=EIO"));
	CHECK_OK(failpoint_arm("store.write=EIO;store.read=ENOMEM"));
	CHECK_OK(failpoint_arm(""));
	CHECK_EQ(FAILPOINT("store.read"), -ENOMEM);
	CHECK_EQ(FAILPOINT("store.write"), -EIO);
}

TEST(bad_text_changes_nothing)
{
	static const char *const bad[] = {
		"store.read",
		"store.read=",
		"store.read=EWHAT",
		"no.such=EIO",
		"store.read=EIO@",
		"store.read=EIO@-1",
		"store.read=EIO@1x",
		"store.read=sleep:",
		"store.read=times:EIO",
		"store.read=times:0:EIO",
		"store.read=times:2",
		"store.read=sleep:x",
		"store.read=once:",
		"store.write=EIO;x=kill",
		"=EIO",
		"store.read=once:kill",
		"store.read=sleep:99999999999",
		"store.read=5",
	};
	char long_text[8192];

	memset(long_text, ';', sizeof long_text);
	long_text[sizeof long_text - 1] = '\0';
	CHECK_OK(failpoint_arm("store.write=ENOSPC"));
	for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
		if (failpoint_arm(bad[i]) != -EINVAL)
			test_fail(__FILE__, __LINE__, "accepted: %s", bad[i]);
	CHECK_EQ(failpoint_arm(long_text), -EINVAL);
	CHECK_EQ(FAILPOINT("store.write"), -ENOSPC);
	CHECK_EQ(FAILPOINT("store.read"), 0);
}

TEST(environment_is_read_at_first_use)
{
	setenv("VMMSWAP_FAILPOINTS", "store.read=EIO;store.write=count", 1);
	CHECK_EQ(FAILPOINT("store.write"), 0);
	CHECK_EQ(FAILPOINT("store.read"), -EIO);
	CHECK_EQ(failpoint_hits("store.write"), 1);
}

/* The signal that ends or stops a child which hits an armed point. */
static int status_of_child(const char *text)
{
	int status;
	pid_t pid = fork();

	if (pid == 0) {
		signal(SIGSEGV, SIG_DFL);
		alarm(20);
		failpoint_arm(text);
		_exit(FAILPOINT("store.write") ? 1 : 0);
	}
	CHECK_SYS(waitpid(pid, &status, WUNTRACED));
	if (WIFSTOPPED(status)) {
		kill(pid, SIGKILL);
		waitpid(pid, NULL, 0);
	}
	return status;
}

TEST(kill_segv_stop_sleep)
{
	int status = status_of_child("store.write=kill");

	CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
	status = status_of_child("store.write=segv");
	CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV);
	status = status_of_child("store.write=stop");
	CHECK(WIFSTOPPED(status) && WSTOPSIG(status) == SIGSTOP);
	status = status_of_child("store.write=sleep:1");
	CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
	status = status_of_child("store.write=kill@1");
	CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

TEST(a_point_outside_the_table_aborts_once_armed)
{
	int status;
	pid_t pid = fork();

	if (pid == 0) {
		failpoint_arm("store.write=count");
		FAILPOINT_HERE("no.such.point");
		_exit(0);
	}
	CHECK_SYS(waitpid(pid, &status, 0));
	CHECK(!WIFEXITED(status) || WEXITSTATUS(status) != 0);
}

static atomic_bool passed_stall;

static void *hit_stall(void *arg)
{
	(void)arg;
	CHECK_EQ(FAILPOINT("store.write"), 0);
	atomic_store(&passed_stall, true);
	return NULL;
}

TEST(stall_holds_until_disarmed)
{
	pthread_t thread;

	CHECK_OK(failpoint_arm("store.write=stall"));
	CHECK_EQ(pthread_create(&thread, NULL, hit_stall, NULL), 0);
	while (failpoint_hits("store.write") == 0)
		sched_yield();
	CHECK_EQ(FAILPOINT("store.read"), 0); /* other points are not held up */
	CHECK(!atomic_load(&passed_stall));
	CHECK_OK(failpoint_arm("store.write=off"));
	CHECK_EQ(pthread_join(thread, NULL), 0);
	CHECK(atomic_load(&passed_stall));
}

static void *hit_many(void *arg)
{
	(void)arg;
	for (int i = 0; i < 2000; i++)
		FAILPOINT_HERE("store.read");
	return NULL;
}

TEST(threads_count_every_hit)
{
	pthread_t threads[4];

	CHECK_OK(failpoint_arm("store.read=count"));
	for (int i = 0; i < 4; i++)
		CHECK_EQ(pthread_create(&threads[i], NULL, hit_many, NULL), 0);
	for (int i = 0; i < 50; i++)
		CHECK_OK(failpoint_arm(i % 2 ? "store.write=off" : "store.write=count"));
	for (int i = 0; i < 4; i++)
		CHECK_EQ(pthread_join(threads[i], NULL), 0);
	CHECK_EQ(failpoint_hits("store.read"), 8000);
}

TEST(the_table_is_sorted_without_doubles)
{
	size_t n = 0;

	for (; failpoint_name(n); n++)
		CHECK(n == 0 || strcmp(failpoint_name(n - 1), failpoint_name(n)) < 0);
	CHECK(n > 0);
	CHECK(failpoint_name(n + 1000) == NULL);
}

static bool is_known(const char *name)
{
	for (size_t i = 0; failpoint_name(i); i++)
		if (!strcmp(failpoint_name(i), name))
			return true;
	return false;
}

/* Each FAILPOINT("x") and FAILPOINT_HERE("x") in one source file has its line in the table. */
static size_t check_file(const char *path)
{
	static char text[1 << 20];
	FILE *file = fopen(path, "r");
	size_t length, found = 0;
	char *at;

	CHECK(file != NULL);
	length = fread(text, 1, sizeof text - 1, file);
	text[length] = '\0';
	fclose(file);
	for (at = text; (at = strstr(at, "FAILPOINT")); found++) {
		char name[64];

		if (sscanf(at, "FAILPOINT(\"%63[^\"]", name) != 1 &&
		    sscanf(at, "FAILPOINT_HERE(\"%63[^\"]", name) != 1)
			found--;
		else if (!is_known(name))
			test_fail(path, 0, "\"%s\" is missing in the table of failpoint.c", name);
		at += strlen("FAILPOINT");
	}
	return found;
}

TEST(every_point_of_the_sources_is_in_the_table)
{
	char pattern[512];
	size_t found = 0;
	glob_t files;

	snprintf(pattern, sizeof pattern, "%.*s../src/*/*.c",
		 (int)(strlen(__FILE__) - strlen("test_failpoint.c")), __FILE__);
	if (glob(pattern, 0, NULL, &files))
		test_fail(__FILE__, __LINE__, "%s: run where the test was compiled", pattern);
	for (size_t i = 0; i < files.gl_pathc; i++)
		found += check_file(files.gl_pathv[i]);
	globfree(&files);
	CHECK(found > 0);
}
