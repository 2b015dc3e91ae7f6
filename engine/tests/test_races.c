/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Each interleaving of a swap-out, a swap-in or a fault with what the guest does meanwhile, made to happen:
 * the engine is held at a failpoint, the guest does its part, the engine goes on. docs/live-swap-out.md has
 * the table of them all.
 *
 * Pages 0 to 511 are in flight when the engine is held: the first window of the first region. The first hole
 * punched is that of pages 0 to 6. */
#include <dirent.h>
#include <sys/mount.h>

#include "engine_inside.h"
#include "large_folios.h"
#include "puppet.h"
#include "vm/page.h"

#define PAGE 1	      /* the page that things happen to, as do 3 and 5 */
#define HOLE 7	      /* never written */
#define LATE_PAGE 200 /* swap-in copies 32 pages in one piece: this one is in a later piece */

static const struct layout two_regions = { .memfd_pages = { 700, 300 },
					   .regions = { { 0, 0, 700 }, { 1, 0, 300 } } };
static const struct layout with_stranger = { .memfd_pages = { 700, 300 },
					     .regions = { { 0, 0, 700 }, { 1, 0, 300 } },
					     .stranger = 1 };

static struct puppet_order write_half(uint64_t page, uint32_t half)
{
	return (struct puppet_order){ .kind = ORDER_WRITE, .page = page, .half = half };
}

static struct puppet_order order(enum order_kind kind, uint64_t page, uint64_t pages)
{
	return (struct puppet_order){ .kind = kind, .page = page, .pages = pages };
}

/* --- swap-out */

struct point {
	const char *name;
	bool in_gate;  /* the engine is held where no event can be read: who must be heard waits */
	bool punching; /* between mark and the end of the punch: writers wait */
	bool hole;     /* the page is out: readers fault too */
	bool out;      /* and the window is done with: faults are served */
};

static const struct point points[] = {
	{ .name = "evict.selected", .in_gate = true },
	{ .name = "evict.protected" },
	{ .name = "evict.checked" },
	{ .name = "evict.read" },
	{ .name = "evict.stored" },
	{ .name = "evict.marked", .punching = true },
	{ .name = "evict.punched", .punching = true, .hole = true },
	{ .name = "evict.finished", .hole = true, .out = true },
};

static bool held_in_gate;

typedef void scene(struct rig *rig, const struct point *point);

/* The order is given; whether it comes to its end while the engine is held. Where it must not, its fault is
 * known to the engine when this returns, so that it really waits. Where the gate is held, and a kept copy
 * means that the page is protected already, no fault can be read: that cannot be looked at. */
static bool give_order(struct rig *rig, uint32_t process, uint32_t number, struct puppet_order order,
		       bool waits)
{
	struct engine_stats before = rig_stats(rig);

	puppet_tell(rig, process, number, order);
	if (before.kept_pages && held_in_gate)
		return false;
	if (!waits) {
		puppet_await(rig, process, number);
		return true;
	}
	rig_await_fault(rig, before.fault_count);
	if (puppet_is_done(rig, process, number))
		FAIL("page %llu was written while its hole was punched", (unsigned long long)order.page);
	return false;
}

static void settle(struct rig *rig, uint32_t process, uint32_t number, bool done)
{
	if (!done)
		puppet_await(rig, process, number);
}

/* Set the scene at each point of a swap-out. prepare: with the engine at rest, or NULL. All bytes are right
 * afterwards, in the VMM and in its first child if it has one, by demand faults and after swap-in. */
static void at_each_point(const struct layout *layout, void (*prepare)(struct rig *rig), scene *play)
{
	for (size_t i = 0; i < sizeof points / sizeof *points; i++) {
		const struct point *point = &points[i];
		struct rig rig;

		fprintf(stderr, "at %s\n", point->name);
		rig_start(&rig, layout);
		if (prepare)
			prepare(&rig);
		rig_start_job_until(&rig, JOB_SWAP_OUT, point->name);
		held_in_gate = point->in_gate;
		play(&rig, point);
		held_in_gate = false;
		rig_end_job(&rig);
		puppet_check_all(&rig, 0);
		if (rig.forked)
			puppet_check_all(&rig, 1);
		rig_run_job(&rig, JOB_SWAP_OUT);
		rig_run_job(&rig, JOB_SWAP_IN);
		CHECK_EQ(rig_stats(&rig).swap_pages, 0);
		puppet_check_all(&rig, 0);
		if (rig.forked)
			puppet_check_all(&rig, 1);
		CHECK_EQ(rig.odd, 0);
		rig_stop(&rig);
	}
}

static void fork_one(struct rig *rig)
{
	rig_fork(rig, 1);
}

/* The page came back by a read: its copy is kept, and the next swap-out does not write it. */
static void out_and_read(struct rig *rig)
{
	rig_run_job(rig, JOB_SWAP_OUT);
	puppet_check_all(rig, 0);
	CHECK(rig_stats(rig).kept_pages > 0);
}

