/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A VMM that restores its private memory from a snapshot's file, as Firecracker does, and an engine that
 * serves it: the VMM has registered its memory before we hear of it, and nothing but the page map knows which
 * pages it has had already.
 *
 * The guest has hands, threads that carry out one order each and write down what they saw. What each page
 * must hold is in memory shared with the test, so that any hand can check any page at any time. */
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

#define FAIL(...) test_fail(__FILE__, __LINE__, __VA_ARGS__)

#define PAGE_WORDS (PAGE_BYTES / sizeof(uint64_t))
#define LOW_PAGES 700 /* two regions with a gap between them, in the guest's addresses and not in the file */
#define HIGH_PAGES 900
#define PAGES (LOW_PAGES + HIGH_PAGES)
#define FILE_OFFSET_PAGES 16 /* where the first region starts in the file */
#define HANDS 4
#define PATIENCE_MS 60000

#define GIVEN_UP 0	/* zeros */
#define AS_IN_FILE 1	/* where the file has a hole: zeros too */
#define FIRST_VERSION 2 /* what the guest wrote */

enum order {
	NOTHING,
	CHECK_PAGE,
	WRITE_PAGE,
	GIVE_UP_PAGE,
	MAP_ANEW,
	NOT_TO_BE_DUMPED,
	FORBID_PAGE,
	ALLOW_PAGE,
	END
};

struct hand {
	_Atomic int order;
	uint64_t page, version;
	bool wrong, sigbus;
};

struct shared {
	_Atomic int uffd;
	uint64_t low_addr, high_addr;
	struct hand hands[HANDS];
	_Atomic uint64_t versions[PAGES];
};

struct rig {
	struct shared *shared;
	struct engine *engine;
	pid_t pid;
	int file, uffd, map; /* map: a dup of the page map's, for a successor */
};

static bool in_hole(uint64_t page)
{
	return page % 8 == 7;
}

static uint64_t word_of(uint64_t page, uint64_t version, uint64_t word)
{
	if (version == GIVEN_UP || (version == AS_IN_FILE && in_hole(page)))
		return 0;
	return (version << 48) ^ (page << 16) ^ word ^ 0x5a5a;
}

/* --- the guest */

static struct shared *own;
static __thread sigjmp_buf on_sigbus;

static void caught(int signal)
{
	(void)signal;
	siglongjmp(on_sigbus, 1);
}

static _Atomic uint64_t *page_at(uint64_t page)
{
	uint64_t addr = page < LOW_PAGES ? own->low_addr + page * PAGE_BYTES :
					   own->high_addr + (page - LOW_PAGES) * PAGE_BYTES;

	return (_Atomic uint64_t *)(uintptr_t)addr;
}

