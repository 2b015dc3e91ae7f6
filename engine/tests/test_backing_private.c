/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Private memory where it differs from shared memory once it is out: markers of pages that cannot be read,
 * and forked children, which have copies. */
#include <setjmp.h>

#include "puppet.h"

#define PAGE 1
#define OTHER_PAGE 100

static const struct layout private_memory = { .regions = { { 0, 212, 700 } }, .private = 1 };
static const struct layout inherited_memory = { .regions = { { 0, 212, 700 } },
						.private = 1,
						.inherited = 1 };

static struct puppet_order order(enum order_kind kind, uint64_t page, uint64_t pages)
{
	return (struct puppet_order){ .kind = kind, .page = page, .pages = pages };
}

static sigjmp_buf on_sigbus;

static void caught(int signal)
{
	(void)signal;
	siglongjmp(on_sigbus, 1);
}

static long gets_sigbus(void *addr, long unused)
{
	struct sigaction action = { .sa_handler = caught };

	(void)unused;
	sigaction(SIGBUS, &action, NULL);
	if (sigsetjmp(on_sigbus, 1))
		return 1;
	return *(volatile char *)addr * 0;
}

static bool is_poison(struct rig *rig, uint32_t process, uint64_t page)
{
	return puppet_do(rig, process, 0,
			 (struct puppet_order){ .kind = ORDER_CALL, .page = page, .run = gets_sigbus });
}

/* All of it is out. */
static void start_out(struct rig *rig, const struct layout *layout)
{
	if (!mover_can_move())
		test_skip("this kernel has no UFFDIO_MOVE, which is since Linux 6.8");
	rig_start(rig, layout);
	rig_run_job(rig, JOB_SWAP_OUT);
}

static void poison(struct rig *rig, uint64_t page)
{
	rig_arm(rig, "store.read", "EIO");
	CHECK(is_poison(rig, 0, page));
	rig_disarm("store.read");
	CHECK_EQ(rig_await_notice(rig, NOTICE_PAGE_POISONED).page_idx, page);
}

static void end_child(struct rig *rig)
{
	struct error err = { 0 };

	puppet_tell(rig, 1, 0, (struct puppet_order){ .kind = ORDER_END });
	if (engine_remove_process(rig->engine, rig->process_ids[1], &err) == 1)
		CHECK_OK(engine_release_rest(rig->engine, &err));
}

static void check_all_and_stop(struct rig *rig)
{
	puppet_check_all(rig, 0);
	rig_run_job(rig, JOB_SWAP_OUT);
	rig_run_job(rig, JOB_SWAP_IN);
	CHECK_EQ(rig_stats(rig).swap_pages, 0);
	CHECK(!rig_stats(rig).tracking);
	puppet_check_all(rig, 0);
	CHECK_EQ(rig->odd + rig->incidents, 0);
	rig_stop(rig);
}

/* Giving a page up heals it: it is zeros, and can be written to. */
TEST(giving_up_heals)
{
	struct rig rig;

	start_out(&rig, &private_memory);
	poison(&rig, PAGE);
	puppet_do(&rig, 0, 0, order(ORDER_DISCARD, PAGE, 1));
	CHECK_EQ(rig_await_notice(&rig, NOTICE_PAGE_HEALED).page_idx, PAGE);
	CHECK(!is_poison(&rig, 0, PAGE));
	CHECK_EQ(puppet_do(&rig, 0, 0, order(ORDER_CHECK, PAGE, 1)), 0);
	puppet_do(&rig, 0, 0, (struct puppet_order){ .kind = ORDER_WRITE, .page = PAGE, .half = 1 });
	CHECK_EQ(rig_stats(&rig).poisoned_pages, 0);
	check_all_and_stop(&rig);
}

/* And what can be read again heals, too. */
TEST(a_good_read_heals)
{
	struct rig rig;

	start_out(&rig, &private_memory);
	poison(&rig, PAGE);
	rig_run_job(&rig, JOB_SWAP_IN);
	CHECK(!is_poison(&rig, 0, PAGE));
	check_all_and_stop(&rig);
}

/* What the VMM gives up, or gets back, is not the child's: that never sees zeros, or another time's bytes. */
TEST(a_child_is_not_healed_with_its_parent)
{
	struct rig rig;

	start_out(&rig, &inherited_memory);
	rig_fork(&rig, 1);
	poison(&rig, PAGE);
	poison(&rig, OTHER_PAGE);
	puppet_do(&rig, 0, 0, order(ORDER_DISCARD, PAGE, 1));
	CHECK_EQ(rig_await_notice(&rig, NOTICE_PAGE_HEALED).page_idx, PAGE);
	CHECK(is_poison(&rig, 1, PAGE));
	rig_run_job(&rig, JOB_SWAP_IN);
	CHECK(!is_poison(&rig, 0, OTHER_PAGE));
	CHECK(is_poison(&rig, 1, OTHER_PAGE));
	end_child(&rig);
	check_all_and_stop(&rig);
}

/* Once all is back in the VMM, what the child had at the fork is nowhere: it reads no zeros there. */
TEST(a_childs_copy_after_a_swap_in)
{
	struct rig rig;

	start_out(&rig, &inherited_memory);
	rig_fork(&rig, 1);
	CHECK_EQ(puppet_do(&rig, 1, 0, order(ORDER_CHECK, OTHER_PAGE, 1)), 0);
	rig_run_job(&rig, JOB_SWAP_IN);
	CHECK_EQ(puppet_do(&rig, 1, 0, order(ORDER_CHECK, OTHER_PAGE, 1)), 0);
	CHECK(is_poison(&rig, 1, PAGE));
	end_child(&rig);
	check_all_and_stop(&rig);
}

/* The VMM cannot get a page: its child does not get it instead. */
TEST(a_page_that_the_vmm_cannot_take_stays_out)
{
	struct notice done;
	struct rig rig;

	start_out(&rig, &inherited_memory);
	rig_fork(&rig, 1);
	puppet_do(&rig, 0, 0, order(ORDER_CHECK, 0, 1));
	puppet_do(&rig, 0, 0, order(ORDER_CHECK, PAGE + 1, 698)); /* all others */
	rig_arm(&rig, "uffd.copy", "once:EINVAL");
	rig_start_job(&rig, JOB_SWAP_IN);
	done = rig_await_job(&rig);
	rig_disarm("uffd.copy");
	CHECK_EQ(done.code, EIO);
	end_child(&rig);
	check_all_and_stop(&rig);
}

/* A mapping that is just being moved is found on a second look, or its event is. */
TEST(a_mapping_that_is_not_found_at_once)
{
	struct rig rig;

	start_out(&rig, &private_memory);
	puppet_do(&rig, 0, 0, order(ORDER_CHECK, 0, 1));
	puppet_do(&rig, 0, 0, order(ORDER_CHECK, PAGE + 1, 698)); /* all others */
	rig_arm(&rig, "uffd.copy", "once:ENOENT");
	rig_run_job(&rig, JOB_SWAP_IN);
	rig_disarm("uffd.copy");
	check_all_and_stop(&rig);
}