static void fork_then_out_and_read(struct rig *rig)
{
	rig_fork(rig, 1);
	out_and_read(rig);
}

static void play_write(struct rig *rig, const struct point *point)
{
	bool done = give_order(rig, 0, 0, write_half(PAGE, 1), point->punching);

	rig_disarm(point->name);
	settle(rig, 0, 0, done);
	/* Written after it was protected and before it was marked: it is not in the operation any more. */
	if (!point->in_gate && !point->punching && !point->out)
		CHECK(rig_resident(rig, PAGE));
}

TEST(write)
{
	at_each_point(&two_regions, NULL, play_write);
}

TEST(write_to_a_kept_page)
{
	at_each_point(&two_regions, out_and_read, play_write);
}

static void play_read(struct rig *rig, const struct point *point)
{
	bool waits = point->punching && point->hole;
	bool done = give_order(rig, 0, 0, order(ORDER_CHECK, PAGE, 1), waits);

	rig_disarm(point->name);
	settle(rig, 0, 0, done);
	CHECK_EQ(rig->shared->hands[0][0].value, 0);
}

TEST(read)
{
	at_each_point(&two_regions, NULL, play_read);
}

/* Each process writes its half of one page, and one of a page of its own; a third hand reads. */
static void play_two_processes(struct rig *rig, const struct point *point)
{
	bool first = give_order(rig, 0, 0, write_half(PAGE, 0), point->punching);
	bool second = give_order(rig, 1, 0, write_half(PAGE, 1), point->punching);
	bool third = give_order(rig, 0, 1, write_half(PAGE + 2, 1), point->punching);

	rig_disarm(point->name);
	settle(rig, 0, 0, first);
	settle(rig, 1, 0, second);
	settle(rig, 0, 1, third);
	CHECK_EQ(puppet_do(rig, 1, 0, order(ORDER_CHECK, PAGE, 3)), 0);
}

TEST(two_processes)
{
	at_each_point(&two_regions, fork_one, play_two_processes);
}

TEST(two_processes_and_a_kept_page)
{
	at_each_point(&two_regions, fork_then_out_and_read, play_two_processes);
}

/* Give pages up, then write half of one: the other half must be zeros, and what was written must stay. */
static void give_up_and_write(struct rig *rig, const struct point *point, enum order_kind way)
{
	bool given_up = false, written = false;

	puppet_tell(rig, 0, 0, order(way, PAGE, 3));
	if (!point->in_gate) { /* the event is read: the guest goes on */
		puppet_await(rig, 0, 0);
		given_up = true;
		written = give_order(rig, 0, 0, write_half(PAGE, 1), point->punching);
	}
	rig_disarm(point->name);
	settle(rig, 0, 0, given_up);
	if (given_up)
		settle(rig, 0, 0, written);
	else
		puppet_do(rig, 0, 0, write_half(PAGE, 1));
	if (!point->in_gate) /* else the protect may come after the write, and the page has gone out by now */
		CHECK(rig_resident(rig, PAGE));
}

static void play_remove(struct rig *rig, const struct point *point)
{
	give_up_and_write(rig, point, ORDER_REMOVE);
}

TEST(remove)
{
	at_each_point(&two_regions, NULL, play_remove);
}

TEST(remove_of_a_kept_page)
{
	at_each_point(&two_regions, out_and_read, play_remove);
}

static void play_discard(struct rig *rig, const struct point *point)
{
	give_up_and_write(rig, point, ORDER_DISCARD);
}

TEST(punch_then_dontneed)
{
	at_each_point(&two_regions, NULL, play_discard);
}

/* A hole without an event: that the page is touched is the only sign. Before the mark it reads zeros and
 * stays so. After the mark nobody can tell it from our own hole, and the page comes back with what it held:
 * that, or zeros, but not a mixture. */
static void play_silent_punch(struct rig *rig, const struct point *point)
{
	bool marked = point->punching || point->out, done;
	uint64_t versions[2] = { rig->shared->versions[PAGE][0], rig->shared->versions[PAGE][1] };

	puppet_do(rig, 0, 0, order(ORDER_PUNCH, PAGE, 1));
	if (marked) {
		rig->shared->versions[PAGE][0] = versions[0];
		rig->shared->versions[PAGE][1] = versions[1];
	}
	if (point->in_gate) {
		puppet_tell(rig, 0, 0, order(ORDER_ADOPT, PAGE, 1));
		done = false;
	} else {
		done = give_order(rig, 0, 0, order(ORDER_ADOPT, PAGE, 1), point->punching);
	}
	rig_disarm(point->name);
	settle(rig, 0, 0, done);
	CHECK_EQ(rig->shared->hands[0][0].value, 0);
	puppet_do(rig, 0, 0, write_half(PAGE, 1));
}

