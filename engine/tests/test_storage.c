/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Storage that gives back wrong bytes, an error, or nothing for a while: what the guest sees, and how it
 * ends. */
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdatomic.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>

#include "base/failpoint.h"
#include "engine.h"
#include "harness.h"
#include "poison_marker.h"
#include "store/store.h"
#include "vm/page_map.h"

#define FAIL(...) test_fail(__FILE__, __LINE__, __VA_ARGS__)
#define PAGES 64
#define PAGE 4096
#define HANDS 3 /* two threads of the guest, and one of its child */
#define CHILD_HAND 2
#define PATIENCE_MS 60000

enum order { NOTHING, READ, WRITE, GIVE_UP, FORK, END };

/* One thread that does what it is told. What it found: the first byte of the page, or SIGBUS. */
struct hand {
	_Atomic int order; /* NOTHING again when it is done */
	uint64_t page;
	unsigned char byte;
	bool sigbus;
};

struct shared {
	struct hand hands[HANDS];
	_Atomic int uffd;
};

struct rig {
	struct shared *shared;
	struct engine *engine;
	char *base; /* in the guest's processes only */
	int memfd;
	pid_t pid;
};

static void need(bool good, const char *what)
{
	if (good)
		return;
	perror(what);
	_exit(1);
}

/* --- the guest */

static _Thread_local sigjmp_buf on_sigbus;
static struct rig *own; /* in the guest */

static void caught(int signal)
{
	(void)signal;
	siglongjmp(on_sigbus, 1);
}

static void *be_hand(void *argument);

static void be_child(void)
{
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	be_hand(&own->shared->hands[CHILD_HAND]);
	_exit(0);
}

static void obey(struct hand *hand, enum order order)
{
	volatile unsigned char *at = (unsigned char *)own->base + hand->page * PAGE;

	hand->sigbus = false;
	if (sigsetjmp(on_sigbus, 1)) {
		hand->sigbus = true;
		return;
	}
	switch (order) {
	case READ:
		hand->byte = at[0];
		break;
	case WRITE:
		at[0] = hand->byte;
		break;
	case GIVE_UP:
		need(madvise((void *)(uintptr_t)at, PAGE, MADV_REMOVE) == 0, "MADV_REMOVE");
		break;
	case FORK:
		if (fork() == 0)
			be_child();
		break;
	case NOTHING:
	case END:
		break;
	}
}

static void *be_hand(void *argument)
{
	struct hand *hand = argument;
	int order;

	while ((order = hand->order) != END) { /* one read: a second could find END, and lose it */
		if (order != NOTHING) {
			obey(hand, (enum order)order);
			/* An END that came meanwhile stays. */
			atomic_compare_exchange_strong(&hand->order, &order, NOTHING);
		}
		poll(NULL, 0, 1);
	}
	return NULL;
}

static void be_guest(struct rig *rig)
{
	struct uffdio_api api = { .api = UFFD_API,
				  .features = UFFD_FEATURE_EVENT_FORK | UFFD_FEATURE_EVENT_REMOVE |
					      UFFD_FEATURE_MISSING_SHMEM | UFFD_FEATURE_PAGEFAULT_FLAG_WP |
					      UFFD_FEATURE_WP_HUGETLBFS_SHMEM };
	struct sigaction action = { .sa_handler = caught };
	pthread_t thread;
	int uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);

	own = rig;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	need(uffd >= 0 && ioctl(uffd, UFFDIO_API, &api) == 0, "userfaultfd");
	sigaction(SIGBUS, &action, NULL);
	for (size_t page = 0; page < PAGES; page++)
		memset(rig->base + page * PAGE, (int)page + 1, PAGE);
	need(pthread_create(&thread, NULL, be_hand, &rig->shared->hands[1]) == 0, "pthread_create");
	atomic_store(&rig->shared->uffd, uffd);
	be_hand(&rig->shared->hands[0]);
	pthread_join(thread, NULL);
	_exit(0);
}

/* --- the test's side */

