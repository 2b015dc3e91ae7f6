/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Who listens, and that nobody is missed who naps. */
#include "serve/listeners.h"

#include "puppet.h"

#define LISTENERS 2
#define READS_MAX 20000

/* One page fault after the other, each as long after the last as it takes in the way that is in use. The read
 * after which all turns so far say `way`; READS_MAX: none. */
static unsigned reads_until(struct listeners *listeners, const uint32_t *pace_ns, uint32_t way,
			    uint64_t *now_ns)
{
	for (unsigned reads = 0, in_a_row = 0; reads < READS_MAX; reads++) {
		in_a_row = listeners->way == way ? in_a_row + 1 : 0;
		if (in_a_row == 200)
			return reads;
		*now_ns += pace_ns[listeners->way];
		listeners_note(listeners, 1, *now_ns);
	}
	return READS_MAX;
}

static void expect(const uint32_t *pace_ns, uint32_t way)
{
	struct listeners listeners = { 0 };
	uint64_t now_ns = 1000000000;

	listeners_start(&listeners, LISTENERS);
	CHECK_EQ(listeners.way, LISTENERS);
	CHECK(reads_until(&listeners, pace_ns, way, &now_ns) < READS_MAX);
}

TEST(the_fastest_way_is_found)
{
	expect((const uint32_t[]){ 9000, 45000, 18000 }, 0);
	expect((const uint32_t[]){ 45000, 9000, 18000 }, 1);
	expect((const uint32_t[]){ 30000, 30000, 15000 }, LISTENERS);
}

TEST(all_listen_unless_one_is_clearly_faster)
{
	expect((const uint32_t[]){ 17500, 45000, 18000 }, LISTENERS);
	expect((const uint32_t[]){ 400000, 400000, 500000 }, LISTENERS); /* the guest is what is slow */
}

TEST(the_guest_moves_to_another_processor)
{
	const uint32_t there[] = { 9000, 45000, 18000 }, here[] = { 45000, 9000, 18000 };
	struct listeners listeners = { 0 };
	uint64_t now_ns = 1000000000;

	listeners_start(&listeners, LISTENERS);
	for (int i = 0; i < 3; i++) {
		CHECK(reads_until(&listeners, there, 0, &now_ns) < READS_MAX);
		CHECK(reads_until(&listeners, here, 1, &now_ns) < READS_MAX);
	}
}

/* It is not only told when it becomes slower. */
TEST(another_way_becomes_faster)
{
	const uint32_t before[] = { 18000, 45000, 30000 }, after[] = { 18000, 9000, 30000 };
	struct listeners listeners = { 0 };
	uint64_t now_ns = 1000000000;

	listeners_start(&listeners, LISTENERS);
	CHECK(reads_until(&listeners, before, 0, &now_ns) < READS_MAX);
	CHECK(reads_until(&listeners, after, 1, &now_ns) < READS_MAX);
}

TEST(all_listen_when_page_faults_queue_up)
{
	const uint32_t pace_ns[] = { 9000, 45000, 18000 };
	struct listeners listeners = { 0 };
	uint64_t now_ns = 1000000000;

	listeners_start(&listeners, LISTENERS);
	CHECK(reads_until(&listeners, pace_ns, 0, &now_ns) < READS_MAX);
	listeners_note(&listeners, 2, now_ns + 1000);
	CHECK_EQ(listeners.way, LISTENERS);
	CHECK(reads_until(&listeners, pace_ns, 0, &now_ns) < READS_MAX);
}

/* Nothing is read, and nobody ends it. */
TEST(a_nap_ends_by_itself)
{
	struct listeners listeners = { 0 };
	_Atomic uint64_t reads_n = 5;
	uint32_t silent = LISTENERS;

	listeners_start(&listeners, LISTENERS);
	CHECK(!listeners_nap(&listeners, 0, &reads_n, &silent));
	listeners.way = 0;
	CHECK(!listeners_nap(&listeners, 0, &reads_n, &silent));
	CHECK(!listeners_nap(&listeners, LISTENERS, &reads_n, &silent));
	CHECK(listeners_nap(&listeners, 1, &reads_n, &silent));
	CHECK_EQ(silent, 0);
	CHECK_EQ(listeners.way, LISTENERS);
}

