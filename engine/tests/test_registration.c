/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What is registered is the guest's memory, all of it and nothing else, whatever the processes that map it do
 * meanwhile. */
#include "puppet.h"
#include "vm/registration.h"

#define PAGES 1024

static const struct layout layout = {
	.memfd_pages = { PAGES }, .regions = { { 0, 0, PAGES } }, .full = 1, .stranger = 1
};
static const struct layout not_started = {
	.memfd_pages = { PAGES }, .regions = { { 0, 0, PAGES } }, .full = 1, .not_started = 1
};

static uint64_t call(struct rig *rig, uint32_t process, long (*run)(void *, long), long argument)
{
	return puppet_do(rig, process, 0,
			 (struct puppet_order){ .kind = ORDER_CALL, .run = run, .argument = argument });
}

static long have_it_not_inherited(void *addr, long unused)
{
	(void)unused;
	return madvise(addr, PAGES * 4096, MADV_DONTFORK) ? errno : 0;
}

static long map_over(void *addr, long pages, int flags, int fd)
{
	return mmap(addr, (size_t)pages * 4096, PROT_READ | PROT_WRITE, flags | MAP_FIXED, fd, 0) ==
			       MAP_FAILED ?
		       errno :
		       0;
}

static long map_private(void *addr, long pages)
{
	return map_over(addr, pages, MAP_PRIVATE | MAP_ANONYMOUS, -1);
}

static long map_shared(void *addr, long pages)
{
	return map_over(addr, pages, MAP_SHARED | MAP_ANONYMOUS, -1);
}

static long map_private_memfd(void *addr, long pages)
{
	int fd = memfd_create("own", MFD_CLOEXEC);

	return ftruncate(fd, pages * 4096) ? errno : map_over(addr, pages, MAP_PRIVATE, fd);
}

static long count_non_zero(void *addr, long pages)
{
	const unsigned char *bytes = addr;
	long n = 0;

	for (size_t i = 0; i < (size_t)pages * 4096; i++)
		n += bytes[i] != 0;
	return n;
}

static void tell_to_fork(struct rig *rig, uint32_t process, uint32_t child)
{
	puppet_tell(rig, process, 0, (struct puppet_order){ .kind = ORDER_FORK, .process = child });
}

/* The engine stands where no event is read: until one of the process waits. */
static void await_event(struct rig *rig, uint32_t process)
{
	struct pollfd waiting = { .fd = rig->uffds[process], .events = POLLIN };

	CHECK_EQ(poll(&waiting, 1, PUPPET_PATIENCE_MS), 1);
}

/* Of a child, whose userfaultfd nobody has yet. */
static void await_wait_in_fork(pid_t pid)
{
	char path[64], where[64];

	snprintf(path, sizeof path, "/proc/%d/wchan", pid);
	for (int waited_ms = 0;; waited_ms++) {
		int fd = (int)CHECK_SYS(open(path, O_RDONLY | O_CLOEXEC));
		ssize_t got = read(fd, where, sizeof where - 1);

		close(fd);
		where[got > 0 ? got : 0] = 0;
		if (strstr(where, "userfaultfd") || strstr(where, "dup_mm"))
			return;
		if (waited_ms > PUPPET_PATIENCE_MS)
			FAIL("process %d stands at %s", pid, where);
		poll(NULL, 0, 1);
	}
}

/* The child runs as soon as its event is read, and may have something of its own in the place of the guest's
 * before it is looked at. */
static void squat_before_adopted(struct rig *rig, uint32_t child, long (*map)(void *, long))
{
	rig_arm(rig, "fault.fork-read", "stall");
	tell_to_fork(rig, 0, child);
	rig_await_point(rig, "fault.fork-read");
	puppet_await(rig, 0, 0);
	CHECK_EQ(call(rig, child, map, PAGES), 0);
	rig_disarm("fault.fork-read");
	rig_await_fork(rig);
}

/* Guest memory is not inherited: all that the child maps there is its own, and stays so, whenever it was
 * forked. */
