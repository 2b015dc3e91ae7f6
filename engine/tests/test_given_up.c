/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What the guest has given up by MADV_REMOVE stays so, however late the kernel punches: it raises its event
 * before. */
#include "inode_lock.h"
#include "vm/page_map.h"

static const struct layout layout = { .memfd_pages = { 512 }, .regions = { { 0, 0, 512 } }, .full = 1 };

#define GIVEN_UP 5

static void pin(size_t cpu)
{
	cpu_set_t one;

	CPU_ZERO(&one);
	CPU_SET(cpu, &one);
	CHECK_SYS(sched_setaffinity(0, sizeof one, &one));
}

static long pin_and_tell_tid(void *addr, long cpu)
{
	(void)addr;
	pin((size_t)cpu);
	return syscall(SYS_gettid);
}

/* One of them is taken from the guest's thread. */
static void need_two_cpus(void)
{
	struct sched_param fifo = { .sched_priority = 1 }, other = { 0 };
	cpu_set_t both, mine;

	CPU_ZERO(&both);
	CPU_SET(0, &both);
	CPU_SET(1, &both);
	CHECK_SYS(sched_getaffinity(0, sizeof mine, &mine));
	CPU_AND(&mine, &mine, &both);
	if (!CPU_EQUAL(&mine, &both))
		test_skip("needs CPUs 0 and 1");
	if (sched_setscheduler(0, SCHED_FIFO, &fifo))
		test_skip("needs SCHED_FIFO: %s", strerror(errno));
	CHECK_SYS(sched_setscheduler(0, SCHED_OTHER, &other));
}

static _Atomic bool hog_runs, hog_stop;

/* Nobody else gets CPU 0. */
static void *hog(void *unused)
{
	struct sched_param priority = { .sched_priority = 1 };

	pin(0);
	CHECK_OK(pthread_setschedparam(pthread_self(), SCHED_FIFO, &priority));
	hog_runs = true;
	while (!hog_stop)
		;
	return unused;
}

/* The guest's thread stands between its event and its hole, for the lock of the inode and then for want of a
 * CPU, while a pass of a swap-out begins and ends. written: another thread writes to the page meanwhile. */
static void swap_out_before_the_hole(struct rig *rig, pid_t tid, bool written)
{
	struct puppet_order give_up = { .kind = ORDER_REMOVE, .page = GIVEN_UP },
			    write = { .kind = ORDER_WRITE, .page = GIVEN_UP };
	struct inode_lock lock;
	pthread_t hogging;

	rig->options.check_pins = true;
	rig->options.pins.allow_settle = true; /* so that each pass waits to be told to go on */
	rig->options.pins.settle_ms = 60000;
	/* as if an event had been unread */
	CHECK_OK(failpoint_arm("uffd.protect=once:EAGAIN;evict.protected=stall"));
	rig->hits = failpoint_hits("evict.protected");
	rig_start_job(rig, JOB_SWAP_OUT);
	rig_await_point(rig, "evict.protected");
	inode_lock_take(&lock, rig->memfds[0], 510);
	puppet_tell(rig, 0, 1, give_up);
	await_wchan(tid, "shmem_fallocate");
	if (written) {
		puppet_do(rig, 0, 2, write);
		rig_settle(rig);
	}
	rig_arm(rig, "evict.protected", "count");
	rig_await_point(rig, "evict.protected");
	CHECK_OK(pthread_create(&hogging, NULL, hog, NULL));
	while (!hog_runs)
		sched_yield();
	inode_lock_release(&lock);
	engine_continue_job(rig->engine);
	rig_end_job(rig);
	hog_stop = true;
	CHECK_OK(pthread_join(hogging, NULL));
	puppet_await(rig, 0, 1);
}

/* Returns the thread that gives up. */
static pid_t start(struct rig *rig)
{
	struct puppet_order tell_tid = { .kind = ORDER_CALL, .run = pin_and_tell_tid, .argument = 0 };

	need_two_cpus();
	pin(1);
	rig_start(rig, &layout);
	return (pid_t)puppet_do(rig, 0, 1, tell_tid);
}

TEST(remove_whose_hole_comes_late)
{
	struct puppet_order look = { .kind = ORDER_CHECK, .page = GIVEN_UP };
	struct rig rig;

	swap_out_before_the_hole(&rig, start(&rig), false);
	CHECK_EQ(puppet_do(&rig, 0, 0, look), 0);
	rig_stop(&rig);
}

static long second_half(void *addr, long unused)
{
	(void)unused;
	return ((long *)addr)[511];
}

