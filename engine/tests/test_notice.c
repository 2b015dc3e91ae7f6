/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What the engine tells is not lost for want of memory. */
#include "base/failpoint.h"
#include "base/notice.h"
#include "harness.h"

static struct notices *made(void)
{
	struct notices *notices;

	CHECK_OK(notices_create(&notices));
	return notices;
}

static void post(struct notices *notices, uint32_t first, uint32_t n)
{
	for (uint32_t id = first; id < first + n; id++)
		notices_post(notices, &(struct notice){ .kind = NOTICE_PROCESS_FORKED, .process_id = id });
}

static void take(struct notices *notices, uint32_t first, uint32_t n)
{
	struct notice notice;

	for (uint32_t id = first; id < first + n; id++) {
		CHECK(notices_take(notices, &notice));
		CHECK_EQ(notice.process_id, id);
	}
}

TEST(without_memory_only_what_people_read_is_dropped)
{
	struct notices *notices = made();
	struct notice notice;

	CHECK_OK(failpoint_arm("notice.alloc=ENOMEM"));
	for (uint32_t round = 0; round < 10; round++) {
		post(notices, 50 * round, 50);
		notices_odd(notices, 0, "nobody hears of this");
		take(notices, 50 * round, 50);
		CHECK(!notices_take(notices, &notice));
	}
	CHECK_OK(failpoint_arm("notice.alloc=off"));
	notices_odd(notices, 7, "heard of");
	CHECK(notices_take(notices, &notice));
	CHECK_EQ(notice.page_idx, 7);
	notices_destroy(notices);
}

TEST(with_none_left_a_successor_begins_anew)
{
	struct notices *notices = made();
	int status;
	pid_t pid;

	CHECK_OK(failpoint_arm("notice.alloc=ENOMEM"));
	pid = (pid_t)CHECK_SYS(fork());
	if (pid == 0) {
		CHECK_SYS(close(2)); /* a sanitizer's words on the abort */
		post(notices, 0, 1000);
		_exit(0);
	}
	CHECK_SYS(waitpid(pid, &status, 0));
	CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT);
	notices_destroy(notices);
}