TEST(silent_punch_and_touch)
{
	at_each_point(&two_regions, NULL, play_silent_punch);
}

/* QEMU's balloon punches before it tells. A page with a copy that is a hole when it is read has not changed
 * behind our back. */
TEST(silent_punch_of_a_kept_page)
{
	struct rig rig;

	rig_start(&rig, &two_regions);
	out_and_read(&rig);
	rig_start_job_until(&rig, JOB_SWAP_OUT, "evict.checked");
	puppet_do(&rig, 0, 0, order(ORDER_PUNCH, PAGE, 2));
	rig_disarm("evict.checked");
	rig_end_job(&rig);
	CHECK_EQ(rig.odd, 0);
	puppet_check_all(&rig, 0);
	rig_stop(&rig);
}

static void play_fork(struct rig *rig, const struct point *point)
{
	bool forked = false, written = false;

	puppet_tell(rig, 0, 0, (struct puppet_order){ .kind = ORDER_FORK, .process = 1 });
	if (!point->in_gate) {
		puppet_await(rig, 0, 0);
		rig_await_notice(rig, NOTICE_PROCESS_FORKED);
		forked = true;
		written = give_order(rig, 1, 0, write_half(PAGE, 1), point->punching);
		give_order(rig, 0, 1, order(ORDER_CHECK, PAGE + 4, 1), point->punching && point->hole);
	}
	rig_disarm(point->name);
	if (!forked) {
		puppet_await(rig, 0, 0);
		rig_await_notice(rig, NOTICE_PROCESS_FORKED);
		puppet_do(rig, 1, 0, write_half(PAGE, 1));
	} else {
		settle(rig, 1, 0, written);
		settle(rig, 0, 1, !(point->punching && point->hole));
		CHECK_EQ(rig->shared->hands[0][1].value, 0);
	}
	puppet_do(rig, 0, 0, write_half(PAGE + 2, 0));
}

TEST(fork_and_the_child_writes)
{
	at_each_point(&two_regions, NULL, play_fork);
}

/* KVM and vhost write guest memory from within the kernel; so do these, in the VMM and in a device
 * process. */
static void play_kernel_writes(struct rig *rig, const struct point *point)
{
	struct puppet_order from_file = { .kind = ORDER_FROM_FILE, .page = PAGE, .half = 1 };
	struct puppet_order from_file_too = { .kind = ORDER_FROM_FILE, .page = PAGE + 2, .half = 0 };
	bool first = give_order(rig, 1, 0, from_file, point->punching);
	bool second = give_order(rig, 0, 0, from_file_too, point->punching);

	rig_disarm(point->name);
	settle(rig, 1, 0, first);
	settle(rig, 0, 0, second);
}

TEST(kernel_writes)
{
	at_each_point(&two_regions, fork_one, play_kernel_writes);
}

static int pipe_ends[2];

static void open_pipe_and_fork(struct rig *rig)
{
	(void)rig;
	rig_fork(rig, 1);
}

static void play_kernel_reads(struct rig *rig, const struct point *point)
{
	bool waits = point->punching && point->hole;
	struct puppet_order to_pipe = { .kind = ORDER_TO_FILE, .page = PAGE, .fd = pipe_ends[1] };
	bool done = give_order(rig, 1, 0, to_pipe, waits);
	uint64_t words[PUPPET_WORDS];

	rig_disarm(point->name);
	settle(rig, 1, 0, done);
	CHECK_EQ(read(pipe_ends[0], words, sizeof words), sizeof words);
	for (uint64_t word = 0; word < PUPPET_WORDS; word++)
		CHECK(words[word] == puppet_word(PAGE, 1, word));
}

TEST(kernel_reads)
{
	CHECK_SYS(pipe(pipe_ends));
	at_each_point(&two_regions, open_pipe_and_fork, play_kernel_reads);
}

/* The same layout of memory as two regions of one file, neither of which starts or ends at 2 MiB. */
TEST(write_with_regions_at_odd_offsets)
{
	static const struct layout odd = { .memfd_pages = { 1600 },
					   .regions = { { 0, 3, 700 }, { 0, 703, 497 }, { 0, 1301, 150 } } };

	at_each_point(&odd, NULL, play_write);
	at_each_point(&odd, NULL, play_remove);
}

struct joining {
	struct rig *rig;
	int rc;
	_Atomic bool done;
};

static void *join(void *argument)
{
	struct joining *joining = argument;
	struct error err = { 0 };

	joining->rc = rig_add_process(joining->rig, PUPPET_STRANGER, &err);
	joining->done = true;
	return NULL;
}

/* A process that maps guest memory joins in the middle. It was not protected, so what it writes is seen by
 * nobody: nothing that was protected before it came may go. Where a punch is under way it is protected at
 * once, and what it writes there waits. */