static void rig_start(struct rig *rig)
{
	struct engine_config config = {
		.swap_dir = test_dir(), .workers = 1, .fault_threads = 1, .page_map_fd = -1, .store_fd = -1
	};
	struct error err = { 0 };
	struct range range = { .pages = PAGES };
	int pidfd, uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC);
	uint32_t id;

	if (uffd < 0)
		test_skip("no userfaultfd here: %s", strerror(errno));
	close(uffd);
	rig->shared =
		mmap(NULL, sizeof *rig->shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	rig->shared->uffd = -1;
	rig->memfd = memfd_create("test guest", MFD_CLOEXEC);
	CHECK(ftruncate(rig->memfd, PAGES * PAGE) == 0);
	rig->base = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, rig->memfd, 0);
	rig->pid = fork();
	if (rig->pid == 0)
		be_guest(rig);
	while (rig->shared->uffd < 0)
		poll(NULL, 0, 1);
	munmap(rig->base, PAGES * PAGE); /* the guest has it at the same address */
	pidfd = (int)syscall(SYS_pidfd_open, rig->pid, 0);
	uffd = (int)syscall(SYS_pidfd_getfd, pidfd, rig->shared->uffd, 0);
	CHECK(uffd >= 0);
	close(pidfd);
	if (engine_create(&config, &rig->engine, &err))
		FAIL("engine_create: %s", err.message);
	range.addr = (uintptr_t)rig->base;
	CHECK_OK(engine_add_region(rig->engine, rig->memfd, 0, PAGES * PAGE, &range.page_idx, &err));
	CHECK_OK(engine_add_process(rig->engine, uffd, &range, 1, &id, &err));
	CHECK_OK(engine_start(rig->engine, &err));
	close(uffd);
}

static void rig_stop(struct rig *rig)
{
	int status;

	for (size_t i = 0; i < HANDS; i++)
		rig->shared->hands[i].order = END;
	CHECK_SYS(waitpid(rig->pid, &status, 0));
	CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
	engine_destroy(rig->engine);
	close(rig->memfd);
}

static struct hand *begin(struct rig *rig, size_t i, enum order order, uint64_t page)
{
	struct hand *hand = &rig->shared->hands[i];

	hand->page = page;
	hand->order = (int)order;
	return hand;
}

static void finish(struct hand *hand)
{
	for (int waited_ms = 0; hand->order != NOTHING; waited_ms++) {
		if (waited_ms > PATIENCE_MS)
			FAIL("page %llu: still waiting", (unsigned long long)hand->page);
		poll(NULL, 0, 1);
	}
}

static void check_read(struct rig *rig, size_t i, uint64_t page, unsigned byte)
{
	struct hand *hand = begin(rig, i, READ, page);

	finish(hand);
	CHECK(!hand->sigbus);
	CHECK_EQ(hand->byte, byte);
}

/* The hand gets SIGBUS, or has begun to wait. */
static void check_unreadable(struct rig *rig, size_t i, uint64_t page)
{
	struct hand *hand = &rig->shared->hands[i];

	if (have_poison()) {
		finish(hand->order == NOTHING ? begin(rig, i, READ, page) : hand);
		CHECK(hand->sigbus);
	} else if (hand->order == NOTHING) {
		begin(rig, i, READ, page);
	} else { /* it waits since an earlier look */
		CHECK(hand->order == READ && hand->page == page);
	}
}

/* The page can be read again: whoever waits for it goes on, and has the right byte. */
static void check_healed(struct rig *rig, size_t i, uint64_t page, unsigned byte)
{
	struct hand *hand = &rig->shared->hands[i];

	if (!have_poison() && hand->page == page && hand->order != NOTHING) {
		finish(hand);
		CHECK(!hand->sigbus);
		CHECK_EQ(hand->byte, byte);
	}
	check_read(rig, i, page, byte);
}

/* The next notice of the kind; others are dropped. */
static struct notice await(struct rig *rig, enum notice_kind kind)
{
	struct pollfd waiting = { .fd = engine_notices_fd(rig->engine), .events = POLLIN };
	struct notice notice;