TEST(a_childs_own_memory_is_left_alone)
{
	struct rig rig;

	rig_start(&rig, &layout);
	CHECK_EQ(call(&rig, 0, have_it_not_inherited, 0), 0);
	squat_before_adopted(&rig, 1, map_private);
	rig_run_job(&rig, JOB_SWAP_OUT);
	CHECK_EQ(rig_stats(&rig).swap_pages, PAGES);
	CHECK_EQ(call(&rig, 1, count_non_zero, PAGES), 0);
	squat_before_adopted(&rig, 2, map_private); /* while all is out */
	CHECK_EQ(call(&rig, 2, count_non_zero, PAGES), 0);
	puppet_check_all(&rig, 0);
	rig_run_job(&rig, JOB_SWAP_OUT);
	CHECK_EQ(call(&rig, 1, count_non_zero, PAGES), 0);
	CHECK_EQ(call(&rig, 2, count_non_zero, PAGES), 0);
	puppet_check_all(&rig, 0);
	rig_run_job(&rig, JOB_SWAP_IN);
	CHECK_EQ(rig.odd, 0);
	rig_stop(&rig);
}

static long write_all(void *addr, long pages)
{
	for (size_t i = 0; i < (size_t)pages; i++)
		((volatile char *)addr)[i * 4096] = 0x5a;
	return 0;
}

/* The thread sanitizer allows no threads in the child of a process that has some. */
#if defined(__has_feature)
#define THREADS_IN_CHILD (!__has_feature(thread_sanitizer))
#else
#define THREADS_IN_CHILD 1
#endif

static pthread_barrier_t both;

static void *touch(void *addr)
{
	pthread_barrier_wait(&both);
	return (void *)(long)*(volatile char *)addr;
}

/* Each page by two threads at once. */
static long touch_by_two(void *addr, long pages)
{
	CHECK_OK(pthread_barrier_init(&both, NULL, 2));
	for (long i = 0; i < pages; i++) {
		pthread_t threads[2];

		for (size_t n = 0; n < 2; n++)
			CHECK_OK(pthread_create(&threads[n], NULL, touch, (char *)addr + i * 4096));
		for (size_t n = 0; n < 2; n++)
			pthread_join(threads[n], NULL);
	}
	return 0;
}

/* Shared memory of its own cannot be told from the guest's then. The child gets what is not its own where it
 * had nothing, may use all of it, and takes nothing from the guest. */
static void other_shmem(long (*map)(void *, long), bool writes)
{
	struct rig rig;

	rig_start(&rig, &layout);
	CHECK_EQ(call(&rig, 0, have_it_not_inherited, 0), 0);
	squat_before_adopted(&rig, 1, map);
	call(&rig, 1, write_all, 8);
	rig_run_job(&rig, JOB_SWAP_OUT);
	CHECK_EQ(rig_stats(&rig).swap_pages, PAGES);
	call(&rig, 1, write_all, 8);
	if (THREADS_IN_CHILD)
		call(&rig, 1, touch_by_two, PAGES / 2);
	if (writes)
		call(&rig, 1, write_all, PAGES / 4);
	call(&rig, 1, count_non_zero, PAGES);
	rig_settle(&rig);
	CHECK_EQ(rig_stats(&rig).swap_pages, PAGES);
	puppet_check_all(&rig, 0);
	rig_run_job(&rig, JOB_SWAP_IN);
	puppet_check_all(&rig, 0);
	rig_stop(&rig);
}

TEST(a_childs_shared_memory_takes_nothing_from_the_guest)
{
	other_shmem(map_shared, true);
}

TEST(a_childs_private_mapping_of_a_memfd_takes_nothing_from_the_guest)
{
	/* What came to it in a hole of that file it can read, and its writes there wait for ever: the kernel
	 * answers no question that would tell such a page from a hole. */
	other_shmem(map_private_memfd, false);
}

static long unmap(void *addr, long unused)
{
	(void)unused;
	return munmap(addr, PAGES * 4096) ? errno : 0;
}

static long map_memfd(void *addr, long memfd)
{
	return map_over(addr, PAGES, MAP_SHARED, (int)memfd);
}

TEST(a_swap_in_through_a_childs_shared_memory_takes_nothing_from_the_guest)
{
	struct rig rig;

	rig_start(&rig, &layout);
	CHECK_EQ(call(&rig, 0, have_it_not_inherited, 0), 0);
	squat_before_adopted(&rig, 1, map_shared);
	rig_run_job(&rig, JOB_SWAP_OUT);
	call(&rig, 1, count_non_zero, 8);
	CHECK_EQ(call(&rig, 0, unmap, 0), 0);
	rig_run_job(&rig, JOB_SWAP_IN);
	CHECK_EQ(call(&rig, 0, map_memfd, rig.memfds[0]), 0);
	puppet_check_all(&rig, 0);
	rig_stop(&rig);
}