static void play_join(struct rig *rig, const struct point *point)
{
	struct joining joining = { .rig = rig };
	pthread_t thread;
	bool written = false;

	CHECK_OK(pthread_create(&thread, NULL, join, &joining));
	if (point->in_gate) {
		CHECK(!joining.done);
		rig_disarm(point->name);
		CHECK_OK(pthread_join(thread, NULL));
		puppet_do(rig, PUPPET_STRANGER, 0, write_half(PAGE, 1));
	} else {
		CHECK_OK(pthread_join(thread, NULL));
		written = give_order(rig, PUPPET_STRANGER, 0, write_half(PAGE, 1), point->punching);
		rig_disarm(point->name);
		settle(rig, PUPPET_STRANGER, 0, written);
	}
	CHECK_OK(joining.rc);
	puppet_do(rig, PUPPET_STRANGER, 1, order(ORDER_CHECK, 0, rig->total_pages));
	CHECK_EQ(rig->shared->hands[PUPPET_STRANGER][1].value, 0);
}

TEST(a_process_joins)
{
	at_each_point(&with_stranger, NULL, play_join);
}

/* Turned round: what is out stays out, what is not is as before, and swap-in follows at once. */
TEST(cancel_a_swap_out)
{
	for (size_t i = 0; i < sizeof points / sizeof *points; i++) {
		struct rig rig;

		rig_start(&rig, &two_regions);
		rig_start_job_until(&rig, JOB_SWAP_OUT, points[i].name);
		engine_cancel_job(rig.engine);
		rig_disarm(points[i].name);
		CHECK(rig_await_job(&rig).cancelled);
		CHECK(rig_resident_pages(&rig, 512, 488) == 488 - 61); /* no further window was begun */
		rig_run_job(&rig, JOB_SWAP_IN);
		CHECK_EQ(rig_stats(&rig).swap_pages, 0);
		for (uint64_t page = 0; page < rig.total_pages; page += 7)
			puppet_do(&rig, 0, 0, write_half(page, 1));
		puppet_check_all(&rig, 0);
		rig_run_job(&rig, JOB_SWAP_OUT);
		puppet_check_all(&rig, 0);
		rig_stop(&rig);
	}
}

/* A writer waits for the window that its page is in, and for no other. */
TEST(a_writer_waits_for_one_window_at_most)
{
	struct rig rig;

	rig_start(&rig, &two_regions);
	rig_start_job_until(&rig, JOB_SWAP_OUT, "evict.marked");
	CHECK(!give_order(&rig, 0, 0, write_half(PAGE, 1), true));
	rig_arm(&rig, "evict.finished", "stall");
	rig_disarm("evict.marked");
	rig_await_point(&rig, "evict.finished");
	puppet_await(&rig, 0, 0); /* and the second window has not even been read */
	puppet_do(&rig, 0, 0, write_half(600, 1));
	CHECK_EQ(rig_resident_pages(&rig, 512, 188), 188 - 23);
	rig_disarm("evict.finished");
	rig_end_job(&rig);
	puppet_check_all(&rig, 0);
	rig_stop(&rig);
}

/* Only what was written stays: a page in flight is dropped alone. Then a second pass takes it too. */
TEST(the_second_pass_takes_what_was_written)
{
	struct rig rig;

	rig_start(&rig, &two_regions);
	rig_start_job_until(&rig, JOB_SWAP_OUT, "evict.read");
	puppet_do(&rig, 0, 0, write_half(PAGE, 1));
	rig_disarm("evict.read");
	rig_end_job(&rig);
	CHECK_EQ(rig_resident_pages(&rig, 0, 1000), 1);
	rig_run_job(&rig, JOB_SWAP_OUT);
	CHECK_EQ(rig_resident_pages(&rig, 0, 1000), 0);

	puppet_check_all(&rig, 0);
	rig.options.max_passes = 2;
	rig_start_job_until(&rig, JOB_SWAP_OUT, "evict.read");
	puppet_do(&rig, 0, 0, write_half(PAGE, 0));
	rig_settle(&rig);
	rig_disarm("evict.read");
	rig_end_job(&rig);
	CHECK_EQ(rig_resident_pages(&rig, 0, 1000), 0);
	puppet_check_all(&rig, 0);
	rig_stop(&rig);
}

/* --- swap-in */

static const char *const in_points[] = { "restore.claimed", "restore.fetched", "restore.copied" };

static void at_each_in_point(void (*prepare)(struct rig *rig),
			     void (*play)(struct rig *rig, const char *point))
{
	for (size_t i = 0; i < sizeof in_points / sizeof *in_points; i++) {
		struct rig rig;

		fprintf(stderr, "at %s\n", in_points[i]);
		rig_start(&rig, &two_regions);
		if (prepare)
			prepare(&rig);
		rig_run_job(&rig, JOB_SWAP_OUT);
		rig_start_job_until(&rig, JOB_SWAP_IN, in_points[i]);
		play(&rig, in_points[i]);
		puppet_check_all(&rig, 0);
		if (rig.forked)
			puppet_check_all(&rig, 1);
		CHECK_EQ(rig.odd, 0);
		rig_stop(&rig);
	}
}