	while (poll(&waiting, 1, PATIENCE_MS) == 1)
		while (engine_take_notice(rig->engine, &notice))
			if (notice.kind == kind)
				return notice;
	FAIL("no notice of kind %d", (int)kind);
}

static struct notice run_job(struct rig *rig, enum job_kind job)
{
	struct swap_out_options options = { .mode = MODE_LIVE, .max_passes = 1 };
	struct error err = { 0 };

	CHECK_OK(engine_start_job(rig->engine, job, &options, &err));
	return await(rig, NOTICE_JOB_DONE);
}

static struct engine_stats stats_of(struct rig *rig)
{
	struct engine_stats stats;

	engine_read_stats(rig->engine, &stats);
	return stats;
}

static void fork_child(struct rig *rig)
{
	finish(begin(rig, 1, FORK, 0)); /* hand 0 may be waiting */
	await(rig, NOTICE_PROCESS_FORKED);
}

/* Change what the swap file has for a page, under the engine's feet; twice is as if never. */
static void flip_stored_byte(struct rig *rig, uint64_t page)
{
	struct page_map *map;
	struct error err;
	char path[64];
	unsigned char byte;
	off_t offset;
	int fd;

	CHECK_OK(page_map_adopt(engine_page_map_fd(rig->engine), &map, &err));
	CHECK(page_state_of(*page_map_word(map, page)) == PAGE_STORED ||
	      page_state_of(*page_map_word(map, page)) == PAGE_POISONED);
	offset = (off_t)(page_slot_of(*page_map_word(map, page)) * PAGE + 100);
	page_map_destroy(map);
	snprintf(path, sizeof path, "/proc/self/fd/%d", engine_store_fd(rig->engine));
	fd = open(path, O_RDWR | O_CLOEXEC);
	CHECK(fd >= 0 && pread(fd, &byte, 1, offset) == 1);
	byte ^= 0x10;
	CHECK(pwrite(fd, &byte, 1, offset) == 1 && fsync(fd) == 0);
	close(fd);
}

static void poison_by_corruption(struct rig *rig, uint64_t page)
{
	struct notice notice;

	flip_stored_byte(rig, page);
	check_unreadable(rig, 0, page);
	notice = await(rig, NOTICE_PAGE_POISONED);
	CHECK_EQ(notice.page_idx, page);
	CHECK_CONTAINS(notice.message, "not those that were put there");
	CHECK_EQ(stats_of(rig).poisoned_pages, 1);
}

/* Wrong bytes never reach the guest: SIGBUS in every process (or it waits), children from before and after
 * included. Swapping in fails while the page is poisoned and changes nothing; when its bytes are right again,
 * it heals everywhere. */
TEST(wrong_bytes)
{
	struct rig rig;

	rig_start(&rig);
	CHECK_EQ(run_job(&rig, JOB_SWAP_OUT).code, 0);
	fork_child(&rig);
	poison_by_corruption(&rig, 5);
	check_read(&rig, CHILD_HAND, 6, 7);
	check_unreadable(&rig, 1, 5);
	check_unreadable(&rig, CHILD_HAND, 5);
	for (unsigned i = 0; i < 2; i++) {
		struct notice done = run_job(&rig, JOB_SWAP_IN);

		CHECK_EQ(done.code, EIO);
		CHECK_CONTAINS(done.message, "1 pages");
		CHECK_EQ(stats_of(&rig).poisoned_pages, 1);
		CHECK_EQ(stats_of(&rig).swap_pages, 0); /* all others are in */
		CHECK(stats_of(&rig).tracking);
		check_unreadable(&rig, CHILD_HAND, 5);
	}
	flip_stored_byte(&rig, 5);
	CHECK_EQ(run_job(&rig, JOB_SWAP_IN).code, 0);
	CHECK_EQ(stats_of(&rig).poisoned_pages, 0);
	CHECK(!stats_of(&rig).tracking);
	for (size_t i = 0; i < HANDS; i++)
		check_healed(&rig, i, 5, 6);
	rig_stop(&rig);
}

