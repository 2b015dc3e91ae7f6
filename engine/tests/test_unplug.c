/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Guest memory that was in use is unplugged a piece at a time: page faults, forks and jobs come in
 * between. */
#include "puppet.h"

#define STAYS_PAGES 64
#define GOES_PAGES 8000 /* two pieces */

static const struct layout layout = { .memfd_pages = { STAYS_PAGES, GOES_PAGES },
				      .regions = { { 0, 0, STAYS_PAGES }, { 1, 0, GOES_PAGES } },
				      .full = 1 };

static const struct puppet_order all_that_goes = { .kind = ORDER_CHECK,
						   .page = STAYS_PAGES,
						   .pages = GOES_PAGES };

struct unplugging {
	struct rig *rig;
	pthread_t thread;
	struct error err;
	int rc;
};

static void *unplug(void *argument)
{
	struct unplugging *self = argument;

	self->rc = engine_remove_region(self->rig->engine, self->rig->first_idx[1], &self->err);
	return NULL;
}

/* All was out; what goes is back, with copies, and still registered. The unplug stands between two pieces. */
static void begin(struct rig *rig, struct unplugging *unplugging)
{
	rig_start(rig, &layout);
	rig_run_job(rig, JOB_SWAP_OUT);
	CHECK_EQ(puppet_do(rig, 0, 0, all_that_goes), 0);
	rig_settle(rig);
	CHECK_EQ(rig_stats(rig).kept_pages, GOES_PAGES);
	rig_arm(rig, "unplug.piece", "stall");
	*unplugging = (struct unplugging){ .rig = rig };
	CHECK_OK(pthread_create(&unplugging->thread, NULL, unplug, unplugging));
	rig_await_point(rig, "unplug.piece");
}

static int end(struct rig *rig, struct unplugging *unplugging)
{
	CHECK_OK(failpoint_arm("unplug.piece=count"));
	CHECK_OK(pthread_join(unplugging->thread, NULL));
	CHECK_EQ(rig_stats(rig).total_pages, unplugging->rc ? STAYS_PAGES + GOES_PAGES : STAYS_PAGES);
	return unplugging->rc;
}

/* It is as any other memory of the process: nothing is changed, and a hole is the kernel's business. */
static void check_free(struct rig *rig, uint32_t process)
{
	struct puppet_order touch = { .kind = ORDER_TOUCH, .page = STAYS_PAGES + 1 };
	uint64_t faults;

	CHECK_EQ(puppet_do(rig, process, 0, all_that_goes), 0);
	faults = rig_stats(rig).fault_count;
	for (; touch.page < STAYS_PAGES + GOES_PAGES; touch.page += GOES_PAGES / 4) {
		puppet_do(rig, 0, 1, (struct puppet_order){ .kind = ORDER_PUNCH, .page = touch.page });
		CHECK_EQ(puppet_do(rig, process, 0, touch), 0);
	}
	rig_settle(rig);
	CHECK_EQ(rig_stats(rig).fault_count, faults);
	CHECK_EQ(rig->odd, 0);
}

TEST(page_faults_are_served_between_two_pieces)
{
	struct unplugging unplugging;
	struct rig rig;

	begin(&rig, &unplugging);
	CHECK_EQ(puppet_do(&rig, 0, 0, (struct puppet_order){ .kind = ORDER_CHECK, .pages = STAYS_PAGES }),
		 0);
	CHECK(failpoint_hits("unplug.piece") == rig.hits + 1);
	CHECK_OK(end(&rig, &unplugging));
	CHECK(failpoint_hits("unplug.piece") > rig.hits + 1);
	rig_settle(&rig);
	CHECK_EQ(rig_stats(&rig).kept_pages, STAYS_PAGES);
	check_free(&rig, 0);
	rig_stop(&rig);
}

TEST(a_child_is_forked_in_the_middle)
{
	struct unplugging unplugging;
	struct rig rig;

	begin(&rig, &unplugging);
	rig_fork(&rig, 1);
	CHECK_OK(end(&rig, &unplugging));
	check_free(&rig, 1);
	check_free(&rig, 0);
	rig_stop(&rig);
}

/* It registers all that the processes have, and must not take what goes. */
TEST(a_swap_out_begins_in_the_middle)
{
	struct unplugging unplugging;
	struct rig rig;

	begin(&rig, &unplugging);
	rig_run_job(&rig, JOB_SWAP_OUT);
	CHECK_EQ(rig_stats(&rig).swap_pages, STAYS_PAGES);
	CHECK_EQ(rig_resident_pages(&rig, STAYS_PAGES, GOES_PAGES), GOES_PAGES);
	CHECK_OK(end(&rig, &unplugging));
	check_free(&rig, 0);
	CHECK_EQ(puppet_do(&rig, 0, 0, (struct puppet_order){ .kind = ORDER_CHECK, .pages = STAYS_PAGES }),
		 0);
	rig_stop(&rig);
}

TEST(a_swap_in_begins_in_the_middle)
{
	struct unplugging unplugging;
	struct rig rig;

	begin(&rig, &unplugging);
	rig_run_job(&rig, JOB_SWAP_IN);
	CHECK(!rig_stats(&rig).tracking);
	CHECK_OK(end(&rig, &unplugging));
	check_free(&rig, 0);
	rig_stop(&rig);
}

TEST(the_engine_stops_in_the_middle)
{
	struct unplugging unplugging;
	struct rig rig;

	begin(&rig, &unplugging);
	engine_stop(rig.engine);
	CHECK_EQ(end(&rig, &unplugging), -ECANCELED);
	rig_stop(&rig);
}

/* A range of what goes cannot be added any more. */
TEST(a_process_maps_it_in_the_middle)
{
	struct unplugging unplugging;
	struct range ranges[2];
	struct error err;
	struct rig rig;

	begin(&rig, &unplugging);
	for (size_t i = 0; i < 2; i++)
		ranges[i] = (struct range){ rig.shared->base_addr[0][i], rig.first_idx[i],
					    layout.regions[i].pages };
	CHECK_EQ(engine_set_ranges(rig.engine, rig.process_ids[0], ranges, 2, &err), -EINVAL);
	CHECK_OK(end(&rig, &unplugging));
	check_free(&rig, 0);
	rig_stop(&rig);
}

TEST(what_is_out_stays)
{
	struct error err;
	struct rig rig;

	rig_start(&rig, &layout);
	rig_run_job(&rig, JOB_SWAP_OUT);
	CHECK_EQ(engine_remove_region(rig.engine, rig.first_idx[1], &err), -EBUSY);
	puppet_check_all(&rig, 0);
	rig_start_job_until(&rig, JOB_SWAP_OUT, "evict.protected");
	CHECK_EQ(engine_remove_region(rig.engine, rig.first_idx[1], &err), -EBUSY);
	rig_disarm("evict.protected");
	rig_end_job(&rig);
	puppet_check_all(&rig, 0);
	rig_stop(&rig);
}