/* A thread that gets no processor: each page fault that it alone listens for waits until a nap ends. */
TEST(who_is_stuck_seldom_listens_alone)
{
	struct listeners listeners = { 0 };
	uint64_t now_ns = 1000000000;
	unsigned stalls = 0;

	listeners_start(&listeners, LISTENERS);
	for (unsigned reads = 0; reads < READS_MAX; reads++) {
		now_ns += 18000;
		if (listeners.way == 1) {
			listeners_stuck(&listeners, 1);
			listeners.way = LISTENERS;
			now_ns += 2000000;
			stalls++;
		}
		listeners_note(&listeners, 1, now_ns);
	}
	CHECK(stalls > 0);
	CHECK(stalls < READS_MAX / 1000);
}

#define LAST_PAGES 512 /* a region of their own */

static const struct layout layout = { .memfd_pages = { 4096, LAST_PAGES },
				      .regions = { { 0, 0, 4096 }, { 1, 0, LAST_PAGES } },
				      .two_threads = 1 };

#define OUT 4001
#define OTHER 4002
#define ZERO 4007 /* out, and nowhere in the store */
#define OTHER_ZERO 4015
#define DEADLINE_MS 60000

/* Page faults one after the other, until the second thread is about to nap: it stands still just before. The
 * first one listens alone from now on. */
static void start_with_a_nap(struct rig *rig)
{
	rig_start(rig, &layout);
	rig_run_job(rig, JOB_SWAP_OUT);
	rig_settle(rig);
	CHECK_OK(failpoint_arm("listeners.turn=EAGAIN@1"));
	rig_arm(rig, "listeners.nap", "stall");
	for (uint64_t page = 0; failpoint_hits("listeners.nap") == rig->hits; page++) {
		CHECK(page < OUT);
		puppet_do(rig, 0, 0, (struct puppet_order){ .kind = ORDER_TOUCH, .page = page });
	}
}

static void tell(struct rig *rig, uint32_t hand, enum order_kind kind, uint64_t page)
{
	puppet_tell(rig, 0, hand, (struct puppet_order){ .kind = kind, .page = page, .process = 1 });
}

static void stop(struct rig *rig)
{
	puppet_check_all(rig, 0);
	CHECK_EQ(rig->odd, 0);
	rig_stop(rig);
}

/* Who listens alone is stuck, and only the nap's own end helps. */
static void one_is_stuck_while_another_naps(enum order_kind kind, uint64_t page)
{
	struct rig rig;
	uint64_t stuck;

	start_with_a_nap(&rig);
	stuck = failpoint_hits("resolve.claimed");
	CHECK_OK(failpoint_arm("resolve.claimed=stall"));
	tell(&rig, 0, ORDER_TOUCH, OUT);
	while (failpoint_hits("resolve.claimed") == stuck)
		sched_yield();
	tell(&rig, 1, kind, page);
	tell(&rig, 2, ORDER_TOUCH, OTHER_ZERO);
	rig_disarm("listeners.nap");
	CHECK(puppet_done_in(&rig, 0, 1, DEADLINE_MS));
	CHECK(puppet_done_in(&rig, 0, 2, DEADLINE_MS));
	CHECK(!puppet_is_done(&rig, 0, 0));
	rig_disarm("resolve.claimed");
	puppet_await(&rig, 0, 0);
	if (kind == ORDER_FORK)
		CHECK_EQ(puppet_do(&rig, 1, 0, (struct puppet_order){ .kind = ORDER_CHECK, .page = OTHER }),
			 0);
	stop(&rig);
}