static void go_on_in(struct rig *rig, const char *point)
{
	rig_disarm(point);
	rig_end_job(rig);
	CHECK_EQ(rig_stats(rig).swap_pages, 0);
	CHECK(!rig_stats(rig).tracking);
}

static void play_take_over(struct rig *rig, const char *point)
{
	puppet_do(rig, 0, 0, write_half(LATE_PAGE, 1)); /* done while the swap-in stands still */
	puppet_do(rig, 1, 0, write_half(LATE_PAGE, 0));
	CHECK_EQ(puppet_do(rig, 1, 0, order(ORDER_CHECK, LATE_PAGE + 2, 1)), 0);
	CHECK_EQ(puppet_do(rig, 0, 0, order(ORDER_CHECK, 0, 16)), 0);
	go_on_in(rig, point);
}

TEST(swap_in_demand_faults_come_first)
{
	at_each_in_point(fork_one, play_take_over);
}

static void play_remove_in(struct rig *rig, const char *point)
{
	puppet_do(rig, 0, 0, order(ORDER_REMOVE, LATE_PAGE, 3));
	puppet_do(rig, 0, 0, order(ORDER_REMOVE, PAGE, 1));
	puppet_do(rig, 0, 0, write_half(LATE_PAGE, 1));
	go_on_in(rig, point);
	CHECK(!rig_resident(rig, LATE_PAGE + 2)); /* given up, not brought back */
}

TEST(swap_in_and_remove)
{
	at_each_in_point(NULL, play_remove_in);
}

static void play_fork_in(struct rig *rig, const char *point)
{
	puppet_do(rig, 0, 0, (struct puppet_order){ .kind = ORDER_FORK, .process = 1 });
	rig_await_notice(rig, NOTICE_PROCESS_FORKED);
	puppet_do(rig, 1, 0, write_half(LATE_PAGE, 1));
	puppet_do(rig, 0, 0, write_half(LATE_PAGE, 0));
	go_on_in(rig, point);
}

TEST(swap_in_and_fork)
{
	at_each_in_point(NULL, play_fork_in);
}

/* Turned round in the other direction; nothing is lost in any. */
static void play_cancel_in(struct rig *rig, const char *point)
{
	engine_cancel_job(rig->engine);
	rig_disarm(point);
	CHECK(rig_await_job(rig).cancelled);
	CHECK(rig_stats(rig).tracking);
	rig_run_job(rig, JOB_SWAP_OUT);
	CHECK_EQ(rig_resident_pages(rig, 0, rig->total_pages), 0);
	puppet_do(rig, 0, 0, write_half(LATE_PAGE, 1));
}

/* As compaction does with the copy of a page that nobody works on. False: compaction itself has just done
 * it. */
static bool try_to_relocate(struct rig *rig, uint64_t page_idx)
{
	struct vm *vm = &rig->engine->vm;
	uint64_t from_idx = page_slot_of(page_word(vm, page_idx)), to_idx;
	_Alignas(PAGE_BYTES) char bytes[PAGE_BYTES];
	const void *put = bytes;
	struct error err = { 0 };
	bool is_done;

	if (store_get(vm->store, &from_idx, 1, bytes))
		return false;
	CHECK_OK(store_put(vm->store, &put, &page_idx, 1, &to_idx, &err));
	is_done = page_relocate(vm, page_idx, from_idx, to_idx);
	store_drop(vm->store, is_done ? &from_idx : &to_idx, 1);
	return is_done;
}

static void relocate(struct rig *rig, uint64_t page)
{
	unsigned tries = 0;

	while (!try_to_relocate(rig, rig->first_idx[0] + page))
		CHECK(++tries < 1000);
}

/* A copy that outlived this would count as good when memory goes out again, whatever was written until
 * then. */
TEST(compaction_moves_a_kept_copy_that_is_being_dropped)
{
	struct rig rig;

	rig_start(&rig, &two_regions);
	rig_run_job(&rig, JOB_SWAP_OUT);
	puppet_do(&rig, 0, 0, order(ORDER_TOUCH, PAGE, 1));
	rig_settle(&rig);
	CHECK_EQ(rig_stats(&rig).kept_pages, 1);
	rig_start_job_until(&rig, JOB_SWAP_IN, "kept.seen");
	relocate(&rig, PAGE);
	rig_disarm("kept.seen");
	rig_end_job(&rig);
	CHECK_EQ(rig_stats(&rig).kept_pages, 0);
	CHECK_EQ(rig_stats(&rig).used_slots, 0);
	puppet_check_all(&rig, 0);
	rig_stop(&rig);
}