/* A write to a page that is protected shows nothing of the hole. */
TEST(written_while_it_is_given_up)
{
	struct puppet_order all = { .kind = ORDER_CHECK, .pages = 512 };
	struct puppet_order look = { .kind = ORDER_CALL, .page = GIVEN_UP, .run = second_half };
	struct rig rig;
	pid_t tid = start(&rig);

	rig_run_job(&rig, JOB_SWAP_OUT);
	CHECK_EQ(puppet_do(&rig, 0, 0, all), 0); /* kept, and protected */
	for (uint64_t page = 100; page < 120; page++)
		puppet_do(&rig, 0, 0, (struct puppet_order){ .kind = ORDER_WRITE, .page = page });
	rig_settle(&rig);
	swap_out_before_the_hole(&rig, tid, true);
	CHECK_EQ(puppet_do(&rig, 0, 0, look), 0);
	rig_stop(&rig);
}

static const struct layout two_chunks = { .memfd_pages = { 1024 }, .regions = { { 0, 0, 1024 } }, .full = 1 };

TEST(one_page_given_up_during_the_first_swap_out)
{
	struct rig rig;

	rig_start(&rig, &two_chunks);
	rig.options.max_passes = 5;
	rig_start_job_until(&rig, JOB_SWAP_OUT, "evict.protected");
	puppet_do(&rig, 0, 0, (struct puppet_order){ .kind = ORDER_DISCARD, .page = 600 });
	rig_disarm("evict.protected");
	rig_end_job(&rig);
	CHECK_EQ(rig_resident_pages(&rig, 0, 512), 0);
	CHECK_EQ(rig_resident_pages(&rig, 512, 512), 0);
	rig_stop(&rig);
}

static const struct layout untouched = { .memfd_pages = { 1536 }, .regions = { { 0, 0, 1024 } }, .empty = 1 };

#define BEYOND 1100	/* of the file; no memory of the guest's */
#define IN_THE_FILE 600 /* there before anything is known of it */

static uint64_t word_of(const struct rig *rig, uint64_t page_idx)
{
	struct page_map *map;
	struct error err;
	uint64_t word;

	CHECK_OK(page_map_adopt(engine_page_map_fd(rig->engine), &map, &err));
	word = atomic_load(page_map_word(map, page_idx));
	page_map_destroy(map);
	return word;
}

/* A child that was forked while its parent's memory was being registered asks for each page that it has not
 * mapped yet. */
static void fork_one_that_asks(struct rig *rig)
{
	rig_arm(rig, "uffd.minor", "stall");
	rig_start_job(rig, JOB_SWAP_OUT);
	rig_await_point(rig, "uffd.minor");
	puppet_tell(rig, 0, 0, (struct puppet_order){ .kind = ORDER_FORK, .process = 1 });
	rig_disarm("uffd.minor");
	rig_await_fork(rig);
	puppet_await(rig, 0, 0);
	rig_end_job(rig);
}

/* The event was read, the hole waits for the lock of the inode, and the child finds the page in the file.
 * False if it had the page without a fault: then nobody has asked, and what is known of the chunk still
 * holds. */
static bool given_up_and_asked_for(uint64_t page, uint64_t pages)
{
	static const char bytes[PAGE_BYTES] = "from outside";
	struct puppet_order touch = { .kind = ORDER_TOUCH, .page = IN_THE_FILE };
	struct inode_lock lock;
	struct rig rig;
	uint64_t word;

	rig_start(&rig, &untouched);
	puppet_do(&rig, 0, 0, (struct puppet_order){ .kind = ORDER_WRITE, .page = 1 });
	fork_one_that_asks(&rig);
	CHECK_EQ(pwrite(rig.memfds[0], bytes, sizeof bytes, (off_t)bytes_of_pages(IN_THE_FILE)),
		 sizeof bytes);
	inode_lock_take(&lock, rig.memfds[0], BEYOND);
	rig_arm(&rig, "event.read", "count");
	puppet_tell(&rig, 0, 1, (struct puppet_order){ .kind = ORDER_REMOVE, .page = page, .pages = pages });
	rig_await_point(&rig, "event.read");
	CHECK_EQ(puppet_do(&rig, 1, 0, touch), *(const long *)bytes);
	rig_settle(&rig);
	word = word_of(&rig, IN_THE_FILE);
	CHECK(word == 0 || word & PAGE_GIVEN_UP);
	inode_lock_release(&lock);
	puppet_await(&rig, 0, 1);
	CHECK_EQ(puppet_do(&rig, 1, 0, touch), 0);
	rig_stop(&rig);
	return word != 0;
}

/* It must not go out until the hole may be taken to be there: it would come back. */
TEST(a_page_that_is_asked_for_before_its_hole)
{
	while (!given_up_and_asked_for(IN_THE_FILE, 1))
		;
}

/* The same of a chunk that the page map has no record of. */
TEST(a_page_of_a_chunk_that_is_asked_for_before_its_hole)
{
	while (!given_up_and_asked_for(512, 512))
		;
}