static void obey(struct hand *hand, enum order order)
{
	_Atomic uint64_t *at = page_at(hand->page);

	hand->wrong = hand->sigbus = false;
	if (sigsetjmp(on_sigbus, 1)) {
		hand->sigbus = true;
		return;
	}
	switch (order) {
	case CHECK_PAGE:
		for (uint64_t word = 0; word < PAGE_WORDS; word++)
			hand->wrong = hand->wrong ||
				      at[word] != word_of(hand->page, own->versions[hand->page], word);
		break;
	case WRITE_PAGE:
		for (uint64_t word = 0; word < PAGE_WORDS; word++)
			at[word] = word_of(hand->page, hand->version, word);
		own->versions[hand->page] = hand->version;
		break;
	case GIVE_UP_PAGE: /* Firecracker's balloon */
		CHECK_SYS(madvise((void *)(uintptr_t)at, PAGE_BYTES, MADV_DONTNEED));
		own->versions[hand->page] = GIVEN_UP;
		break;
	case MAP_ANEW: /* the same, before Firecracker's balloon used madvise(): no event tells of it */
		/* Not by mmap(), which the thread sanitizer takes for a write; who orders the hands it cannot
		 * see. */
		CHECK_EQ(syscall(SYS_mmap, at, PAGE_BYTES, PROT_READ | PROT_WRITE,
				 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0),
			 (long)(uintptr_t)at);
		own->versions[hand->page] = GIVEN_UP;
		break;
	case NOT_TO_BE_DUMPED: /* a mapping of its own, that is registered as before */
		CHECK_SYS(madvise((void *)(uintptr_t)at, PAGE_BYTES, MADV_DONTDUMP));
		break;
	case FORBID_PAGE: /* so is this */
		CHECK_SYS(mprotect((void *)(uintptr_t)at, PAGE_BYTES, PROT_NONE));
		break;
	case ALLOW_PAGE:
		CHECK_SYS(mprotect((void *)(uintptr_t)at, PAGE_BYTES, PROT_READ | PROT_WRITE));
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

	while ((order = hand->order) != END) {
		if (order != NOTHING) {
			obey(hand, (enum order)order);
			/* An END that came meanwhile stays. */
			atomic_compare_exchange_strong(&hand->order, &order, NOTHING);
		}
		poll(NULL, 0, 1);
	}
	return NULL;
}

static uint64_t map_and_register(int uffd, uint64_t pages)
{
	void *at = mmap(NULL, pages * PAGE_BYTES, PROT_READ | PROT_WRITE,
			MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	struct uffdio_register range = { .range = { (uintptr_t)at, pages * PAGE_BYTES },
					 .mode = UFFDIO_REGISTER_MODE_MISSING };

	CHECK(at != MAP_FAILED);
	CHECK_SYS(ioctl(uffd, UFFDIO_REGISTER, &range));
	return (uintptr_t)at;
}

static void be_guest(struct shared *shared)
{
	struct uffdio_api api = { .api = UFFD_API, .features = UFFD_FEATURE_EVENT_REMOVE };
	struct sigaction action = { .sa_handler = caught };
	int uffd = (int)CHECK_SYS(syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK));
	pthread_t threads[HANDS];

	own = shared;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	CHECK_SYS(ioctl(uffd, UFFDIO_API, &api));
	sigaction(SIGBUS, &action, NULL);
	shared->low_addr = map_and_register(uffd, LOW_PAGES);
	shared->high_addr = map_and_register(uffd, HIGH_PAGES);
	for (size_t i = 1; i < HANDS; i++)
		CHECK_OK(pthread_create(&threads[i], NULL, be_hand, &shared->hands[i]));
	atomic_store(&shared->uffd, uffd);
	be_hand(&shared->hands[0]);
	for (size_t i = 1; i < HANDS; i++)
		pthread_join(threads[i], NULL);
	_exit(0);
}

/* --- the test's side */

static int make_file(void)
{
	char path[512];
	int fd;

	snprintf(path, sizeof path, "%s/memory", test_dir());
	fd = (int)CHECK_SYS(open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600));
	CHECK_SYS(ftruncate(fd, (FILE_OFFSET_PAGES + PAGES) * PAGE_BYTES));
	for (uint64_t page = 0; page < PAGES; page++) {
		uint64_t words[PAGE_WORDS];

		for (uint64_t word = 0; word < PAGE_WORDS; word++)
			words[word] = word_of(page, AS_IN_FILE, word);
		if (!in_hole(page))
			CHECK_EQ(pwrite(fd, words, sizeof words,
					(off_t)((FILE_OFFSET_PAGES + page) * PAGE_BYTES)),
				 sizeof words);
	}
	/* Of old: a change soon after would leave the time as it is, on kernels that count it in ticks. */
	CHECK_SYS(futimens(fd, (struct timespec[2]){ { .tv_sec = 1000000000 }, { .tv_sec = 1000000000 } }));
	return fd;
}

static struct engine *engine_for(struct rig *rig, int page_map_fd)
{
	struct engine_config config = {
		.fault_threads = 2, .workers = 1, .page_map_fd = page_map_fd, .snapshot = true
	};
	struct range ranges[2] = { { .addr = rig->shared->low_addr, .pages = LOW_PAGES },
				   { .addr = rig->shared->high_addr, .pages = HIGH_PAGES } };
	uint64_t offset_bytes = FILE_OFFSET_PAGES * PAGE_BYTES, out_pages;
	char path[64];
	struct engine *engine;
	struct error err = { 0 };
	uint32_t id, last_job;

	snprintf(path, sizeof path, "/proc/self/fd/%d", rig->file);
	config.store_fd = (int)CHECK_SYS(open(path, O_RDONLY | O_CLOEXEC));
	if (engine_create(&config, &engine, &err))
		FAIL("engine_create: %s", err.message);
	for (size_t i = 0; i < 2; i++) {
		CHECK_OK(engine_add_snapshot_region(engine, offset_bytes, ranges[i].pages * PAGE_BYTES,
						    &ranges[i].page_idx, &err));
		offset_bytes += ranges[i].pages * PAGE_BYTES;
	}
	CHECK_OK(engine_add_process(engine, rig->uffd, ranges, 2, &id, &err));
	if (page_map_fd >= 0 && engine_recover(engine, &out_pages, &last_job, &err))
		FAIL("engine_recover: %s", err.message);
	close(config.store_fd);
	return engine;
}