/* A child that is forked with the marker in its page tables gets SIGBUS too, and is healed with the
 * others. */
TEST(forked_after_poison)
{
	struct rig rig;

	rig_start(&rig);
	CHECK_EQ(run_job(&rig, JOB_SWAP_OUT).code, 0);
	poison_by_corruption(&rig, 9);
	fork_child(&rig);
	check_unreadable(&rig, CHILD_HAND, 9);
	flip_stored_byte(&rig, 9);
	CHECK_EQ(run_job(&rig, JOB_SWAP_IN).code, 0);
	check_healed(&rig, CHILD_HAND, 9, 10);
	check_healed(&rig, 0, 9, 10);
	rig_stop(&rig);
}

/* Only that page is left, and the budget is small: it is tried all the same, and costs nothing while it
 * cannot be read. */
TEST(a_poisoned_page_and_a_small_budget)
{
	struct rig rig;

	rig_start(&rig);
	CHECK_EQ(run_job(&rig, JOB_SWAP_OUT).code, 0);
	poison_by_corruption(&rig, 5);
	CHECK_EQ(run_job(&rig, JOB_SWAP_IN).code, EIO);
	engine_set_budget(rig.engine, 1);
	CHECK_EQ(run_job(&rig, JOB_SWAP_IN).code, EIO);
	flip_stored_byte(&rig, 5);
	CHECK_EQ(run_job(&rig, JOB_SWAP_IN).code, 0);
	check_healed(&rig, 0, 5, 6);
	rig_stop(&rig);
}

/* Its bytes are back, and a process does not let its marker go: the swap-in ends, and works later. */
TEST(a_marker_that_cannot_be_lifted)
{
	struct notice done;
	struct rig rig;

	rig_start(&rig);
	CHECK_EQ(run_job(&rig, JOB_SWAP_OUT).code, 0);
	poison_by_corruption(&rig, 5);
	flip_stored_byte(&rig, 5);
	CHECK_OK(failpoint_arm("uffd.zeropage=EAGAIN"));
	done = run_job(&rig, JOB_SWAP_IN);
	CHECK_EQ(done.code, EAGAIN);
	CHECK_CONTAINS(done.message, "1 pages");
	CHECK_OK(failpoint_arm("uffd.zeropage=off"));
	CHECK_EQ(run_job(&rig, JOB_SWAP_IN).code, 0);
	check_healed(&rig, 0, 5, 6);
	rig_stop(&rig);
}

/* Giving a page up heals it: zeros in every process, and swapping in works again. */
TEST(giving_up_heals)
{
	struct rig rig;

	rig_start(&rig);
	CHECK_EQ(run_job(&rig, JOB_SWAP_OUT).code, 0);
	fork_child(&rig);
	poison_by_corruption(&rig, 7);
	check_unreadable(&rig, CHILD_HAND, 7);
	finish(begin(&rig, 1, GIVE_UP, 7));
	CHECK_EQ(await(&rig, NOTICE_PAGE_HEALED).page_idx, 7);
	CHECK_EQ(stats_of(&rig).poisoned_pages, 0);
	for (size_t i = 0; i < HANDS; i++)
		check_healed(&rig, i, 7, 0);
	rig.shared->hands[CHILD_HAND].byte = 77;
	finish(begin(&rig, CHILD_HAND, WRITE, 7));
	check_read(&rig, 0, 7, 77);
	CHECK_EQ(run_job(&rig, JOB_SWAP_IN).code, 0);
	check_read(&rig, 1, 7, 77);
	rig_stop(&rig);
}

