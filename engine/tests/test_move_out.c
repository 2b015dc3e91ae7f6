/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Private memory on its way out, as in test_races.c: the engine is held at a failpoint, the guest does its
 * part, the engine goes on, and every byte is looked at.
 *
 * Pages 0 to 299 are in flight when the engine is held: the first window of the first region, which begins in
 * its middle. */
#include <setjmp.h>

#include "puppet.h"
#include "uring.h"

#define PAGE 1
#define HOLE 7 /* never written */

static const struct layout private_memory = { .regions = { { 0, 212, 700 }, { 0, 0, 300 } }, .private = 1 };
static const struct layout inherited_memory = { .regions = { { 0, 212, 700 }, { 0, 0, 300 } },
						.private = 1,
						.inherited = 1 };

static struct puppet_order write_half(uint64_t page, uint32_t half)
{
	return (struct puppet_order){ .kind = ORDER_WRITE, .page = page, .half = half };
}

static struct puppet_order order(enum order_kind kind, uint64_t page, uint64_t pages)
{
	return (struct puppet_order){ .kind = kind, .page = page, .pages = pages };
}

static void start(struct rig *rig, const struct layout *layout)
{
	if (!mover_can_move())
		test_skip("this kernel has no UFFDIO_MOVE, which is since Linux 6.8");
	rig_start(rig, layout);
}

struct point {
	const char *name;
	bool moving; /* PUNCHING: whoever touches a page waits until it is known where the page is */
	bool out;    /* the page map says that the store has it */
};

static const struct point points[] = {
	{ .name = "move.marked", .moving = true },
	{ .name = "mover.asked", .moving = true }, /* the VMM's thread moves them now, or has done so */
	{ .name = "move.moved", .moving = true },
	{ .name = "move.read" },
	{ .name = "move.stored" },
	{ .name = "move.out", .out = true },
	{ .name = "move.discarded", .out = true },
};

typedef void scene(struct rig *rig, const struct point *point);

static void check_after(struct rig *rig)
{
	puppet_check_all(rig, 0);
	rig_run_job(rig, JOB_SWAP_OUT);
	CHECK_EQ(rig_stats(rig).pinned_pages, 0);
	rig_run_job(rig, JOB_SWAP_IN);
	CHECK_EQ(rig_stats(rig).swap_pages, 0);
	CHECK(!rig_stats(rig).tracking);
	puppet_check_all(rig, 0);
	CHECK_EQ(rig->odd + rig->incidents, 0);
	CHECK(strcmp(engine_pin_check(rig->engine), "move") == 0);
}

static void at_each_point(scene *play)
{
	for (size_t i = 0; i < sizeof points / sizeof *points; i++) {
		struct rig rig;

		fprintf(stderr, "at %s\n", points[i].name);
		start(&rig, &private_memory);
		rig_start_job_until(&rig, JOB_SWAP_OUT, points[i].name);
		play(&rig, &points[i]);
		rig_end_job(&rig);
		check_after(&rig);
		rig_stop(&rig);
	}
}

/* Where pages are being moved, the thread waits, and has its page as soon as that is over. Elsewhere it is
 * served while the engine stands still: it waits for no disk. */
static void touch(struct rig *rig, const struct point *point, struct puppet_order what)
{
	uint64_t faults = rig_stats(rig).fault_count;

	puppet_tell(rig, 0, 0, what);
	if (!point->moving)
		puppet_await(rig, 0, 0);
	else if (strcmp(point->name, "move.moved") == 0) { /* surely moved away */
		rig_await_fault(rig, faults);
		CHECK(!puppet_is_done(rig, 0, 0));
	}
}

static void play_write(struct rig *rig, const struct point *point)
{
	touch(rig, point, write_half(PAGE, 1));
	rig_disarm(point->name);
	if (point->moving)
		puppet_await(rig, 0, 0);
	else
		CHECK(rig_resident(rig, PAGE));
}

TEST(write)
{
	at_each_point(play_write);
}

static void play_read(struct rig *rig, const struct point *point)
{
	touch(rig, point, order(ORDER_CHECK, PAGE, 3));
	rig_disarm(point->name);
	if (point->moving)
		puppet_await(rig, 0, 0);
	CHECK_EQ(rig->shared->hands[0][0].value, 0);
}