static void rig_begin(struct rig *rig)
{
	int pidfd, probe = (int)syscall(SYS_userfaultfd, O_CLOEXEC);

	if (probe < 0)
		test_skip("no userfaultfd here: %s", strerror(errno));
	close(probe);
	rig->file = make_file();
	rig->shared =
		mmap(NULL, sizeof *rig->shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	CHECK(rig->shared != MAP_FAILED);
	rig->shared->uffd = -1;
	for (uint64_t page = 0; page < PAGES; page++)
		rig->shared->versions[page] = AS_IN_FILE;
	rig->pid = fork();
	if (rig->pid == 0)
		be_guest(rig->shared);
	while (rig->shared->uffd < 0)
		poll(NULL, 0, 1);
	pidfd = (int)CHECK_SYS(syscall(SYS_pidfd_open, rig->pid, 0));
	rig->uffd = (int)CHECK_SYS(syscall(SYS_pidfd_getfd, pidfd, rig->shared->uffd, 0));
	close(pidfd);
	rig->engine = engine_for(rig, -1);
}

static void rig_start(struct rig *rig)
{
	struct error err = { 0 };

	rig_begin(rig);
	CHECK_OK(engine_start(rig->engine, &err));
}

static void tell(struct rig *rig, size_t i, enum order order, uint64_t page, uint64_t version)
{
	struct hand *hand = &rig->shared->hands[i];

	hand->page = page;
	hand->version = version;
	hand->order = (int)order;
}

static struct hand *await_hand(struct rig *rig, size_t i)
{
	struct hand *hand = &rig->shared->hands[i];

	for (int waited_ms = 0; hand->order != NOTHING; waited_ms++) {
		if (waited_ms > PATIENCE_MS)
			FAIL("page %llu: hand %zu still waits", (unsigned long long)hand->page, i);
		poll(NULL, 0, 1);
	}
	return hand;
}

static void await_right(struct rig *rig, size_t i)
{
	struct hand *hand = await_hand(rig, i);

	if (hand->wrong || hand->sigbus)
		FAIL("page %llu: %s", (unsigned long long)hand->page,
		     hand->sigbus ? "SIGBUS" : "wrong bytes");
}

static void do_now(struct rig *rig, enum order order, uint64_t page, uint64_t version)
{
	tell(rig, 0, order, page, version);
	await_right(rig, 0);
}

/* Every byte, by all hands at once, in an order that is not the file's. */
static void check_all(struct rig *rig)
{
	for (uint64_t n = 0; n < PAGES; n++) {
		if (n >= HANDS)
			await_right(rig, n % HANDS);
		tell(rig, n % HANDS, CHECK_PAGE, n * 677 % PAGES, 0);
	}
	for (size_t i = 0; i < HANDS; i++)
		await_right(rig, i);
}

/* With all counted of what the guest has had: a page is there a little before that is noted, and whoever
 * changes the set of processes waits for it. */
static struct engine_stats stats_of(struct rig *rig)
{
	struct engine_stats stats;
	struct error err = { 0 };

	CHECK_EQ(engine_remove_process(rig->engine, UINT32_MAX, &err), -ESRCH);
	engine_read_stats(rig->engine, &stats);
	return stats;
}

static struct notice run_swap_in(struct rig *rig)
{
	struct pollfd waiting = { .fd = engine_notices_fd(rig->engine), .events = POLLIN };
	struct swap_out_options options = { 0 };
	struct notice notice;
	struct error err = { 0 };

	CHECK_OK(engine_start_job(rig->engine, JOB_SWAP_IN, &options, &err));
	while (poll(&waiting, 1, PATIENCE_MS) == 1)
		while (engine_take_notice(rig->engine, &notice)) {
			if (notice.kind == NOTICE_JOB_DONE)
				return notice;
			if (notice.kind == NOTICE_ODD)
				FAIL("%s", notice.message);
		}
	FAIL("the swap-in does not end");
}

static void rig_end(struct rig *rig)
{
	int status;

	check_all(rig);
	for (size_t i = 0; i < HANDS; i++)
		rig->shared->hands[i].order = END;
	CHECK_EQ(waitpid(rig->pid, &status, 0), rig->pid);
	CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
	engine_destroy(rig->engine);
}

static uint64_t data_pages(void)
{
	uint64_t pages = 0;

	for (uint64_t page = 0; page < PAGES; page++)
		pages += !in_hole(page);
	return pages;
}

static void hold_at(const char *point)
{
	char text[64];

	snprintf(text, sizeof text, "%s=stall", point);
	CHECK_OK(failpoint_arm(text));
}

static void await_hit(const char *point)
{
	for (int waited_ms = 0; failpoint_hits(point) == 0; waited_ms++) {
		if (waited_ms > PATIENCE_MS)
			FAIL("%s was not reached", point);
		poll(NULL, 0, 1);
	}
}

TEST(every_page_is_the_files_on_demand)
{
	struct rig rig;

	rig_start(&rig);
	CHECK_EQ(stats_of(&rig).total_pages, PAGES);
	CHECK_EQ(stats_of(&rig).swap_pages, data_pages());
	CHECK(stats_of(&rig).tracking);
	do_now(&rig, CHECK_PAGE, 3, 0);
	CHECK_EQ(stats_of(&rig).swap_pages, data_pages() - 1);
	check_all(&rig);
	CHECK_EQ(stats_of(&rig).swap_pages, 0);
	CHECK_EQ(stats_of(&rig).copied_pages, data_pages());
	CHECK_EQ(stats_of(&rig).zeroed_pages, PAGES - data_pages());
	CHECK_EQ(stats_of(&rig).written_bytes, 0);
	CHECK_EQ(stats_of(&rig).stored_disk_bytes, 0);
	rig_end(&rig);
}

TEST(what_was_given_up_never_comes_back_from_the_file)
{
	struct rig rig;

	rig_start(&rig);
	do_now(&rig, GIVE_UP_PAGE, 1, 0); /* never loaded */
	do_now(&rig, CHECK_PAGE, 2, 0);
	do_now(&rig, GIVE_UP_PAGE, 2, 0); /* loaded */
	do_now(&rig, WRITE_PAGE, 3, FIRST_VERSION);
	do_now(&rig, GIVE_UP_PAGE, 3, 0); /* written */
	do_now(&rig, GIVE_UP_PAGE, 4, 0);
	do_now(&rig, WRITE_PAGE, 4, FIRST_VERSION); /* and used again */
	do_now(&rig, GIVE_UP_PAGE, 5, 0);
	check_all(&rig);
	do_now(&rig, GIVE_UP_PAGE, 4, 0); /* again */
	CHECK_EQ(run_swap_in(&rig).code, 0);
	rig_end(&rig);
}

/* The guest gives a page up while its bytes are on their way: the fault that waits for it gets zeros. */
TEST(given_up_while_it_is_fetched)
{
	struct rig rig;

	rig_start(&rig);
	hold_at("resolve.claimed");
	rig.shared->versions[1] = GIVEN_UP;
	tell(&rig, 1, CHECK_PAGE, 1, 0);
	await_hit("resolve.claimed");
	tell(&rig, 2, GIVE_UP_PAGE, 1, 0);
	await_hand(&rig, 2); /* the other fault thread reads the event */
	CHECK_OK(failpoint_arm("resolve.claimed=off"));
	await_right(&rig, 1);
	rig_end(&rig);
}

/* All of it in, and the memory let go: no engine is needed any more. */
TEST(swap_in_lets_the_memory_go)
{
	struct rig rig;

	rig_start(&rig);
	for (uint64_t page = 0; page < PAGES; page += 5)
		do_now(&rig, WRITE_PAGE, page, FIRST_VERSION + page);
	CHECK_EQ(run_swap_in(&rig).code, 0);
	CHECK_EQ(stats_of(&rig).swap_pages, 0);
	CHECK(!stats_of(&rig).tracking);
	engine_destroy(rig.engine);
	rig.engine = NULL;
	do_now(&rig, GIVE_UP_PAGE, 9, 0);
	rig_end(&rig);
}

/* The kernel refuses a run of pages that crosses from one mapping to the next as if it were unmapped. */
TEST(a_swap_in_across_split_mappings)
{
	struct rig rig;

	rig_start(&rig);
	for (uint64_t page = 40; page < 44; page++)
		do_now(&rig, NOT_TO_BE_DUMPED, page, 0);
	do_now(&rig, NOT_TO_BE_DUMPED, 513, 0); /* in the middle of a piece of 32 pages */
	for (uint64_t page = 130; page < 133; page++)
		do_now(&rig, FORBID_PAGE, page, 0);
	do_now(&rig, FORBID_PAGE, LOW_PAGES, 0);
	do_now(&rig, ALLOW_PAGE, 131, 0);
	do_now(&rig, ALLOW_PAGE, LOW_PAGES, 0);
	CHECK_EQ(run_swap_in(&rig).code, 0);
	CHECK_EQ(stats_of(&rig).swap_pages, 0);
	do_now(&rig, ALLOW_PAGE, 130, 0);
	do_now(&rig, ALLOW_PAGE, 132, 0);
	rig_end(&rig);
}

static void map_some_anew(struct rig *rig)
{
	do_now(rig, CHECK_PAGE, 201, 0);
	do_now(rig, WRITE_PAGE, 202, FIRST_VERSION);
	for (uint64_t page = 200; page < 205; page++) /* read, written, and never touched */
		do_now(rig, MAP_ANEW, page, 0);
	do_now(rig, WRITE_PAGE, 203, FIRST_VERSION);
	do_now(rig, MAP_ANEW, PAGES - 2, 0);
}

/* What stands around it comes in, and nothing of the file gets into it. */
TEST(a_swap_in_around_memory_that_was_mapped_anew)
{
	struct rig rig;

	rig_start(&rig);
	map_some_anew(&rig);
	CHECK_EQ(run_swap_in(&rig).code, 0);
	CHECK_EQ(stats_of(&rig).swap_pages, 0);
	CHECK(!stats_of(&rig).tracking);
	rig_end(&rig);
}

TEST(nothing_goes_out)
{
	struct swap_out_options options = { .mode = MODE_AUTO, .max_passes = 1 };
	struct error err = { 0 };
	struct rig rig;

	rig_start(&rig);
	CHECK_EQ(engine_start_job(rig.engine, JOB_SWAP_OUT, &options, &err), -ENOTSUP);
	CHECK_CONTAINS(err.message, "snapshot");
	CHECK_EQ(engine_start_job(rig.engine, JOB_TRIM, &options, &err), -ENOTSUP);
	rig_end(&rig);
}

/* Whoever touches it gets SIGBUS; all others come. When it can be read again, it heals. */
/* The hand gets SIGBUS, or waits. */
static void await_poisoned(struct rig *rig, size_t i)
{
	if (have_poison())
		CHECK(await_hand(rig, i)->sigbus);
	while (stats_of(rig).poisoned_pages == 0)
		poll(NULL, 0, 1);
}

static void await_healed(struct rig *rig, size_t i)
{
	if (!have_poison())
		CHECK(!await_hand(rig, i)->sigbus);
}

TEST(a_page_that_cannot_be_read_is_poisoned_and_heals)
{
	struct rig rig;

	rig_start(&rig);
	CHECK_OK(failpoint_arm("store.read=EIO"));
	tell(&rig, 1, CHECK_PAGE, 12, 0);
	await_poisoned(&rig, 1);
	CHECK_EQ(stats_of(&rig).poisoned_pages, 1);
	CHECK_EQ(run_swap_in(&rig).code, EIO);
	CHECK_OK(failpoint_arm("store.read=off"));
	CHECK_EQ(run_swap_in(&rig).code, 0);
	CHECK_EQ(stats_of(&rig).poisoned_pages, 0);
	await_healed(&rig, 1);
	rig_end(&rig);
}

/* A file that somebody wrote to holds another guest's memory for all that we know: SIGBUS, also from a
 * successor on. */
TEST(a_file_that_was_changed_is_not_served)
{
	struct timespec times[2];
	struct error err = { 0 };
	struct stat before;
	struct rig rig;
	int map;

	rig_start(&rig);
	CHECK_SYS(fstat(rig.file, &before));
	times[0] = before.st_atim;
	times[1] = before.st_mtim;
	do_now(&rig, CHECK_PAGE, 1, 0);
	CHECK_EQ(pwrite(rig.file, "another guest's", 15, (FILE_OFFSET_PAGES + 2) * PAGE_BYTES), 15);
	tell(&rig, 1, CHECK_PAGE, 3, 0);
	await_poisoned(&rig, 1);
	map = (int)CHECK_SYS(fcntl(engine_page_map_fd(rig.engine), F_DUPFD_CLOEXEC, 3));
	engine_destroy(rig.engine);
	rig.engine = engine_for(&rig, map);
	CHECK_OK(engine_start(rig.engine, &err));
	CHECK_EQ(run_swap_in(&rig).code, EIO);
	CHECK_EQ(stats_of(&rig).swap_pages, data_pages() - 2); /* one was in, one is poisoned */
	close(rig.file);
	rig.file = make_file();
	CHECK_SYS(futimens(rig.file, times)); /* only so that this test can go on */
	CHECK_EQ(run_swap_in(&rig).code, 0);
	await_healed(&rig, 1);
	rig_end(&rig);
}

static void use_some(struct rig *rig)
{
	for (uint64_t page = 0; page < PAGES; page += 3)
		do_now(rig, CHECK_PAGE, page, 0);
	for (uint64_t page = 0; page < PAGES; page += 5)
		do_now(rig, WRITE_PAGE, page, FIRST_VERSION + page);
	for (uint64_t page = 1; page < PAGES; page += 7)
		do_now(rig, GIVE_UP_PAGE, page, 0);
}

/* A successor has the page map and the file, and nothing that tells which pages the guest has. */
TEST(a_successor_goes_on)
{
	struct error err = { 0 };
	struct rig rig;
	int map;

	rig_start(&rig);
	use_some(&rig);
	map = (int)CHECK_SYS(fcntl(engine_page_map_fd(rig.engine), F_DUPFD_CLOEXEC, 3));
	engine_destroy(rig.engine);
	tell(&rig, 1, CHECK_PAGE, 2, 0); /* waits for whoever comes */
	rig.engine = engine_for(&rig, map);
	CHECK_OK(engine_start(rig.engine, &err));
	await_right(&rig, 1);
	check_all(&rig);
	CHECK_EQ(run_swap_in(&rig).code, 0);
	rig_end(&rig);
}

/* What the VMM has mapped anew is not registered, and stays so: to a page fault there a successor would
 * answer with the file's bytes. */
TEST(a_successor_leaves_alone_what_was_mapped_anew)
{
	struct error err = { 0 };
	struct rig rig;
	int map;

	rig_start(&rig);
	map_some_anew(&rig);
	map = (int)CHECK_SYS(fcntl(engine_page_map_fd(rig.engine), F_DUPFD_CLOEXEC, 3));
	engine_destroy(rig.engine);
	rig.engine = engine_for(&rig, map);
	CHECK_OK(engine_start(rig.engine, &err));
	check_all(&rig);
	CHECK_EQ(run_swap_in(&rig).code, 0);
	rig_end(&rig);
}

/* The same before anybody served it: since the VMM registered its memory, a monitor may have died. */
TEST(what_was_mapped_anew_before_we_came_is_left_alone)
{
	struct error err = { 0 };
	struct rig rig;

	rig_begin(&rig);
	engine_destroy(rig.engine);
	for (uint64_t page = 0; page < 3; page++)
		do_now(&rig, MAP_ANEW, page, 0);
	do_now(&rig, MAP_ANEW, 200, 0);
	rig.engine = engine_for(&rig, -1);
	CHECK_OK(engine_start(rig.engine, &err));
	check_all(&rig);
	CHECK_EQ(run_swap_in(&rig).code, 0);
	rig_end(&rig);
}

/* Killed at each step of a fault and of a swap-in; the guest works meanwhile and waits where it must. */
static void killed_at(const char *point, bool swapping_in)
{
	struct error err = { 0 };
	struct rig rig;
	int map, status;
	pid_t monitor;

	rig_begin(&rig);
	map = (int)CHECK_SYS(fcntl(engine_page_map_fd(rig.engine), F_DUPFD_CLOEXEC, 3));
	monitor = fork();
	if (monitor == 0) {
		char text[64];

		CHECK_OK(engine_start(rig.engine, &err));
		use_some(&rig);
		snprintf(text, sizeof text, "%s=kill@%d", point, swapping_in ? 0 : 5);
		CHECK_OK(failpoint_arm(text));
		if (swapping_in)
			run_swap_in(&rig);
		check_all(&rig);
		_exit(1);
	}
	CHECK_EQ(waitpid(monitor, &status, 0), monitor);
	if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGKILL)
		FAIL("%s was not reached", point);
	engine_destroy(rig.engine); /* never started here */
	rig.engine = engine_for(&rig, map);
	CHECK_OK(engine_start(rig.engine, &err));
	for (size_t i = 0; i < HANDS; i++)
		await_right(&rig, i);
	for (uint64_t page = 2; page < PAGES; page += 11)
		do_now(&rig, GIVE_UP_PAGE, page, 0);
	CHECK_EQ(run_swap_in(&rig).code, 0);
	CHECK_EQ(stats_of(&rig).swap_pages, 0);
	rig_end(&rig);
}