TEST(cancel_a_swap_in)
{
	at_each_in_point(NULL, play_cancel_in);
}

/* --- faults */

/* The hand is in the middle of reading `page`, which is out, and the engine in the middle of fetching it. */
static void start_fetching(struct rig *rig)
{
	rig_start(rig, &two_regions);
	rig_run_job(rig, JOB_SWAP_OUT);
	rig_arm(rig, "resolve.claimed", "stall");
	puppet_tell(rig, 0, 0, order(ORDER_TOUCH, PAGE, 1));
	rig_await_point(rig, "resolve.claimed");
}

static void stop_fetching(struct rig *rig)
{
	rig_disarm("resolve.claimed");
	puppet_await(rig, 0, 0);
	puppet_check_all(rig, 0);
	rig_run_job(rig, JOB_SWAP_IN);
	puppet_check_all(rig, 0);
	CHECK_EQ(rig->odd, 0);
	rig_stop(rig);
}

TEST(remove_while_a_fault_is_fetching)
{
	struct rig rig;

	start_fetching(&rig);
	puppet_do(&rig, 0, 1, order(ORDER_REMOVE, PAGE, 1));
	stop_fetching(&rig);
}

TEST(remove_and_write_while_a_fault_is_fetching)
{
	struct rig rig;

	start_fetching(&rig);
	puppet_do(&rig, 0, 1, order(ORDER_REMOVE, PAGE, 1));
	puppet_do(&rig, 0, 1, write_half(PAGE, 1));
	stop_fetching(&rig);
}

/* The slot that is about to be read is another page's by then. */
TEST(slot_reused_while_a_fault_is_fetching)
{
	struct rig rig;

	start_fetching(&rig);
	puppet_do(&rig, 0, 1, order(ORDER_REMOVE, PAGE, 1));
	puppet_do(&rig, 0, 1, write_half(HOLE, 0));
	puppet_do(&rig, 0, 1, write_half(HOLE, 1));
	rig_run_job(&rig, JOB_SWAP_OUT);
	CHECK(!rig_resident(&rig, HOLE));
	stop_fetching(&rig);
}

/* Given up, written anew, and out again, into the same slot perhaps: the fault's bytes are of another
 * life. */
TEST(out_again_while_a_fault_is_fetching)
{
	struct rig rig;

	start_fetching(&rig);
	puppet_do(&rig, 0, 1, order(ORDER_REMOVE, PAGE, 1));
	puppet_do(&rig, 0, 1, write_half(PAGE, 1));
	rig_run_job(&rig, JOB_SWAP_OUT);
	CHECK(!rig_resident(&rig, PAGE));
	stop_fetching(&rig);
}

TEST(two_processes_fault_on_one_page)
{
	uint64_t faults;
	struct rig rig;

	rig_start(&rig, &two_regions);
	rig_fork(&rig, 1);
	rig_run_job(&rig, JOB_SWAP_OUT);
	rig_arm(&rig, "resolve.claimed", "stall");
	puppet_tell(&rig, 0, 0, write_half(PAGE, 0));
	rig_await_point(&rig, "resolve.claimed");
	faults = rig_stats(&rig).fault_count;
	puppet_tell(&rig, 1, 0, write_half(PAGE, 1));
	rig_await_fault(&rig, faults);
	CHECK(!puppet_is_done(&rig, 1, 0));
	rig_disarm("resolve.claimed");
	puppet_await(&rig, 0, 0);
	puppet_await(&rig, 1, 0);
	rig_settle(&rig);
	CHECK_EQ(rig_stats(&rig).copied_pages, 1);
	puppet_check_all(&rig, 0);
	puppet_check_all(&rig, 1);
	rig_stop(&rig);
}

/* The bytes are there, the COPY is about to be made: a REMOVE is read before or after, never between the
 * two. */
static void remove_at(const char *point)
{
	struct rig rig;

	rig_start(&rig, &two_regions);
	rig_run_job(&rig, JOB_SWAP_OUT);
	rig_arm(&rig, point, "stall");
	puppet_tell(&rig, 0, 0, order(ORDER_TOUCH, PAGE, 1));
	rig_await_point(&rig, point);
	puppet_tell(&rig, 0, 1, order(ORDER_REMOVE, PAGE, 1));
	rig_disarm(point);
	puppet_await(&rig, 0, 0);
	puppet_await(&rig, 0, 1);
	puppet_check_all(&rig, 0);
	rig_run_job(&rig, JOB_SWAP_IN);
	puppet_check_all(&rig, 0);
	rig_stop(&rig);
}

TEST(remove_before_a_copy)
{
	remove_at("resolve.fetched");
}

TEST(remove_after_a_copy)
{
	remove_at("resolve.copied");
}