TEST(one_is_stuck_and_a_page_is_needed)
{
	one_is_stuck_while_another_naps(ORDER_TOUCH, ZERO);
}

TEST(one_is_stuck_and_memory_is_given_up)
{
	one_is_stuck_while_another_naps(ORDER_REMOVE, OTHER);
}

TEST(one_is_stuck_and_the_vmm_forks)
{
	one_is_stuck_while_another_naps(ORDER_FORK, OTHER);
}

/* Whoever naps is needed for nothing: here it does not come back at all. */
TEST(jobs_forks_and_an_unplug_while_one_naps)
{
	struct error err;
	struct rig rig;

	start_with_a_nap(&rig);
	rig_run_job(&rig, JOB_SWAP_IN);
	rig_fork(&rig, 1);
	CHECK_EQ(puppet_do(&rig, 1, 0, (struct puppet_order){ .kind = ORDER_CHECK, .pages = 4096 }), 0);
	rig_run_job(&rig, JOB_SWAP_OUT);
	puppet_do(&rig, 0, 0, (struct puppet_order){ .kind = ORDER_REMOVE, .pages = 64 });
	CHECK_EQ(puppet_do(&rig, 1, 0, (struct puppet_order){ .kind = ORDER_CHECK, .pages = 4096 }), 0);
	CHECK_EQ(puppet_do(&rig, 0, 0,
			   (struct puppet_order){ .kind = ORDER_CHECK, .page = 4096, .pages = LAST_PAGES }),
		 0);
	CHECK_OK(engine_remove_region(rig.engine, rig.first_idx[1], &err));
	CHECK_EQ(rig_stats(&rig).total_pages, 4096);
	rig_disarm("listeners.nap");
	rig_stop(&rig);
}

TEST(the_engine_stops_while_one_naps)
{
	struct rig rig;

	start_with_a_nap(&rig);
	rig_disarm("listeners.nap");
	rig_stop(&rig);
}

TEST(many_page_faults_after_few)
{
	struct rig rig;

	start_with_a_nap(&rig);
	rig_disarm("listeners.nap");
	for (uint32_t hand = 0; hand < PUPPET_HANDS; hand++)
		puppet_tell(&rig, 0, hand,
			    (struct puppet_order){
				    .kind = ORDER_CHECK, .page = 1000 + 500 * hand, .pages = 500 });
	for (uint32_t hand = 0; hand < PUPPET_HANDS; hand++)
		CHECK_EQ(puppet_await(&rig, 0, hand), 0);
	stop(&rig);
}

/* The guest gives memory up, writes it anew and forks while page faults come one after the other, and whoever
 * serves them changes all the time. */
TEST(events_come_while_threads_nap_in_turns)
{
	struct rig rig;

	rig_start(&rig, &layout);
	rig_run_job(&rig, JOB_SWAP_OUT);
	rig_settle(&rig);
	rig_arm(&rig, "listeners.nap", "count");
	for (uint64_t page = 0; page < 3000; page++) {
		uint64_t event = page % 50;

		CHECK_EQ(puppet_do(&rig, 0, 0, (struct puppet_order){ .kind = ORDER_CHECK, .page = page }),
			 0);
		if (event == 20)
			puppet_do(&rig, 0, 1,
				  (struct puppet_order){ .kind = ORDER_REMOVE, .page = page, .pages = 3 });
		else if (event == 30)
			puppet_do(&rig, 0, 1,
				  (struct puppet_order){ .kind = ORDER_DISCARD, .page = page + 1 });
		else if (event == 40)
			puppet_do(&rig, 0, 2, (struct puppet_order){ .kind = ORDER_WRITE, .page = page + 2 });
		if (page == 1500)
			rig_fork(&rig, 1);
	}
	CHECK(failpoint_hits("listeners.nap") > rig.hits);
	CHECK_EQ(puppet_do(&rig, 1, 0, (struct puppet_order){ .kind = ORDER_CHECK, .pages = 4096 }), 0);
	stop(&rig);
}