TEST(killed_when_a_fault_is_claimed)
{
	killed_at("resolve.claimed", false);
}

TEST(killed_when_a_page_is_fetched)
{
	killed_at("resolve.fetched", false);
}

TEST(killed_when_a_page_is_copied)
{
	killed_at("resolve.copied", false);
}

TEST(killed_when_a_chunk_is_claimed)
{
	killed_at("restore.claimed", true);
}

TEST(killed_when_a_chunk_is_fetched)
{
	killed_at("restore.fetched", true);
}

TEST(killed_when_a_piece_is_copied)
{
	killed_at("restore.copied", true);
}

/* The guest reads page 1, and the monitor dies at that point; its successor has not been started yet. */
static void rig_begin_after_kill(struct rig *rig, const char *failpoint)
{
	struct error err = { 0 };
	int status;
	pid_t monitor;

	rig_begin(rig);
	rig->map = (int)CHECK_SYS(fcntl(engine_page_map_fd(rig->engine), F_DUPFD_CLOEXEC, 3));
	monitor = fork();
	if (monitor == 0) {
		CHECK_OK(engine_start(rig->engine, &err));
		CHECK_OK(failpoint_arm(failpoint));
		do_now(rig, CHECK_PAGE, 1, 0);
		poll(NULL, 0, PATIENCE_MS); /* the page may come before we die */
		_exit(1);
	}
	CHECK_EQ(waitpid(monitor, &status, 0), monitor);
	CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
	engine_destroy(rig->engine); /* never started here */
	rig->engine = NULL;
}