TEST(read)
{
	at_each_point(play_read);
}

/* The event is read while the engine stands still, and the memory is given up. Then half of a page is
 * written: the other half is zeros. */
static void play_discard(struct rig *rig, const struct point *point)
{
	puppet_do(rig, 0, 0, order(ORDER_DISCARD, PAGE, 3));
	touch(rig, point, write_half(PAGE, 1));
	rig_disarm(point->name);
	if (point->moving)
		puppet_await(rig, 0, 0);
	CHECK(rig_resident(rig, PAGE));
}

TEST(discard)
{
	at_each_point(play_discard);
}

static void play_kernel_writes(struct rig *rig, const struct point *point)
{
	touch(rig, point, (struct puppet_order){ .kind = ORDER_FROM_FILE, .page = PAGE, .half = 1 });
	rig_disarm(point->name);
	if (point->moving)
		puppet_await(rig, 0, 0);
}

TEST(kernel_writes)
{
	at_each_point(play_kernel_writes);
}

static void play_two_threads(struct rig *rig, const struct point *point)
{
	puppet_tell(rig, 0, 1, write_half(PAGE, 0));
	puppet_tell(rig, 0, 2, order(ORDER_CHECK, PAGE + 2, 1));
	touch(rig, point, write_half(PAGE, 1));
	rig_disarm(point->name);
	if (point->moving)
		puppet_await(rig, 0, 0);
	puppet_await(rig, 0, 1);
	CHECK_EQ(puppet_await(rig, 0, 2), 0);
}

TEST(two_threads)
{
	at_each_point(play_two_threads);
}

static void end_child(struct rig *rig)
{
	struct error err = { 0 };

	puppet_tell(rig, 1, 0, (struct puppet_order){ .kind = ORDER_END });
	if (engine_remove_process(rig->engine, rig->process_ids[1], &err) == 1)
		CHECK_OK(engine_release_rest(rig->engine, &err));
}

/* As QEMU's children, it has none of guest memory. */
static void play_fork(struct rig *rig, const struct point *point)
{
	puppet_do(rig, 0, 0, (struct puppet_order){ .kind = ORDER_FORK, .process = 1 });
	rig->process_ids[1] = rig_await_fork(rig).process_id;
	touch(rig, point, write_half(PAGE, 1));
	rig_disarm(point->name);
	if (point->moving)
		puppet_await(rig, 0, 0);
	end_child(rig);
}

TEST(fork_of_a_child_without_guest_memory)
{
	at_each_point(play_fork);
}

static void play_cancel(struct rig *rig, const struct point *point)
{
	engine_cancel_job(rig->engine);
	rig_disarm(point->name);
	puppet_check_all(rig, 0);
}

TEST(cancelled)
{
	at_each_point(play_cancel);
}

/* --- what is read while nothing is served, and what cannot be moved */

TEST(all_goes_out_and_comes_back)
{
	struct rig rig;
	uint64_t data_pages = 1000 - 1000 / 8;

	start(&rig, &private_memory);
	CHECK(engine_needs_count(rig.engine));
	engine_count_resident(rig.engine);
	CHECK_EQ(rig_stats(&rig).resident_pages, data_pages);
	rig_run_job(&rig, JOB_SWAP_OUT);
	CHECK_EQ(rig_stats(&rig).swap_pages, data_pages);
	CHECK_EQ(rig_stats(&rig).resident_pages, 0);
	CHECK_EQ(rig_resident_pages(&rig, 0, 1000), 0);
	CHECK_EQ(rig_stats(&rig).last_mode, MODE_LIVE);
	puppet_check_all(&rig, 0);
	check_after(&rig);
	rig_stop(&rig);
}

/* Zeros that the guest wrote take no slot. */
TEST(zeros)
{
	struct rig rig;

	start(&rig, &private_memory);
	for (uint64_t page = 8; page < 12; page++) {
		puppet_do(&rig, 0, 0, order(ORDER_DISCARD, page, 1));
		puppet_do(&rig, 0, 0, order(ORDER_TOUCH, page, 1));
	}
	rig_run_job(&rig, JOB_SWAP_OUT);
	CHECK_EQ(rig_stats(&rig).swap_pages, 1000 - 1000 / 8 - 4);
	check_after(&rig);
	rig_stop(&rig);
}