/* It had inherited guest memory, and nothing told of its end. */
TEST(a_childs_memory_in_the_place_of_guest_memory_stops_the_swap_out)
{
	struct notice done;
	struct rig rig;

	rig_start(&rig, &layout);
	rig_fork(&rig, 1);
	CHECK_EQ(call(&rig, 1, map_private, PAGES), 0);
	rig_start_job(&rig, JOB_SWAP_OUT);
	done = rig_await_job(&rig);
	CHECK_EQ(done.code, EINVAL);
	CHECK_CONTAINS(done.message, "cannot be registered");
	CHECK_EQ(rig_stats(&rig).swap_pages, 0);
	CHECK_EQ(call(&rig, 1, count_non_zero, PAGES), 0);
	puppet_check_all(&rig, 0);
	rig_stop(&rig);
}

/* The child has the VMM's registrations as they were in the middle. It is served, and what it does is
 * seen. */
TEST(a_fork_while_memory_is_registered)
{
	struct puppet_order write = { .kind = ORDER_WRITE, .page = 5, .half = 1 };
	struct rig rig;

	rig_start(&rig, &layout);
	rig_start_job_until(&rig, JOB_SWAP_OUT, "uffd.minor");
	tell_to_fork(&rig, 0, 1);
	await_event(&rig, 0);
	rig_disarm("uffd.minor");
	puppet_await(&rig, 0, 0);
	rig_end_job(&rig);
	CHECK_EQ(rig_stats(&rig).swap_pages, PAGES);
	puppet_check_all(&rig, 0); /* all is there, and the child has mapped none of it */
	puppet_check_all(&rig, 1);
	puppet_do(&rig, 1, 0, write);
	rig_run_job(&rig, JOB_SWAP_OUT);
	puppet_check_all(&rig, 1);
	puppet_check_all(&rig, 0);
	CHECK_EQ(rig.odd, 0);
	rig_stop(&rig);
}

static void *add_stranger(void *rig)
{
	struct error err = { 0 };

	CHECK_OK(rig_add_process(rig, PUPPET_STRANGER, &err));
	return NULL;
}

/* The same of a process that joins while all is out. */
TEST(a_fork_of_a_process_that_is_joining)
{
	struct rig rig;
	pthread_t thread;

	rig_start(&rig, &layout);
	rig_run_job(&rig, JOB_SWAP_OUT);
	rig_arm(&rig, "uffd.minor", "stall");
	CHECK_OK(pthread_create(&thread, NULL, add_stranger, &rig));
	rig_await_point(&rig, "uffd.minor");
	tell_to_fork(&rig, PUPPET_STRANGER, 1);
	await_event(&rig, PUPPET_STRANGER);
	rig_disarm("uffd.minor");
	pthread_join(thread, NULL);
	puppet_await(&rig, PUPPET_STRANGER, 0);
	puppet_check_all(&rig, 1);
	puppet_check_all(&rig, 0);
	CHECK_EQ(rig.odd, 0);
	rig_stop(&rig);
}

static long own_pid(void *unused, long also_unused)
{
	(void)unused;
	(void)also_unused;
	return getpid();
}

/* The child was forked before memory was registered, and forks itself before it is looked at: the kernel
 * answers no question about it then. */
TEST(a_child_that_forks_at_once)
{
	struct error err = { 0 };
	struct rig rig;

	rig_start(&rig, &not_started);
	tell_to_fork(&rig, 0, 1);
	await_event(&rig, 0);
	rig_start_job(&rig, JOB_SWAP_OUT);
	while (!rig_stats(&rig).tracking)
		sched_yield();
	rig_arm(&rig, "fault.fork-read", "stall");
	CHECK_OK(engine_start(rig.engine, &err));
	rig_await_point(&rig, "fault.fork-read");
	puppet_await(&rig, 0, 0);
	rig.pids[1] = (pid_t)call(&rig, 1, own_pid, 0);
	tell_to_fork(&rig, 1, 2);
	await_wait_in_fork(rig.pids[1]);
	rig.pids[1] = 0; /* its parent's to wait for */
	rig_disarm("fault.fork-read");
	puppet_await(&rig, 1, 0);
	rig_end_job(&rig);
	puppet_check_all(&rig, 2);
	puppet_check_all(&rig, 1);
	puppet_check_all(&rig, 0);
	rig_run_job(&rig, JOB_SWAP_OUT);
	CHECK_EQ(rig_stats(&rig).swap_pages, PAGES);
	for (uint32_t process = 0; process < 3; process++)
		puppet_check_all(&rig, process);
	CHECK_EQ(rig.odd, 0);
	rig_stop(&rig);
}