/* It had put the page back and not recorded it, and the guest writes to it. From the successor's first moment
 * on the page is the guest's: if the successor died when it had read that the page was given up, and not
 * recorded it, a third one would bring back what the file has. */
TEST(a_page_that_was_put_back_and_not_recorded_is_the_guests)
{
	struct error err = { 0 };
	struct rig rig;
	uint64_t copied_pages;

	rig_begin_after_kill(&rig, "resolve.copied=kill");
	await_right(&rig, 0);
	do_now(&rig, WRITE_PAGE, 1, FIRST_VERSION);
	rig.engine = engine_for(&rig, rig.map);
	CHECK_EQ(stats_of(&rig).swap_pages, data_pages() - 1);
	copied_pages = stats_of(&rig).copied_pages;
	CHECK_OK(engine_start(rig.engine, &err));
	do_now(&rig, CHECK_PAGE, 1, 0);
	CHECK_EQ(stats_of(&rig).copied_pages, copied_pages);
	rig_end(&rig);
}

/* It had not put the page back, which nobody can tell: the successor does it before it serves faults. */
TEST(a_page_that_was_about_to_be_put_back_is_put_back_at_once)
{
	struct error err = { 0 };
	struct rig rig;

	rig_begin_after_kill(&rig, "resolve.fetched=kill");
	rig.engine = engine_for(&rig, rig.map);
	CHECK_EQ(stats_of(&rig).swap_pages, data_pages() - 1);
	await_right(&rig, 0);
	CHECK_OK(engine_start(rig.engine, &err));
	rig_end(&rig);
}

/* A region that the VMM did not map there, or that another userfaultfd has: refused, and what is registered
 * stays so. */
TEST(a_region_that_cannot_be_watched_is_refused)
{
	struct range range = { .addr = 0x10000, .pages = 4 };
	struct error err = { 0 };
	struct rig rig;
	uint32_t id;

	rig_start(&rig);
	CHECK_EQ(engine_add_process(rig.engine, rig.uffd, &range, 1, &id, &err), -EINVAL);
	CHECK_CONTAINS(err.message, "registered");
	CHECK_EQ(stats_of(&rig).processes, 1);
	rig_end(&rig);
}