static long register_buffers(void *addr, long pages)
{
	struct io_uring_params params = { 0 };
	struct iovec buffer = { addr, (size_t)pages * 4096 };
	long ring = syscall(SYS_io_uring_setup, 4, &params);

	if (ring < 0)
		return -errno;
	return syscall(SYS_io_uring_register, ring, 0 /* IORING_REGISTER_BUFFERS */, &buffer, 1) ? -errno :
												   ring;
}

/* The kernel itself refuses to move what a device may write to. */
TEST(pinned_pages_stay)
{
	struct rig rig;
	long ring;

	start(&rig, &private_memory);
	ring = (long)puppet_do(&rig, 0, 0,
			       (struct puppet_order){ .kind = ORDER_CALL,
						      .page = 16,
						      .run = register_buffers,
						      .argument = 5 });
	if (ring < 0)
		test_skip("no io_uring here: %s", strerror((int)-ring));
	rig.options.max_passes = 2;
	rig_run_job(&rig, JOB_SWAP_OUT);
	CHECK_EQ(rig_stats(&rig).pinned_pages, 5);
	CHECK_EQ(rig_stats(&rig).resident_pages, 5);
	CHECK_EQ(rig_resident_pages(&rig, 16, 5), 5);
	puppet_check_all(&rig, 0);
	rig_run_job(&rig, JOB_SWAP_IN);
	puppet_check_all(&rig, 0);
	rig_stop(&rig);
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

/* A child that has guest memory sees it as it was at the fork, or gets no answer, never the VMM's later
 * bytes. Nothing goes out while it lives. */
TEST(a_child_has_a_copy)
{
	struct rig rig;
	struct notice done;

	start(&rig, &inherited_memory);
	rig_run_job(&rig, JOB_SWAP_OUT);
	rig_fork(&rig, 1);
	CHECK_EQ(puppet_do(&rig, 1, 0, order(ORDER_CHECK, PAGE, 1)), 0);
	CHECK_EQ(puppet_do(&rig, 1, 0, order(ORDER_CHECK, HOLE - 1, 1)), 0);
	CHECK(!rig_resident(&rig, PAGE));
	puppet_do(&rig, 0, 0, write_half(PAGE, 1));
	CHECK_EQ(puppet_do(&rig, 1, 0, order(ORDER_CHECK, PAGE, 1)), 1); /* the VMM's write is not its own */
	rig_start_job(&rig, JOB_SWAP_OUT);
	done = rig_await_job(&rig);
	CHECK_EQ(done.code, EINVAL);
	CHECK(rig_resident(&rig, PAGE));

	/* what came back since may have been written to */
	puppet_do(&rig, 0, 0, write_half(PAGE + 1, 0));
	CHECK_EQ(puppet_do(&rig, 1, 0,
			   (struct puppet_order){ .kind = ORDER_CALL, .page = PAGE + 1, .run = gets_sigbus }),
		 1);
	end_child(&rig);
	check_after(&rig);
	rig_stop(&rig);
}

static long discard(void *addr, long size_bytes)
{
	return madvise(addr, (size_t)size_bytes, MADV_DONTNEED);
}

/* A child that gives up its copy of a page does not give up the VMM's. */
TEST(a_child_gives_its_copy_up)
{
	struct rig rig;

	start(&rig, &inherited_memory);
	rig_run_job(&rig, JOB_SWAP_OUT);
	rig_fork(&rig, 1);
	CHECK_EQ(puppet_do(&rig, 1, 0,
			   (struct puppet_order){
				   .kind = ORDER_CALL, .page = PAGE, .run = discard, .argument = 4096 }),
		 0);
	puppet_check_all(&rig, 0);
	end_child(&rig);
	check_after(&rig);
	rig_stop(&rig);
}

/* A write that fails leaves what it was about where the guest has it. */
TEST(no_space)
{
	struct rig rig;
	struct notice done;

	start(&rig, &private_memory);
	rig_arm(&rig, "store.write", "ENOSPC");
	rig_start_job(&rig, JOB_SWAP_OUT);
	done = rig_await_job(&rig);
	CHECK_EQ(done.code, 0); /* what there is no room for stays, and that is said */
	CHECK_EQ(rig_stats(&rig).limited_by, LIMITED_BY_NO_SPACE);
	rig_disarm("store.write");
	CHECK_EQ(rig_stats(&rig).swap_pages, 0);
	CHECK_EQ(rig_resident_pages(&rig, 0, 1000), 1000 - 1000 / 8);
	check_after(&rig);
	rig_stop(&rig);
}

TEST(a_bad_block)
{
	struct rig rig;

	start(&rig, &private_memory);
	rig_arm(&rig, "store.write", "times:3:EIO");
	rig_run_job(&rig, JOB_SWAP_OUT);
	rig_disarm("store.write");
	puppet_check_all(&rig, 0);
	check_after(&rig);
	rig_stop(&rig);
}

TEST(unreadable_scratch)
{
	struct rig rig;
	struct notice done;

	start(&rig, &private_memory);
	rig_arm(&rig, "mover.read", "once:ENOMEM");
	rig_start_job(&rig, JOB_SWAP_OUT);
	done = rig_await_job(&rig);
	CHECK_EQ(done.code, ENOMEM);
	rig_disarm("mover.read");
	CHECK_EQ(rig_resident_pages(&rig, 0, 1000), 1000 - 1000 / 8);
	check_after(&rig);
	rig_stop(&rig);
}

static long make_huge(void *addr, long size_bytes)
{
	if (madvise(addr, (size_t)size_bytes, MADV_HUGEPAGE) ||
	    madvise(addr, (size_t)size_bytes, 25 /* MADV_COLLAPSE, since Linux 6.1 */))
		return -errno;
	return 0;
}

/* Huge pages move whole where all of one goes, and are split elsewhere. */
TEST(huge_pages)
{
	static const struct layout huge = { .regions = { { 0, 0, 1024 }, { 0, 212, 900 } },
					    .private = 1,
					    .full = 1 };
	struct rig rig;
	long made;

	start(&rig, &huge);
	made = (long)puppet_do(&rig, 0, 0,
			       (struct puppet_order){ .kind = ORDER_CALL,
						      .page = 0,
						      .run = make_huge,
						      .argument = 4 << 20 });
	made |= (long)puppet_do(&rig, 0, 0,
				(struct puppet_order){ .kind = ORDER_CALL,
						       .page = 1024 + 300,
						       .run = make_huge,
						       .argument = 2 << 20 });
	if (made)
		test_skip("no huge pages can be made here: %s", strerror((int)-made));
	puppet_do(&rig, 0, 0, order(ORDER_DISCARD, 600, 1));
	rig_run_job(&rig, JOB_SWAP_OUT);
	CHECK_EQ(rig_stats(&rig).resident_pages, 0);
	check_after(&rig);
	rig_stop(&rig);
}

static const struct layout two_huge_pages = { .regions = { { 0, 0, 1024 } }, .private = 1, .full = 1 };

static void start_with_huge_pages(struct rig *rig)
{
	start(rig, &two_huge_pages);
	if (puppet_do(rig, 0, 0,
		      (struct puppet_order){
			      .kind = ORDER_CALL, .page = 0, .run = make_huge, .argument = 4 << 20 }))
		test_skip("no huge pages can be made here");
}

/* No page of a huge page moves while one of them is held. Kernels that try to split it without end are
 * stopped. */
static void huge_pages_stay(struct rig *rig, uint64_t held_page, uint64_t pages)
{
	rig_run_job(rig, JOB_SWAP_OUT);
	CHECK_EQ(rig_resident_pages(rig, held_page, 1), 1);
	CHECK(rig_stats(rig).pinned_pages >= pages);
	CHECK_EQ(rig_stats(rig).left_pages, 0);
	puppet_check_all(rig, 0);
	rig_run_job(rig, JOB_SWAP_IN);
	puppet_check_all(rig, 0);
	CHECK_EQ(rig->odd + rig->incidents, 0);
	rig_stop(rig);
}

TEST(huge_pages_that_are_pinned_stay)
{
	struct rig rig;
	long ring;

	start_with_huge_pages(&rig);
	ring = (long)puppet_do(&rig, 0, 0,
			       (struct puppet_order){ .kind = ORDER_CALL,
						      .page = 16,
						      .run = register_buffers,
						      .argument = 5 });
	if (ring < 0)
		test_skip("no io_uring here: %s", strerror((int)-ring));
	huge_pages_stay(&rig, 16, 5);
}

static long into_a_pipe(void *addr, long bytes)
{
	int fds[2];
	struct iovec part = { addr, (size_t)bytes };

	return pipe(fds) || vmsplice(fds[1], &part, 1, 0) != bytes ? -errno : fds[0];
}

/* One page is gone, so the rest cannot move as a whole; and another is held, for reading. */
TEST(parts_of_huge_pages_that_are_held_stay)
{
	struct rig rig;

	start_with_huge_pages(&rig);
	CHECK((long)puppet_do(&rig, 0, 0,
			      (struct puppet_order){ .kind = ORDER_CALL,
						     .page = 520,
						     .run = into_a_pipe,
						     .argument = 4096 }) > 0);
	puppet_do(&rig, 0, 0, order(ORDER_DISCARD, 600, 1));
	huge_pages_stay(&rig, 520, 1);
}

static long split(void *addr, long size_bytes)
{
	return madvise(addr, (size_t)size_bytes, MADV_DONTDUMP);
}

/* The kernel moves only what is in one mapping: pages of a window that is in several are moved all the
 * same. */
TEST(several_mappings_in_a_window)
{
	struct rig rig;

	start(&rig, &private_memory);
	CHECK_EQ(puppet_do(&rig, 0, 0,
			   (struct puppet_order){
				   .kind = ORDER_CALL, .page = 100, .run = split, .argument = 2 * 4096 }),
		 0);
	rig_run_job(&rig, JOB_SWAP_OUT);
	CHECK_EQ(rig_stats(&rig).resident_pages, 0);
	check_after(&rig);
	rig_stop(&rig);
}

static long map_anew(void *addr, long size_bytes)
{
	if (mmap(addr, (size_t)size_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED,
		 -1, 0) != addr)
		return -errno;
	memset(addr, 0xee, (size_t)size_bytes);
	return 0;
}

static long is_as_mapped(void *addr, long size_bytes)
{
	for (long i = 0; i < size_bytes; i++)
		if (((unsigned char *)addr)[i] != 0xee)
			return i + 1;
	return 0;
}

/* What the VMM has mapped in the place of guest memory, with no event, is not guest memory: nobody would wait
 * for it. */
TEST(memory_that_was_mapped_anew_stays)
{
	struct puppet_order call = { .kind = ORDER_CALL, .page = 100, .run = map_anew, .argument = 3 * 4096 };
	struct rig rig;

	start(&rig, &private_memory);
	rig_run_job(&rig, JOB_SWAP_OUT);
	rig_run_job(&rig, JOB_SWAP_IN);
	rig_run_job(&rig, JOB_SWAP_OUT);
	puppet_do(&rig, 0, 0, order(ORDER_CHECK, 96, 16)); /* in again */
	CHECK_EQ(puppet_do(&rig, 0, 0, call), 0);
	rig_run_job(&rig, JOB_SWAP_OUT);
	CHECK_EQ(rig_resident_pages(&rig, 100, 3), 3);
	CHECK_EQ(rig_resident_pages(&rig, 96, 4), 0);
	call.run = is_as_mapped;
	CHECK_EQ(puppet_do(&rig, 0, 0, call), 0);
	rig_stop(&rig);
}

/* Nobody at the mailbox: the job fails, the guest has all of its memory, and the next one works. */
TEST(nobody_moves)
{
	struct rig rig;
	struct notice done;

	start(&rig, &private_memory);
	rig_arm(&rig, "mover.ask", "once:ETIMEDOUT");
	rig_start_job(&rig, JOB_SWAP_OUT);
	done = rig_await_job(&rig);
	CHECK_EQ(done.code, ETIMEDOUT);
	puppet_check_all(&rig, 0);
	check_after(&rig);
	rig_stop(&rig);
}