/* --- a successor */

static void succeed(struct rig *rig, int child)
{
	struct engine_config config = { .swap_dir = "/tmp", .workers = 1, .fault_threads = 3 };
	struct engine *before = rig->engine;
	struct error err = { 0 };
	struct range range;
	uint32_t id;

	engine_stop(before);
	config.page_map_fd = (int)CHECK_SYS(fcntl(engine_page_map_fd(before), F_DUPFD_CLOEXEC, 3));
	config.store_fd = (int)CHECK_SYS(fcntl(engine_store_fd(before), F_DUPFD_CLOEXEC, 3));
	engine_destroy(before); /* what it leaves is in the files, and with whoever waits */
	CHECK_OK(engine_create(&config, &rig->engine, &err));
	CHECK_OK(engine_add_region(rig->engine, rig->memfds[0], 0, PAGES * 4096, &rig->first_idx[0], &err));
	CHECK_OK(rig_add_process(rig, 0, &err));
	range = (struct range){ rig->shared->base_addr[0][0], rig->first_idx[0], PAGES };
	if (child >= 0)
		CHECK_OK(engine_add_process(rig->engine, child, &range, 1, &id, &err));
}

static void *recover(void *rig)
{
	struct error err = { 0 };
	uint64_t out_pages;
	uint32_t last_job;

	CHECK_OK(engine_recover(((struct rig *)rig)->engine, &out_pages, &last_job, &err));
	return NULL;
}

/* A child that was served has put something of its own in a part of its guest memory's place. */
TEST(a_successor_and_a_part_of_a_childs_own)
{
	struct error err = { 0 };
	struct notice forked;
	struct rig rig;
	int child;

	rig_start(&rig, &layout);
	rig_run_job(&rig, JOB_SWAP_OUT);
	tell_to_fork(&rig, 0, 1);
	forked = rig_await_fork(&rig);
	puppet_await(&rig, 0, 0);
	child = (int)CHECK_SYS(fcntl(forked.fd, F_DUPFD_CLOEXEC, 3));
	CHECK_EQ(call(&rig, 1, map_private, PAGES / 2), 0);
	succeed(&rig, child);
	recover(&rig);
	CHECK_OK(engine_start(rig.engine, &err));
	CHECK_EQ(call(&rig, 1, count_non_zero, PAGES / 2), 0);
	CHECK_EQ(puppet_do(&rig, 1, 0,
			   (struct puppet_order){
				   .kind = ORDER_CHECK, .page = PAGES / 2, .pages = PAGES / 2 }),
		 0);
	puppet_check_all(&rig, 0);
	rig_stop(&rig);
}

static long map_anew_but_for_some(void *addr, long memfd)
{
	char *rest = (char *)addr + 17 * 4096;

	return mmap(rest, (PAGES - 17) * 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, (int)memfd,
		    17 * 4096) == MAP_FAILED ?
		       errno :
		       map_over(addr, 1, MAP_SHARED, (int)memfd);
}

/* A touch of what is out waits at each instant, also while the rest, mapped anew, is registered. */
TEST(a_touch_while_a_successor_registers)
{
	struct error err = { 0 };
	struct rig rig;
	pthread_t thread;

	rig_start(&rig, &layout);
	rig_run_job(&rig, JOB_SWAP_OUT);
	CHECK_EQ(call(&rig, 0, map_anew_but_for_some, rig.memfds[0]), 0);
	succeed(&rig, -1);
	rig_arm(&rig, "uffd.minor", "stall");
	CHECK_OK(pthread_create(&thread, NULL, recover, &rig));
	rig_await_point(&rig, "uffd.minor");
	puppet_tell(&rig, 0, 1, (struct puppet_order){ .kind = ORDER_CHECK, .page = 5 });
	await_event(&rig, 0);
	CHECK(!puppet_is_done(&rig, 0, 1));
	rig_disarm("uffd.minor");
	pthread_join(thread, NULL);
	CHECK_OK(engine_start(rig.engine, &err));
	CHECK_EQ(puppet_await(&rig, 0, 1), 0);
	puppet_check_all(&rig, 0);
	rig_stop(&rig);
}

/* --- at the end of a swap-in: nothing is registered any more, a piece at a time */

