/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A process that lives and is given up, or refused, is unregistered a piece at a time: page faults come in
 * between, its own too. */
#include "puppet.h"

#define PAGES 8192 /* more than is unregistered at once */

static const struct layout layout = {
	.memfd_pages = { PAGES }, .regions = { { 0, 0, PAGES } }, .full = 1, .stranger = 1
};

struct rest {
	struct rig *rig;
	pthread_t thread;
	int rc;
};

static void *release_rest(void *argument)
{
	struct rest *rest = argument;
	struct error err;

	rest->rc = engine_release_rest(rest->rig->engine, &err);
	return NULL;
}

/* Pieces that took no time grow: each is taken to have taken some. */
static void begin(struct rig *rig, struct rest *rest)
{
	struct error err;

	rig_start(rig, &layout);
	CHECK_OK(rig_add_process(rig, PUPPET_STRANGER, &err));
	rig_run_job(rig, JOB_SWAP_OUT);
	for (uint64_t page = 0; page < PAGES; page += 2)
		puppet_do(rig, PUPPET_STRANGER, 0,
			  (struct puppet_order){ .kind = ORDER_TOUCH, .page = page });
	*rest = (struct rest){ .rig = rig };
}

static void give_up(struct rig *rig, struct rest *rest)
{
	struct error err;

	CHECK_EQ(engine_remove_process(rig->engine, rig->process_ids[PUPPET_STRANGER], &err), 1);
	CHECK_EQ(rig_stats(rig).processes, 1);
	rig_arm(rig, "leave.piece", "stall");
	CHECK_OK(pthread_create(&rest->thread, NULL, release_rest, rest));
	rig_await_point(rig, "leave.piece");
}

static void end(struct rig *rig, struct rest *rest)
{
	rig_disarm("leave.piece");
	CHECK_OK(pthread_join(rest->thread, NULL));
	CHECK_OK(rest->rc);
	CHECK_EQ(engine_ranges_of(rig->engine, rig->process_ids[PUPPET_STRANGER], NULL, 0), 0);
}

/* A hole is the kernel's business. */
static void check_free(struct rig *rig)
{
	struct puppet_order touch = { .kind = ORDER_TOUCH };
	uint64_t faults;

	rig_settle(rig);
	faults = rig_stats(rig).fault_count;
	for (; touch.page < PAGES; touch.page += 500) {
		puppet_do(rig, 0, 1, (struct puppet_order){ .kind = ORDER_PUNCH, .page = touch.page });
		CHECK_EQ(puppet_do(rig, PUPPET_STRANGER, 0, touch), 0);
	}
	rig_settle(rig);
	CHECK_EQ(rig_stats(rig).fault_count, faults);
	CHECK_EQ(rig->odd, 0);
}

TEST(page_faults_are_served_between_two_pieces)
{
	struct puppet_order last = { .kind = ORDER_CHECK, .page = PAGES - 1 };
	struct rest rest;
	struct rig rig;

	begin(&rig, &rest);
	give_up(&rig, &rest);
	CHECK_EQ(puppet_do(&rig, PUPPET_STRANGER, 0, last), 0);
	puppet_check_all(&rig, 0);
	end(&rig, &rest);
	check_free(&rig);
	rig_stop(&rig);
}

/* It registers all processes, but one that was given up. */
TEST(a_swap_out_begins_in_the_middle)
{
	struct rest rest;
	struct rig rig;

	begin(&rig, &rest);
	give_up(&rig, &rest);
	rig_run_job(&rig, JOB_SWAP_OUT);
	rig_run_job(&rig, JOB_SWAP_IN);
	end(&rig, &rest);
	check_free(&rig);
	puppet_check_all(&rig, 0);
	rig_stop(&rig);
}

static void *add_again(void *argument)
{
	struct rest *rest = argument;
	struct error err;

	rest->rc = rig_add_process(rest->rig, PUPPET_STRANGER, &err);
	return NULL;
}

/* It comes again, with the same userfaultfd, before it is unregistered: what it registers then stays so. */
TEST(the_process_comes_again_in_the_middle)
{
	struct puppet_order all = { .kind = ORDER_CHECK, .pages = PAGES };
	struct rest rest, again;
	struct rig rig;

	begin(&rig, &rest);
	again = rest;
	give_up(&rig, &rest);
	CHECK_OK(pthread_create(&again.thread, NULL, add_again, &again));
	rig_disarm("leave.piece");
	CHECK_OK(pthread_join(again.thread, NULL));
	CHECK_OK(again.rc);
	CHECK_OK(pthread_join(rest.thread, NULL));
	rig_run_job(&rig, JOB_SWAP_OUT);
	CHECK_EQ(rig_resident_pages(&rig, 0, PAGES), 0);
	CHECK_EQ(puppet_do(&rig, PUPPET_STRANGER, 0, all), 0);
	puppet_check_all(&rig, 0);
	rig_stop(&rig);
}

/* A part of it cannot be registered: nothing of it is, in the end. */
TEST(a_process_that_is_refused)
{
	struct rest rest;
	struct error err;
	struct rig rig;
	struct range ranges[2];

	rig_start(&rig, &layout);
	rig_run_job(&rig, JOB_SWAP_OUT);
	puppet_check_all(&rig, 0); /* all there, and no hole for the stranger to fill */
	ranges[0] = (struct range){ rig.shared->base_addr[PUPPET_STRANGER][0], rig.first_idx[0], PAGES };
	ranges[1] = (struct range){ rig.shared->dummy_addr + ((uint64_t)1 << 46), rig.first_idx[0], 1 };
	rest = (struct rest){ .rig = &rig };
	CHECK_EQ(engine_add_process(rig.engine, rig.uffds[PUPPET_STRANGER], ranges, 2,
				    &rig.process_ids[PUPPET_STRANGER], &err),
		 -EINVAL);
	CHECK_EQ(rig_stats(&rig).processes, 1);
	rig.odd = 0;
	rig_arm(&rig, "leave.piece", "stall");
	CHECK_OK(pthread_create(&rest.thread, NULL, release_rest, &rest));
	rig_await_point(&rig, "leave.piece");
	puppet_check_all(&rig, 0);
	end(&rig, &rest);
	check_free(&rig);
	rig_stop(&rig);
}