/* A successor knows the poisoned page from the page map, and it can still heal. */
TEST(poison_outlives_the_engine)
{
	struct engine_config config = { .workers = 1, .fault_threads = 1 };
	struct range range = { .pages = PAGES };
	struct error err = { 0 };
	uint64_t out_pages;
	uint32_t id, last_job;
	struct rig rig;
	int pidfd, uffd;

	rig_start(&rig);
	CHECK_EQ(run_job(&rig, JOB_SWAP_OUT).code, 0);
	poison_by_corruption(&rig, 5);
	config.page_map_fd = dup(engine_page_map_fd(rig.engine));
	config.store_fd = dup(engine_store_fd(rig.engine));
	engine_destroy(rig.engine);
	pidfd = (int)syscall(SYS_pidfd_open, rig.pid, 0);
	uffd = (int)syscall(SYS_pidfd_getfd, pidfd, rig.shared->uffd, 0);
	range.addr = (uintptr_t)rig.base;
	CHECK_OK(engine_create(&config, &rig.engine, &err));
	CHECK_OK(engine_add_region(rig.engine, rig.memfd, 0, PAGES * PAGE, &range.page_idx, &err));
	CHECK_OK(engine_add_process(rig.engine, uffd, &range, 1, &id, &err));
	CHECK_OK(engine_recover(rig.engine, &out_pages, &last_job, &err));
	CHECK_EQ(out_pages, PAGES - 1);
	CHECK_OK(engine_start(rig.engine, &err));
	CHECK_EQ(stats_of(&rig).poisoned_pages, 1);
	check_unreadable(&rig, 1, 5);
	CHECK_EQ(run_job(&rig, JOB_SWAP_IN).code, EIO);
	flip_stored_byte(&rig, 5);
	CHECK_EQ(run_job(&rig, JOB_SWAP_IN).code, 0);
	check_healed(&rig, 1, 5, 6);
	check_healed(&rig, 0, 5, 6);
	rig_stop(&rig);
}

/* EIO is tried again, off the way of other pages: with one fault thread, another page is served between the
 * tries. */
TEST(read_errors)
{
	struct hand *waiting;
	struct rig rig;

	rig_start(&rig);
	CHECK_EQ(run_job(&rig, JOB_SWAP_OUT).code, 0);
	CHECK_OK(failpoint_arm("store.read=times:3:EIO"));
	waiting = begin(&rig, 0, READ, 3);
	while (failpoint_hits("store.read") < 3) /* it waits for its fourth try: 16 ms */
		sched_yield();
	check_read(&rig, 1, 4, 5);
	finish(waiting);
	CHECK(!waiting->sigbus && waiting->byte == 4);
	CHECK_EQ(stats_of(&rig).poisoned_pages, 0);

	CHECK_OK(failpoint_arm("store.read=EIO"));
	check_unreadable(&rig, 0, 10);
	CHECK_CONTAINS(await(&rig, NOTICE_PAGE_POISONED).message, strerror(EIO));
	CHECK_EQ(run_job(&rig, JOB_SWAP_IN).code, EIO);
	CHECK_EQ(stats_of(&rig).swap_pages, PAGES - 3);
	CHECK_OK(failpoint_arm("store.read=off"));
	check_unreadable(&rig, 0, 10);
	CHECK_EQ(run_job(&rig, JOB_SWAP_IN).code, 0);
	check_healed(&rig, 0, 10, 11);
	rig_stop(&rig);
}

/* Pages that others were given while one page's fault was tried five times, which takes 85 ms. */
static uint64_t served_during_retries(void)
{
	struct hand *waiting;
	uint64_t served;
	struct rig rig;

	rig_start(&rig);
	CHECK_EQ(run_job(&rig, JOB_SWAP_OUT).code, 0);
	flip_stored_byte(&rig, 20);
	waiting = begin(&rig, 0, READ, 20);
	for (uint64_t page = 30; page < 60 && waiting->order != NOTHING; page++)
		check_read(&rig, 1, page, (unsigned)page + 1);
	served = stats_of(&rig).copied_pages;
	await(&rig, NOTICE_PAGE_POISONED);
	check_unreadable(&rig, 0, 20);
	flip_stored_byte(&rig, 20);
	CHECK_EQ(run_job(&rig, JOB_SWAP_IN).code, 0);
	check_healed(&rig, 0, 20, 21);
	rig_stop(&rig);
	return served;
}

/* They do not wait for it. A busy machine may not let them run in that time: then once more. */
TEST(retries_hold_nobody_up)
{
	uint64_t served = 0;

	for (int round = 0; round < 20 && served < 10; round++)
		served = served_during_retries();
	CHECK(served >= 10);
}