/* A swap-out meets a page that a fault is bringing in just then. */
TEST(swap_out_while_a_fault_is_fetching)
{
	struct rig rig;

	start_fetching(&rig);
	puppet_do(&rig, 0, 1, write_half(HOLE, 1));
	rig_run_job(&rig, JOB_SWAP_OUT);
	CHECK_EQ(rig_resident_pages(&rig, 0, rig.total_pages), 0);
	stop_fetching(&rig);
}

/* While one thread gives pages up without end, its unread events make each COPY, ZEROPAGE and WRITEPROTECT of
 * the process fail with EAGAIN. All others get on all the same. */
TEST(events_without_end)
{
	struct rig rig;

	rig_start(&rig, &two_regions);
	rig_fork(&rig, 1);
	puppet_tell(&rig, 0, 3, order(ORDER_REMOVE_LOOP, 600, 40));
	for (unsigned round = 0; round < 3; round++) {
		rig_run_job(&rig, JOB_SWAP_OUT);
		for (uint64_t page = 0; page < 600; page += 5) {
			puppet_do(&rig, 0, 0, write_half(page, round % 2));
			puppet_do(&rig, 1, 0, write_half(page + 2, round % 2));
		}
		CHECK_EQ(puppet_do(&rig, 1, 0, order(ORDER_CHECK, 0, 600)), 0);
		rig_run_job(&rig, JOB_SWAP_IN);
	}
	puppet_stop(&rig, 0, 3);
	puppet_check_all(&rig, 0);
	puppet_check_all(&rig, 1);
	rig_stop(&rig);
}

/* An EAGAIN that no event explains, for a while: all is tried again, none of it twice. */
TEST(copy_and_zeropage_told_to_try_again)
{
	struct rig rig;

	rig_start(&rig, &two_regions);
	rig_run_job(&rig, JOB_SWAP_OUT);
	rig_arm(&rig, "uffd.copy", "EAGAIN");
	puppet_tell(&rig, 0, 0, order(ORDER_CHECK, 0, 100));
	while (failpoint_hits("uffd.copy") < rig.hits + 20)
		sched_yield();
	CHECK(!puppet_is_done(&rig, 0, 0));
	rig_disarm("uffd.copy");
	CHECK_EQ(puppet_await(&rig, 0, 0), 0);
	rig_arm(&rig, "uffd.zeropage", "EAGAIN");
	puppet_tell(&rig, 0, 0, order(ORDER_CHECK, 103, 1)); /* 103 % 8 == 7: never written */
	while (failpoint_hits("uffd.zeropage") < rig.hits + 20)
		sched_yield();
	CHECK(!puppet_is_done(&rig, 0, 0));
	rig_disarm("uffd.zeropage");
	CHECK_EQ(puppet_await(&rig, 0, 0), 0);
	rig_arm(&rig, "uffd.protect", "once:EAGAIN");
	rig_run_job(&rig, JOB_SWAP_OUT);
	rig_disarm("uffd.protect");
	CHECK_EQ(rig_resident_pages(&rig, 0, rig.total_pages), 0);
	puppet_check_all(&rig, 0);
	rig_stop(&rig);
}

/* --- large folios: units of 512 pages, whole or not at all */

static const struct layout folios = {
	.memfd_pages = { 2048 }, .regions = { { 0, 0, 2048 } }, .full = 1, .huge = 1
};

static void start_with_folios(struct rig *rig, const struct layout *layout, uint64_t huge_pages, bool bpf)
{
	struct pins *pins;
	struct error err = { 0 };

	rig_start(rig, layout);
	if (huge_mapped_pages(rig->pids[0]) < huge_pages)
		test_skip("the kernel gave %llu pages of huge memory, not %llu",
			  (unsigned long long)huge_mapped_pages(rig->pids[0]),
			  (unsigned long long)huge_pages);
	if (!bpf)
		return;
	rig->options.check_pins = true;
	rig->options.pins.allow_bpf = true;
	if (pins_create(&rig->options.pins, &pins, &err))
		test_skip("no page check by BPF here: %s", err.message);
	pins_destroy(pins);
}

static void one_hot_page_a_folio(bool bpf)
{
	uint64_t resident;
	struct rig rig;

	use_large_folios("always");
	start_with_folios(&rig, &folios, 2048, bpf);
	for (uint32_t number = 1; number < 4; number++)
		puppet_tell(&rig, 0, number,
			    (struct puppet_order){ .kind = ORDER_WRITE_LOOP,
						   .page = (uint64_t)number * 512 - 300,
						   .half = 1 });
	rig.options.max_passes = 3;
	for (unsigned round = 0; round < 3; round++) {
		rig_run_job(&rig, JOB_SWAP_OUT);
		CHECK_EQ(rig_resident_pages(&rig, 1536, 512), 0); /* nobody wrote there */
		for (uint64_t page = 0; page < 1536; page += 128)
			CHECK_EQ(puppet_do(&rig, 0, 0, order(ORDER_CHECK, page, 1)), 0);
	}
	for (uint32_t number = 1; number < 4; number++)
		puppet_stop(&rig, 0, number);
	puppet_check_all(&rig, 0);
	rig_run_job(&rig, JOB_SWAP_IN);
	puppet_check_all(&rig, 0);
	resident = rig_resident_pages(&rig, 0, rig.total_pages);
	CHECK_EQ(resident, rig.total_pages);
	CHECK_EQ(rig.odd, 0);
	rig_stop(&rig);
}