static const struct layout large = { .memfd_pages = { 8192 }, .regions = { { 0, 0, 8192 } } };
#define PIECES (8192 / REGISTRATION_PIECE_PAGES)

static void check_registered(const struct rig *rig, uint32_t process, int uffd, enum uffd_answer want)
{
	for (uint64_t page = 0; page < 8192; page += 512) {
		uint64_t addr = (uint64_t)(uintptr_t)puppet_at(rig, process, page);
		enum uffd_answer answer = uffd_is_registered(uffd, addr);

		/* A thread that has forked need not have run on since its event was read: until then the
		 * kernel does not say. */
		for (int waited_ms = 0; answer == UFFD_UNKNOWN && waited_ms < PUPPET_PATIENCE_MS;
		     waited_ms++) {
			poll(NULL, 0, 1);
			answer = uffd_is_registered(uffd, addr);
		}
		CHECK_EQ(answer, want);
	}
}

TEST(unregistered_in_pieces_while_a_child_is_forked)
{
	struct notice forked;
	struct rig rig;
	int child;

	rig_start(&rig, &large);
	rig_run_job(&rig, JOB_SWAP_OUT);
	rig_start_job_until(&rig, JOB_SWAP_IN, "swapper.unregistered");
	CHECK_EQ(uffd_is_registered(rig.uffds[0], (uint64_t)(uintptr_t)puppet_at(&rig, 0, 0)), UFFD_NO);
	CHECK_EQ(uffd_is_registered(rig.uffds[0], (uint64_t)(uintptr_t)puppet_at(&rig, 0, 8191)), UFFD_YES);
	tell_to_fork(&rig, 0, 1);
	forked = rig_await_fork(&rig);
	puppet_await(&rig, 0, 0);
	child = (int)CHECK_SYS(fcntl(forked.fd, F_DUPFD_CLOEXEC, 3));
	for (uint32_t process = 0; process < 2; process++) {
		puppet_do(&rig, process, 0,
			  (struct puppet_order){ .kind = ORDER_WRITE, .page = 10 + process });
		puppet_do(&rig, process, 0,
			  (struct puppet_order){ .kind = ORDER_WRITE, .page = 8000 + process });
	}
	rig_disarm("swapper.unregistered");
	rig_end_job(&rig);
	CHECK(failpoint_hits("swapper.unregistered") >= rig.hits + 1);
	CHECK_EQ(rig_stats(&rig).tracking, 0);
	check_registered(&rig, 0, rig.uffds[0], UFFD_NO);
	check_registered(&rig, 1, child, UFFD_NO);
	puppet_check_all(&rig, 0);
	puppet_check_all(&rig, 1);
	rig_stop(&rig);
}

/* Its event is read only when nothing is tracked any more. What it has inherited is unregistered in pieces by
 * housekeeping, and served until then. */
TEST(a_child_that_is_seen_when_all_is_unregistered)
{
	struct notice forked;
	uint64_t pieces = 0;
	struct rig rig;
	int child;

	rig_start(&rig, &large);
	rig_run_job(&rig, JOB_SWAP_OUT);
	puppet_check_all(&rig, 0);
	rig_start_job_until(&rig, JOB_SWAP_IN, "swapper.unregistered");
	rig_arm(&rig, "fault.reading", "stall");
	tell_to_fork(&rig, 0, 1);
	rig_await_point(&rig, "fault.reading");
	rig_disarm("swapper.unregistered");
	CHECK(!rig_await_notice(&rig, NOTICE_JOB_DONE).code);
	CHECK_EQ(rig_stats(&rig).tracking, 0);
	rig_disarm("fault.reading");
	forked = rig_await_fork(&rig);
	puppet_await(&rig, 0, 0);
	child = (int)CHECK_SYS(fcntl(forked.fd, F_DUPFD_CLOEXEC, 3));
	CHECK_EQ(uffd_is_registered(child, (uint64_t)(uintptr_t)puppet_at(&rig, 1, 8191)), UFFD_YES);
	puppet_do(&rig, 0, 0, (struct puppet_order){ .kind = ORDER_PUNCH, .page = 8000 });
	puppet_do(&rig, 1, 0, (struct puppet_order){ .kind = ORDER_WRITE, .page = 8000 });
	while (engine_housekeep(rig.engine))
		pieces++;
	CHECK(pieces >= 1);
	check_registered(&rig, 1, child, UFFD_NO);
	puppet_check_all(&rig, 1);
	puppet_check_all(&rig, 0);
	rig_run_job(&rig, JOB_SWAP_OUT);
	check_registered(&rig, 1, child, UFFD_YES);
	CHECK(!engine_housekeep(rig.engine));
	puppet_check_all(&rig, 1);
	rig_run_job(&rig, JOB_SWAP_IN);
	check_registered(&rig, 1, child, UFFD_NO);
	puppet_check_all(&rig, 0);
	CHECK_EQ(rig.odd, 0);
	close(child);
	rig_stop(&rig);
}