/* No memory for a page to come back to: the thread waits until there is, however long. Never poison. */
TEST(no_memory)
{
	struct hand *waiting;
	struct rig rig;

	rig_start(&rig);
	CHECK_EQ(run_job(&rig, JOB_SWAP_OUT).code, 0);
	CHECK_OK(failpoint_arm("uffd.copy=ENOMEM"));
	waiting = begin(&rig, 0, READ, 3);
	while (failpoint_hits("uffd.copy") < 20) /* more often than a page that cannot be read is tried */
		poll(NULL, 0, 1);
	CHECK(waiting->order == READ);
	CHECK_EQ(await(&rig, NOTICE_FAULTS_STARVED).page_idx, 3);
	CHECK(!engine_end_starvation(rig.engine));
	CHECK_EQ(run_job(&rig, JOB_SWAP_IN).code, ENOMEM);
	CHECK_EQ(stats_of(&rig).swap_pages, PAGES);
	CHECK_EQ(stats_of(&rig).poisoned_pages, 0);
	CHECK_OK(failpoint_arm("uffd.copy=off"));
	finish(waiting);
	CHECK(!waiting->sigbus && waiting->byte == 4);
	while (!engine_end_starvation(rig.engine)) /* the fault is counted out after its thread was woken */
		poll(NULL, 0, 1);
	CHECK_EQ(run_job(&rig, JOB_SWAP_IN).code, 0); /* it was told of once, however often it was tried */
	rig_stop(&rig);
}

static void check_nothing_went_out(struct rig *rig)
{
	CHECK_EQ(stats_of(rig).swap_pages, 0);
	CHECK_EQ(stats_of(rig).resident_pages, PAGES);
	CHECK_OK(failpoint_arm("store.write=off;store.alloc=off"));
	check_read(rig, 0, 3, 4);
}

/* The disk fails while pages go out: what is not out stays. */
TEST(write_errors)
{
	struct notice done;
	struct rig rig;

	rig_start(&rig);
	CHECK_OK(failpoint_arm("store.write=EIO"));
	done = run_job(&rig, JOB_SWAP_OUT);
	CHECK_EQ(done.code, EIO);
	CHECK(done.message[0]);
	check_nothing_went_out(&rig);
	CHECK_EQ(run_job(&rig, JOB_SWAP_OUT).code, 0);
	CHECK_EQ(stats_of(&rig).resident_pages, 0);
	check_read(&rig, 0, 3, 4);
	CHECK_EQ(run_job(&rig, JOB_SWAP_IN).code, 0);
	rig_stop(&rig);
}

/* A limit ends a swap-out, and is no error; the next swap-out, or a swap-in, forgets it. */
TEST(limits_of_the_store)
{
	static const char *const cases[] = { "store.write=EDQUOT", "store.write=EFBIG",
					     "store.alloc=ENOSPC" };
	struct rig rig;

	rig_start(&rig);
	for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
		struct notice done;

		CHECK_OK(failpoint_arm(cases[i]));
		done = run_job(&rig, JOB_SWAP_OUT);
		CHECK_EQ(done.code, 0);
		CHECK_EQ(done.limited_by, LIMITED_BY_NO_SPACE);
		CHECK(done.message[0]);
		CHECK_EQ(stats_of(&rig).limited_by, LIMITED_BY_NO_SPACE);
		CHECK(stats_of(&rig).tracking);
		check_nothing_went_out(&rig);
	}
	CHECK_EQ(run_job(&rig, JOB_SWAP_IN).limited_by, 0);
	CHECK_EQ(stats_of(&rig).limited_by, LIMITED_BY_NOTHING);
	CHECK_EQ(run_job(&rig, JOB_SWAP_OUT).limited_by, 0);
	CHECK_EQ(stats_of(&rig).resident_pages, 0);
	check_read(&rig, 0, 3, 4);
	CHECK_EQ(run_job(&rig, JOB_SWAP_IN).code, 0);
	rig_stop(&rig);
}