TEST(large_folios_with_one_hot_page_each)
{
	one_hot_page_a_folio(false);
}

TEST(large_folios_with_one_hot_page_each_seen_by_bpf)
{
	one_hot_page_a_folio(true);
}

/* One page of the first folio is written at each point: the folio stays whole, or has gone whole. */
static void whole_or_not_at_all(bool bpf)
{
	use_large_folios("always");
	for (size_t i = 0; i < sizeof points / sizeof *points; i++) {
		const struct point *point = &points[i];
		bool dropped = !point->in_gate && !point->punching && !point->out, done;
		struct rig rig;

		fprintf(stderr, "at %s\n", point->name);
		start_with_folios(&rig, &folios, 2048, bpf);
		rig_start_job_until(&rig, JOB_SWAP_OUT, point->name);
		done = give_order(&rig, 0, 0, write_half(PAGE, 1), point->punching);
		rig_disarm(point->name);
		settle(&rig, 0, 0, done);
		rig_end_job(&rig);
		if (dropped)
			CHECK_EQ(rig_resident_pages(&rig, 0, 512), 512);
		else
			CHECK_EQ(rig_resident_pages(&rig, 0, 512), point->in_gate ? 0 : 1);
		CHECK_EQ(rig_resident_pages(&rig, 512, 1536), 0);
		puppet_check_all(&rig, 0);
		CHECK_EQ(rig.odd, 0);
		rig_stop(&rig);
	}
}

TEST(large_folios_whole_or_not_at_all)
{
	whole_or_not_at_all(false);
}

TEST(large_folios_whole_or_not_at_all_seen_by_bpf)
{
	whole_or_not_at_all(true);
}

/* A region that covers only a part of a folio cannot take that folio out: the rest may be anybody's. */
static void parts_of_folios_stay(bool bpf)
{
	static const struct layout parts = {
		.memfd_pages = { 2048 }, .regions = { { 0, 0, 700 }, { 0, 1024, 1024 } }, .full = 1, .huge = 1
	};
	struct rig rig;

	use_large_folios("always");
	start_with_folios(&rig, &parts, 1536, bpf);
	rig_run_job(&rig, JOB_SWAP_OUT);
	CHECK_EQ(rig_resident_pages(&rig, 0, 512), 0);
	CHECK_EQ(rig_resident_pages(&rig, 512, 188), 188);
	CHECK_EQ(rig_resident_pages(&rig, 700, 1024), 0);
	puppet_check_all(&rig, 0);
	CHECK_EQ(rig.odd, 0);
	rig_stop(&rig);
}

TEST(parts_of_large_folios_stay)
{
	parts_of_folios_stay(false);
}

TEST(parts_of_large_folios_stay_seen_by_bpf)
{
	parts_of_folios_stay(true);
}

/* The VMM makes a huge page itself, on a machine whose settings say that there are none: only the page check
 * knows. */
static long collapse(void *addr, long argument)
{
	(void)argument;
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif
	long rc;

	madvise(addr, 2 << 20, MADV_HUGEPAGE);
	rc = madvise(addr, 2 << 20, MADV_COLLAPSE);
	madvise(addr, 2 << 20, MADV_NOHUGEPAGE);
	return rc;
}

TEST(a_folio_that_the_guest_made_itself)
{
	static const struct layout plain = { .memfd_pages = { 1024 },
					     .regions = { { 0, 0, 1024 } },
					     .full = 1 };
	struct puppet_order make = { .kind = ORDER_CALL, .page = 0, .run = collapse };
	struct rig rig;

	start_with_folios(&rig, &plain, 0, true);
	if (puppet_do(&rig, 0, 0, make) != 0 || huge_mapped_pages(rig.pids[0]) < 512)
		test_skip("MADV_COLLAPSE gives no huge page now");
	rig_start_job_until(&rig, JOB_SWAP_OUT, "evict.read");
	puppet_do(&rig, 0, 0, write_half(PAGE, 1));
	rig_disarm("evict.read");
	rig_end_job(&rig);
	CHECK_EQ(rig_resident_pages(&rig, 0, 512), 512);
	CHECK_EQ(rig_resident_pages(&rig, 512, 512), 0);
	puppet_check_all(&rig, 0);
	CHECK_EQ(rig.odd, 0);
	rig_stop(&rig);
}