/* All is swapped out again before it is unregistered: then it stays registered. */
TEST(a_child_that_is_seen_late_and_a_swap_out)
{
	struct notice forked;
	struct rig rig;
	int child;

	rig_start(&rig, &large);
	rig_run_job(&rig, JOB_SWAP_OUT);
	rig_start_job_until(&rig, JOB_SWAP_IN, "swapper.unregistered");
	rig_arm(&rig, "fault.reading", "stall");
	tell_to_fork(&rig, 0, 1);
	rig_await_point(&rig, "fault.reading");
	rig_disarm("swapper.unregistered");
	CHECK(!rig_await_notice(&rig, NOTICE_JOB_DONE).code);
	rig_disarm("fault.reading");
	forked = rig_await_fork(&rig);
	puppet_await(&rig, 0, 0);
	child = (int)CHECK_SYS(fcntl(forked.fd, F_DUPFD_CLOEXEC, 3));
	rig_run_job(&rig, JOB_SWAP_OUT);
	CHECK(rig_stats(&rig).swap_pages > 0);
	engine_housekeep(rig.engine);
	check_registered(&rig, 1, child, UFFD_YES);
	puppet_check_all(&rig, 1);
	puppet_check_all(&rig, 0);
	close(child);
	rig_stop(&rig);
}

TEST(cancelled_while_it_is_unregistered)
{
	struct rig rig;

	rig_start(&rig, &large);
	rig_run_job(&rig, JOB_SWAP_OUT);
	rig_start_job_until(&rig, JOB_SWAP_IN, "swapper.unregistered");
	engine_cancel_job(rig.engine);
	rig_disarm("swapper.unregistered");
	CHECK(rig_await_notice(&rig, NOTICE_JOB_DONE).cancelled);
	CHECK_EQ(rig_stats(&rig).tracking, 1);
	check_registered(&rig, 0, rig.uffds[0], UFFD_YES);
	rig_run_job(&rig, JOB_SWAP_OUT);
	CHECK(rig_stats(&rig).swap_pages > 0);
	puppet_check_all(&rig, 0);
	CHECK_OK(failpoint_arm("swapper.unregistered=count"));
	rig.hits = failpoint_hits("swapper.unregistered");
	rig_run_job(&rig, JOB_SWAP_IN);
	CHECK(failpoint_hits("swapper.unregistered") - rig.hits >= PIECES);
	CHECK_EQ(rig_stats(&rig).tracking, 0);
	check_registered(&rig, 0, rig.uffds[0], UFFD_NO);
	rig_stop(&rig);
}

/* The child has the VMM's registrations as they were between two pieces; its event is read when the VMM has
 * them all again. */
TEST(a_fork_between_two_pieces_and_a_cancel)
{
	struct notice forked;
	struct rig rig;
	int child;

	rig_start(&rig, &large);
	rig_run_job(&rig, JOB_SWAP_OUT);
	rig_start_job_until(&rig, JOB_SWAP_IN, "swapper.unregistered");
	rig_arm(&rig, "fault.reading", "stall");
	tell_to_fork(&rig, 0, 1);
	rig_await_point(&rig, "fault.reading");
	engine_cancel_job(rig.engine);
	rig_disarm("swapper.unregistered");
	CHECK(rig_await_notice(&rig, NOTICE_JOB_DONE).cancelled);
	rig_disarm("fault.reading");
	forked = rig_await_fork(&rig);
	puppet_await(&rig, 0, 0);
	child = (int)CHECK_SYS(fcntl(forked.fd, F_DUPFD_CLOEXEC, 3));
	rig_settle(&rig); /* the notice comes before the child is registered */
	check_registered(&rig, 1, child, UFFD_YES);
	rig_run_job(&rig, JOB_SWAP_OUT);
	CHECK(rig_stats(&rig).swap_pages > 0);
	puppet_check_all(&rig, 1);
	puppet_check_all(&rig, 0);
	close(child);
	rig_stop(&rig);
}
