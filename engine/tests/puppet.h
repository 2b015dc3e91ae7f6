/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A VMM that does what the test says, one step at a time, and an engine that swaps it.
 *
 * Its processes have hands: threads, each of which carries out one order and then says so. A hand that runs
 * into a page that is out stands still in the kernel meanwhile, and the test can look at that. What each half
 * of each page must hold is written down next to it, so that any process can check every byte at any time.
 *
 * Process 0 is the VMM. Processes it forks have one hand each. The last process is a stranger: it maps the
 * same memory with a userfaultfd of its own, and the engine does not know it until the test adds it. */
#ifndef VMMSWAP_TESTS_PUPPET_H
#define VMMSWAP_TESTS_PUPPET_H

#include <fcntl.h>
#include <linux/magic.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <sys/vfs.h>

#include "base/failpoint.h"
#include "engine.h"
#include "guest_mover.h"
#include "harness.h"
#include "linux/pagemap.h"
#include "tiers.h"

/* A test that is compiled with it has private memory, whatever its layouts say: test_private_*.c. */
#ifndef TEST_PRIVATE
#define TEST_PRIVATE false
#endif

#define FAIL(...) test_fail(__FILE__, __LINE__, __VA_ARGS__)

#define PUPPET_PROCESSES 6
#define PUPPET_STRANGER (PUPPET_PROCESSES - 1)
#define PUPPET_HANDS 4
#define PUPPET_REGIONS 4
#define PUPPET_PAGES_MAX 8192
#define PUPPET_WORDS 512
#define PUPPET_PATIENCE_MS 60000

/* A version that stands for the bytes that a disk transfer brings: PUPPET_DISK_BYTE all over. */
#define PUPPET_DISK UINT64_MAX
#define PUPPET_DISK_BYTE 0xab

enum order_kind {
	ORDER_TOUCH, /* read one word of `page`, into .value */
	ORDER_CHECK, /* compare all bytes of `pages` pages; .value: how many are wrong */
	/* `page` may be zeros or what it must hold; whichever it is, it must be so from now on */
	ORDER_ADOPT,
	ORDER_WRITE,	  /* one half of `page` */
	ORDER_FROM_FILE,  /* the same, by pread() from `fd` into guest memory: the kernel writes it */
	ORDER_TO_FILE,	  /* write() all of `page` to `fd` */
	ORDER_WRITE_LOOP, /* one half of `page`, again and again until .stop */
	ORDER_REMOVE,	  /* MADV_REMOVE: crosvm's balloon */
	ORDER_DISCARD,	  /* a hole, then MADV_DONTNEED: QEMU's balloon */
	ORDER_PUNCH,	  /* a hole, with no event at all */
	ORDER_REMOVE_LOOP,
	ORDER_FORK, /* the child is process `process` */
	ORDER_CALL, /* call.run(page's address, call.argument) in the process; its result in .value */
	ORDER_END,  /* of the whole process */
	ORDER_EXEC,
};

struct puppet_order {
	enum order_kind kind;
	uint64_t page, pages; /* pages 0: one */
	uint32_t half;
	uint32_t process;
	int fd;
	long (*run)(void *addr, long argument);
	long argument;
	uint64_t version; /* given by puppet_tell() */
};

struct hand {
	struct puppet_order order;
	_Atomic uint64_t value;
	_Atomic bool stop;
	int go, done; /* eventfds */
};

/* In memory shared by all. */
struct puppet_shared {
	struct hand hands[PUPPET_PROCESSES][PUPPET_HANDS];
	uint64_t base_addr[PUPPET_PROCESSES][PUPPET_REGIONS];
	_Atomic uint64_t dummy_addr;
	_Atomic int32_t uffd[PUPPET_PROCESSES];
	_Atomic uint64_t versions[PUPPET_PAGES_MAX][2];
};

struct puppet_region {
	uint32_t memfd_i;
	uint64_t offset_pages, pages;
};

/* Guest memory: regions of up to two memfds. */
struct layout {
	uint64_t memfd_pages[2];
	struct puppet_region regions[PUPPET_REGIONS]; /* pages 0: the end */
	uint32_t full : 1;	  /* no page is left a hole; otherwise pages 7, 15, 23, ... are */
	uint32_t empty : 1;	  /* nothing is written at all */
	uint32_t not_started : 1; /* no fault threads before the test says engine_start() */
	uint32_t huge : 1;	  /* memory on a tmpfs whose policy is huge=always */
	uint32_t stranger : 1;
	uint32_t moves : 1;	 /* what is moved and unmapped is told */
	uint32_t private : 1;	 /* private memory, and a thread that moves it; memfd_pages is all 0 */
	uint32_t inherited : 1;	 /* that a forked child gets a copy of */
	uint32_t one_thread : 1; /* serves all faults */
	uint32_t two_threads : 1;
	uint32_t six_threads : 1;
	uint32_t no_uring : 1;
	uint32_t on_disk : 1; /* the swap directory is /var/tmp: /tmp may be memory, which is read at once */
	uint32_t around : 1;  /* neighbours come back with page faults, 16 pages in all */
};

struct rig {
	struct layout layout;
	size_t regions_n;
	uint64_t total_pages;
	int memfds[2];
	int mailbox; /* of private memory */
	int file;    /* PUPPET_PAGES_MAX pages; page p holds what page p's next version shall be */
	struct puppet_shared *shared;
	pid_t pids[PUPPET_PROCESSES];
	int uffds[PUPPET_PROCESSES];
	uint32_t process_ids[PUPPET_PROCESSES]; /* the engine's */
	uint64_t first_idx[PUPPET_REGIONS];
	struct engine *engine;
	uint64_t version;
	unsigned forked, gone, odd, incidents, replayed;
	struct notice job_done; /* came while another kind was waited for; its kind is 0 once it was taken */
	uint64_t hits;		/* of the point that was armed last, before that */
	struct swap_out_options options;
};

/* --- what a page holds */

static inline uint64_t puppet_word(uint64_t page, uint64_t version, uint64_t word)
{
	if (version == PUPPET_DISK)
		return PUPPET_DISK_BYTE * 0x0101010101010101u;
	return version ? (page * 0x9e3779b97f4a7c15u) ^ (version * 0xc2b2ae3d27d4eb4fu) ^ word : 0;
}

static inline const struct puppet_region *puppet_region_of(const struct rig *rig, uint64_t *page,
							   size_t *region_i)
{
	for (*region_i = 0; *region_i + 1 < rig->regions_n && *page >= rig->layout.regions[*region_i].pages;
	     ++*region_i)
		*page -= rig->layout.regions[*region_i].pages;
	return &rig->layout.regions[*region_i];
}

static inline _Atomic uint64_t *puppet_at(const struct rig *rig, uint32_t process, uint64_t page)
{
	size_t region_i;

	puppet_region_of(rig, &page, &region_i);
	return (_Atomic uint64_t *)(uintptr_t)(rig->shared->base_addr[process][region_i] + page * 4096);
}

static inline bool puppet_page_is(const struct rig *rig, uint32_t process, uint64_t page, uint64_t v0,
				  uint64_t v1)
{
	_Atomic uint64_t *words = puppet_at(rig, process, page);

	for (uint64_t word = 0; word < PUPPET_WORDS; word++)
		if (atomic_load_explicit(&words[word], memory_order_relaxed) !=
		    puppet_word(page, word < PUPPET_WORDS / 2 ? v0 : v1, word))
			return false;
	return true;
}

static inline void puppet_write(const struct rig *rig, uint32_t process, uint64_t page, uint32_t half,
				uint64_t version)
{
	_Atomic uint64_t *words = puppet_at(rig, process, page);

	for (uint64_t i = 0; i < PUPPET_WORDS / 2; i++) {
		uint64_t word = half * PUPPET_WORDS / 2 + i;

		atomic_store_explicit(&words[word], puppet_word(page, version, word), memory_order_relaxed);
	}
	atomic_store(&rig->shared->versions[page][half], version);
}

/* --- in the puppet */

static inline void puppet_punch(const struct rig *rig, uint64_t page, uint64_t pages)
{
	size_t region_i;
	const struct puppet_region *region = puppet_region_of(rig, &page, &region_i);

	CHECK_SYS(fallocate(rig->memfds[region->memfd_i], FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
			    (off_t)((region->offset_pages + page) * 4096), (off_t)(pages * 4096)));
}

static inline void puppet_give_up(const struct rig *rig, uint32_t process, const struct puppet_order *order)
{
	uint64_t pages = order->pages ? order->pages : 1;
	void *at = (void *)puppet_at(rig, process, order->page);
	bool holes = !rig->layout.private;

	if (holes && order->kind != ORDER_REMOVE && order->kind != ORDER_REMOVE_LOOP)
		puppet_punch(rig, order->page, pages);
	if (order->kind != ORDER_PUNCH)
		CHECK_SYS(madvise(at, pages * 4096,
				  order->kind == ORDER_DISCARD || !holes ? MADV_DONTNEED : MADV_REMOVE));
	for (uint64_t page = order->page; page < order->page + pages; page++)
		rig->shared->versions[page][0] = rig->shared->versions[page][1] = 0;
}

static inline uint64_t puppet_count_wrong(const struct rig *rig, uint32_t process,
					  const struct puppet_order *order)
{
	uint64_t wrong = 0, pages = order->pages ? order->pages : 1;

	for (uint64_t page = order->page; page < order->page + pages; page++)
		wrong += !puppet_page_is(rig, process, page, rig->shared->versions[page][0],
					 rig->shared->versions[page][1]);
	return wrong;
}

static inline uint64_t puppet_adopt(const struct rig *rig, uint32_t process, uint64_t page)
{
	_Atomic uint64_t *versions = rig->shared->versions[page];

	if (puppet_page_is(rig, process, page, versions[0], versions[1]))
		return 0;
	versions[0] = versions[1] = 0;
	return !puppet_page_is(rig, process, page, 0, 0);
}

static inline void puppet_serve(struct rig *rig, uint32_t process, uint32_t number);

static inline void puppet_fork(struct rig *rig, uint32_t parent, uint32_t child)
{
	memcpy(rig->shared->base_addr[child], rig->shared->base_addr[parent],
	       sizeof rig->shared->base_addr[child]);
	if (CHECK_SYS(fork()) == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		puppet_serve(rig, child, 0);
	}
}

static inline uint64_t puppet_obey(struct rig *rig, uint32_t process, struct hand *hand)
{
	const struct puppet_order *order = &hand->order;
	_Atomic uint64_t *at = order->kind == ORDER_END ? NULL : puppet_at(rig, process, order->page);
	off_t half_at = (off_t)(order->page * 4096 + order->half * 2048);

	switch (order->kind) {
	case ORDER_TOUCH:
		return atomic_load(at);
	case ORDER_CHECK:
		return puppet_count_wrong(rig, process, order);
	case ORDER_ADOPT:
		return puppet_adopt(rig, process, order->page);
	case ORDER_WRITE:
		puppet_write(rig, process, order->page, order->half, order->version);
		return 0;
	case ORDER_WRITE_LOOP:
		do {
			puppet_write(rig, process, order->page, order->half, order->version);
		} while (!hand->stop);
		return 0;
	case ORDER_FROM_FILE:
		CHECK_EQ(syscall(SYS_pread64, order->fd, (char *)at + order->half * 2048, 2048, half_at),
			 2048);
		rig->shared->versions[order->page][order->half] = order->version;
		return 0;
	case ORDER_TO_FILE:
		CHECK_EQ(syscall(SYS_write, order->fd, at, 4096), 4096);
		return 0;
	case ORDER_REMOVE:
	case ORDER_DISCARD:
	case ORDER_PUNCH:
		puppet_give_up(rig, process, order);
		return 0;
	case ORDER_REMOVE_LOOP:
		do {
			puppet_give_up(rig, process, order);
		} while (!hand->stop);
		return 0;
	case ORDER_FORK:
		puppet_fork(rig, process, order->process);
		return 0;
	case ORDER_CALL:
		return (uint64_t)order->run((void *)at, order->argument);
	case ORDER_END:
		_exit(0);
	case ORDER_EXEC:
		execl("/bin/sleep", "sleep", "1000", NULL);
		_exit(1);
	}
	return 0;
}

static inline void puppet_serve(struct rig *rig, uint32_t process, uint32_t number)
{
	struct hand *hand = &rig->shared->hands[process][number];
	eventfd_t value;

	for (;;) {
		CHECK_OK(eventfd_read(hand->go, &value));
		hand->value = puppet_obey(rig, process, hand);
		CHECK_OK(eventfd_write(hand->done, 1));
	}
}

struct puppet_place {
	struct rig *rig;
	uint32_t process, number;
};

static inline void *puppet_hand(void *argument)
{
	struct puppet_place *place = argument;

	puppet_serve(place->rig, place->process, place->number);
	return NULL;
}

/* At an address as far from a 2 MiB boundary as its place in the file is, so that huge pages can be
 * mapped. */
static inline void *puppet_map(const struct rig *rig, const struct puppet_region *region)
{
	size_t bytes = region->pages * 4096, huge = 2 << 20;
	uintptr_t reserve = (uintptr_t)mmap(NULL, bytes + 2 * huge, PROT_NONE,
					    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	uintptr_t at = (reserve + huge - 1) / huge * huge + region->offset_pages * 4096 % huge;

	CHECK((void *)reserve != MAP_FAILED);
	if (rig->layout.private)
		return mmap((void *)at, bytes, PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
	return mmap((void *)at, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED,
		    rig->memfds[region->memfd_i], (off_t)(region->offset_pages * 4096));
}

static inline int puppet_open_uffd(bool moves)
{
	struct uffdio_api api = { .api = UFFD_API,
				  .features = UFFD_FEATURE_EVENT_FORK | UFFD_FEATURE_EVENT_REMOVE |
					      UFFD_FEATURE_MISSING_SHMEM | UFFD_FEATURE_PAGEFAULT_FLAG_WP |
					      UFFD_FEATURE_WP_HUGETLBFS_SHMEM };
	int uffd = (int)CHECK_SYS(syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK));

	if (moves)
		api.features |= UFFD_FEATURE_EVENT_REMAP | UFFD_FEATURE_EVENT_UNMAP;
	CHECK_SYS(ioctl(uffd, UFFDIO_API, &api));
	return uffd;
}

/* Large folios that there are stay. Kernels before 6.4 would make more of them, with zeros where memory is
 * out. */
static inline void puppet_forbid_huge_pages(const struct rig *rig, uint32_t process)
{
	for (size_t i = 0; i < rig->regions_n; i++) {
		void *at = (void *)rig->shared->base_addr[process][i];

		if (madvise(at, rig->layout.regions[i].pages * 4096, MADV_NOHUGEPAGE))
			CHECK_EQ(errno, EINVAL); /* a kernel without huge pages */
	}
}

/* As QEMU does, its children have none of guest memory. */
static inline void puppet_start_mover(struct rig *rig)
{
	static struct vmmswap_mover mover;

	for (size_t i = 0; i < rig->regions_n; i++) {
		uint64_t bytes = rig->layout.regions[i].pages * 4096;

		mover.ranges[i] = (struct vmmswap_mover_range){ rig->shared->base_addr[0][i], bytes };
		if (!rig->layout.inherited)
			CHECK_SYS(madvise((void *)rig->shared->base_addr[0][i], bytes, MADV_DONTFORK));
	}
	mover.ranges_n = (uint32_t)rig->regions_n;
	mover_start(&mover, rig->mailbox);
}

static inline void puppet_be(struct rig *rig, uint32_t process)
{
	static struct puppet_place places[PUPPET_HANDS];
	eventfd_t ready = 1;
	pthread_t thread;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	for (size_t i = 0; i < rig->regions_n; i++) {
		void *at = puppet_map(rig, &rig->layout.regions[i]);

		CHECK(at != MAP_FAILED);
		rig->shared->base_addr[process][i] = (uintptr_t)at;
	}
	if (process == 0) {
		rig->shared->dummy_addr = (uintptr_t)mmap(NULL, 4096, PROT_READ | PROT_WRITE,
							  MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		for (uint64_t page = 0; page < rig->total_pages; page++)
			for (uint32_t half = 0;
			     half < 2 && !rig->layout.empty && (rig->layout.full || page % 8 != 7); half++)
				puppet_write(rig, 0, page, half, 1);
	}
	puppet_forbid_huge_pages(rig, process);
	rig->shared->uffd[process] = puppet_open_uffd(rig->layout.moves);
	if (rig->layout.private)
		puppet_start_mover(rig);
	for (uint32_t i = 1; i < PUPPET_HANDS; i++) {
		places[i] = (struct puppet_place){ rig, process, i };
		CHECK_OK(pthread_create(&thread, NULL, puppet_hand, &places[i]));
	}
	CHECK_OK(eventfd_write(rig->shared->hands[process][0].done, ready));
	puppet_serve(rig, process, 0);
}

/* --- the test's side: orders */

/* True if the hand is done within the time; its order's end is then taken note of. */
static inline bool puppet_done_in(struct rig *rig, uint32_t process, uint32_t number, int wait_ms)
{
	struct hand *hand = &rig->shared->hands[process][number];
	struct pollfd waiting = { .fd = hand->done, .events = POLLIN };
	eventfd_t value;

	if (poll(&waiting, 1, wait_ms) != 1)
		return false;
	CHECK_OK(eventfd_read(hand->done, &value));
	return true;
}

static inline bool puppet_is_done(struct rig *rig, uint32_t process, uint32_t number)
{
	return puppet_done_in(rig, process, number, 0);
}

/* The hand's order comes to its end; its .value. */
static inline uint64_t puppet_await(struct rig *rig, uint32_t process, uint32_t number)
{
	if (!puppet_done_in(rig, process, number, PUPPET_PATIENCE_MS))
		FAIL("hand %u of process %u still waits (order %d, page %llu)", number, process,
		     rig->shared->hands[process][number].order.kind,
		     (unsigned long long)rig->shared->hands[process][number].order.page);
	return rig->shared->hands[process][number].value;
}

static inline void puppet_tell(struct rig *rig, uint32_t process, uint32_t number, struct puppet_order order)
{
	struct hand *hand = &rig->shared->hands[process][number];

	order.version = ++rig->version;
	if (order.kind == ORDER_FROM_FILE) {
		uint64_t words[PUPPET_WORDS];

		for (uint64_t word = 0; word < PUPPET_WORDS; word++)
			words[word] = puppet_word(order.page, order.version, word);
		CHECK_EQ(pwrite(rig->file, words, sizeof words, (off_t)(order.page * 4096)), sizeof words);
		order.fd = rig->file;
	}
	hand->stop = false;
	hand->order = order;
	CHECK_OK(eventfd_write(hand->go, 1));
}

static inline uint64_t puppet_do(struct rig *rig, uint32_t process, uint32_t number,
				 struct puppet_order order)
{
	puppet_tell(rig, process, number, order);
	return puppet_await(rig, process, number);
}

static inline void puppet_stop(struct rig *rig, uint32_t process, uint32_t number)
{
	rig->shared->hands[process][number].stop = true;
	puppet_await(rig, process, number);
}

/* Every byte, as the process sees it. */
static inline void puppet_check_all(struct rig *rig, uint32_t process)
{
	struct puppet_order order = { .kind = ORDER_CHECK, .pages = rig->total_pages };
	uint64_t wrong = puppet_do(rig, process, 0, order);

	for (uint64_t page = 0; wrong && page < rig->total_pages; page++)
		if (puppet_do(rig, process, 0, (struct puppet_order){ .kind = ORDER_CHECK, .page = page }))
			FAIL("%llu pages are wrong, the first is page %llu (versions %llu, %llu)",
			     (unsigned long long)wrong, (unsigned long long)page,
			     (unsigned long long)rig->shared->versions[page][0],
			     (unsigned long long)rig->shared->versions[page][1]);
	CHECK_EQ(wrong, 0);
}

/* --- the test's side: memory as the kernel sees it */

static inline bool rig_resident(const struct rig *rig, uint64_t page)
{
	size_t region_i;
	const struct puppet_region *region = puppet_region_of(rig, &page, &region_i);
	off_t at = (off_t)((region->offset_pages + page) * 4096);

	if (rig->layout.private) {
		int fd = pagemap_open(rig->pids[0]);
		int found = pagemap_look(fd, rig->shared->base_addr[0][region_i] + page * 4096);

		CHECK_SYS(found);
		close(fd);
		return found != PAGEMAP_NOTHING;
	}
	return lseek(rig->memfds[region->memfd_i], at, SEEK_DATA) == at;
}

static inline uint64_t rig_resident_pages(const struct rig *rig, uint64_t page, uint64_t pages)
{
	uint64_t n = 0;

	for (uint64_t end = page + pages; page < end; page++)
		n += rig_resident(rig, page);
	return n;
}

/* --- the test's side: the engine */

static inline struct engine_stats rig_stats(struct rig *rig)
{
	struct engine_stats stats;

	engine_read_stats(rig->engine, &stats);
	return stats;
}

/* A hand has run into a page and its fault was looked at, whatever became of it. Before:
 * rig_stats().fault_count. */
static inline void rig_await_fault(struct rig *rig, uint64_t before)
{
	while (rig_stats(rig).fault_count <= before)
		sched_yield();
}

static inline void rig_note(struct rig *rig, const struct notice *notice)
{
	rig->forked += notice->kind == NOTICE_PROCESS_FORKED;
	rig->gone += notice->kind == NOTICE_PROCESS_GONE;
	rig->incidents += notice->kind == NOTICE_PAGES_LOST;
	rig->replayed += notice->kind == NOTICE_REPLAY_DONE;
	if (notice->kind == NOTICE_ODD) {
		rig->odd++;
		fprintf(stderr, "odd: page %lld: %s\n", (long long)notice->page_idx, notice->message);
	}
}

static inline struct notice rig_await_notice(struct rig *rig, uint32_t kind)
{
	struct pollfd waiting = { .fd = engine_notices_fd(rig->engine), .events = POLLIN };
	struct notice notice;

	if (kind == NOTICE_JOB_DONE && rig->job_done.kind) {
		notice = rig->job_done;
		rig->job_done.kind = 0;
		return notice;
	}
	for (;;) {
		if (poll(&waiting, 1, PUPPET_PATIENCE_MS) != 1)
			FAIL("no notice of kind %u within a minute", kind);
		while (engine_take_notice(rig->engine, &notice)) {
			rig_note(rig, &notice);
			if (notice.kind == kind)
				return notice;
			if (notice.kind == NOTICE_JOB_DONE)
				rig->job_done = notice;
		}
	}
}

/* A guest thread runs on as soon as its page is there, a little before the engine has taken note of that and
 * let go of the page. It does both within the gate, and whoever changes the set of processes waits for
 * that. */
static inline void rig_settle(struct rig *rig)
{
	struct error err = { 0 };

	CHECK_EQ(engine_remove_process(rig->engine, UINT32_MAX, &err), -ESRCH);
}

static inline void rig_start_job(struct rig *rig, uint32_t job)
{
	struct error err = { 0 };

	rig_settle(rig);
	rig->job_done.kind = 0;
	if (engine_start_job(rig->engine, job, &rig->options, &err))
		FAIL("engine_start_job: %s", err.message);
}

static inline struct notice rig_await_job(struct rig *rig)
{
	return rig_await_notice(rig, NOTICE_JOB_DONE);
}

static inline void rig_end_job(struct rig *rig)
{
	struct notice done = rig_await_job(rig);

	if (done.code)
		FAIL("job %u: %s", done.job, done.message);
}

static inline void rig_run_job(struct rig *rig, uint32_t job)
{
	rig_start_job(rig, job);
	rig_end_job(rig);
}

static inline void rig_arm(struct rig *rig, const char *point, const char *action)
{
	char text[128];

	rig->hits = failpoint_hits(point);
	snprintf(text, sizeof text, "%s=%s", point, action);
	CHECK_OK(failpoint_arm(text));
}

/* The point that was armed last is reached (again). */
static inline void rig_await_point(struct rig *rig, const char *point)
{
	while (failpoint_hits(point) == rig->hits)
		sched_yield();
}

static inline void rig_disarm(const char *point)
{
	char text[128];

	snprintf(text, sizeof text, "%s=off", point);
	CHECK_OK(failpoint_arm(text));
}

/* Start the job and hold the first worker that comes to this point there. */
static inline void rig_start_job_until(struct rig *rig, uint32_t job, const char *point)
{
	rig_arm(rig, point, "stall");
	rig_start_job(rig, job);
	rig_await_point(rig, point);
}

static inline int rig_add_process(struct rig *rig, uint32_t process, struct error *err)
{
	struct range ranges[PUPPET_REGIONS];

	for (size_t i = 0; i < rig->regions_n; i++)
		ranges[i] = (struct range){ rig->shared->base_addr[process][i], rig->first_idx[i],
					    rig->layout.regions[i].pages };
	return engine_add_process(rig->engine, rig->uffds[process], ranges, rig->regions_n,
				  &rig->process_ids[process], err);
}

/* The notice comes a little before the child's memory is registered as it should be, which happens with the
 * gate held alone. */
static inline struct notice rig_await_fork(struct rig *rig)
{
	struct notice forked = rig_await_notice(rig, NOTICE_PROCESS_FORKED);

	rig_settle(rig);
	return forked;
}

/* Process 0 forks; the engine has adopted the child when this returns. */
static inline void rig_fork(struct rig *rig, uint32_t child)
{
	puppet_do(rig, 0, 0, (struct puppet_order){ .kind = ORDER_FORK, .process = child });
	rig->process_ids[child] = rig_await_fork(rig).process_id;
}

/* --- start and end */

static inline int rig_open_memory(const struct rig *rig, uint64_t pages)
{
	int fd = rig->layout.huge ? open(test_dir(), O_TMPFILE | O_RDWR | O_CLOEXEC, 0600) :
				    memfd_create("test guest", MFD_CLOEXEC | MFD_ALLOW_SEALING);

	CHECK_SYS(fd);
	CHECK_SYS(ftruncate(fd, (off_t)(pages * 4096)));
	/* A mapping that does not cover all of a folio would get smaller ones. EINTR: an io_uring of the
	 * engine of an earlier rig is just coming to its end, which the kernel tells every thread that has
	 * used it as if by a signal (io_uring/io_uring.c, io_ring_exit_work()). */
	while (rig->layout.huge && fallocate(fd, 0, 0, (off_t)(pages * 4096)) != 0)
		CHECK_EQ(errno, EINTR);
	return fd;
}

static inline void rig_start_process(struct rig *rig, uint32_t process)
{
	int pidfd;

	rig->pids[process] = (pid_t)CHECK_SYS(fork());
	if (rig->pids[process] == 0)
		puppet_be(rig, process);
	puppet_await(rig, process, 0);
	pidfd = (int)CHECK_SYS(syscall(SYS_pidfd_open, rig->pids[process], 0));
	rig->uffds[process] = (int)CHECK_SYS(syscall(SYS_pidfd_getfd, pidfd, rig->shared->uffd[process], 0));
	close(pidfd);
}

static inline void rig_start_guest(struct rig *rig, const struct layout *layout)
{
	int uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC);

	if (uffd < 0)
		test_skip("no userfaultfd here: %s", strerror(errno));
	close(uffd);
	memset(rig, 0, sizeof *rig);
	rig->layout = *layout;
	rig->version = 1;
	rig->options =
		(struct swap_out_options){ .mode = MODE_LIVE, .max_passes = 1, .freeze_timeout_ms = 10000 };
	for (; rig->regions_n < PUPPET_REGIONS && layout->regions[rig->regions_n].pages; rig->regions_n++)
		rig->total_pages += layout->regions[rig->regions_n].pages;
	CHECK(rig->total_pages <= PUPPET_PAGES_MAX);
	rig->shared =
		mmap(NULL, sizeof *rig->shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	CHECK(rig->shared != MAP_FAILED);
	for (size_t i = 0; i < PUPPET_PROCESSES * PUPPET_HANDS; i++) {
		struct hand *hand = &rig->shared->hands[i / PUPPET_HANDS][i % PUPPET_HANDS];

		hand->go = (int)CHECK_SYS(eventfd(0, EFD_CLOEXEC));
		hand->done = (int)CHECK_SYS(eventfd(0, EFD_CLOEXEC));
	}
	for (size_t i = 0; i < 2; i++)
		rig->memfds[i] = layout->memfd_pages[i] ? rig_open_memory(rig, layout->memfd_pages[i]) : -1;
	if (layout->private && !mover_can_move())
		test_skip("this kernel has no UFFDIO_MOVE, which is since Linux 6.8");
	rig->mailbox = layout->private ? mover_mailbox() : -1;
	rig->file = (int)CHECK_SYS(memfd_create("file", MFD_CLOEXEC));
	CHECK_SYS(ftruncate(rig->file, PUPPET_PAGES_MAX * 4096));
	rig_start_process(rig, 0);
	if (layout->stranger)
		rig_start_process(rig, PUPPET_STRANGER);
}

static inline struct layout rig_layout(const struct layout *wanted)
{
	struct layout layout = *wanted;

	if (!TEST_PRIVATE)
		return layout;
	layout.private = 1;
	layout.memfd_pages[0] = layout.memfd_pages[1] = 0;
	return layout;
}

static inline void need_a_disk(void)
{
	struct statfs fs;

	if (statfs("/var/tmp", &fs) == 0 && fs.f_type == TMPFS_MAGIC)
		test_skip("what /var/tmp has is memory, which is read at once: needs a disk");
}

/* One worker: so a stall holds up the whole job, and chunks go in order. */
static inline void rig_start(struct rig *rig, const struct layout *wanted)
{
	struct layout own = rig_layout(wanted), *layout = &own;
	struct engine_config config = { .swap_dir = layout->on_disk ? "/var/tmp" : "/tmp",
					.workers = 1,
					.fault_threads = layout->one_thread  ? 1 :
							 layout->two_threads ? 2 :
							 layout->six_threads ? 6 :
									       3,
					.no_uring = layout->no_uring,
					.fault_around_pages = layout->around ? 16 : 0,
					.page_map_fd = -1,
					.store_fd = -1 };
	struct error err = { 0 };

	if (layout->on_disk)
		need_a_disk();
	test_use_tiers(&config);
	rig_start_guest(rig, layout);
	if (layout->private) {
		config.mover_pid = rig->pids[0];
		config.mailbox_fd = rig->mailbox;
		config.pagemap_fd = -1;
	}
	if (engine_create(&config, &rig->engine, &err))
		FAIL("engine_create: %s", err.message);
	for (size_t i = 0; i < rig->regions_n; i++) {
		const struct puppet_region *region = &layout->regions[i];

		if (layout->private ?
			    engine_add_private_region(rig->engine, rig->shared->base_addr[0][i],
						      region->pages * 4096, &rig->first_idx[i], &err) :
			    engine_add_region(rig->engine, rig->memfds[region->memfd_i],
					      region->offset_pages * 4096, region->pages * 4096,
					      &rig->first_idx[i], &err))
			FAIL("engine_add_region: %s", err.message);
	}
	CHECK_OK(rig_add_process(rig, 0, &err));
	CHECK_OK(engine_register_dummy(rig->engine, rig->process_ids[0], rig->shared->dummy_addr, &err));
	if (!layout->not_started)
		CHECK_OK(engine_start(rig->engine, &err));
}

/* Children end with their parent. */
static inline void rig_stop(struct rig *rig)
{
	struct error err = { 0 };

	if (engine_check(rig->engine, &err))
		FAIL("the engine does not agree with itself: %s", err.message);
	for (uint32_t process = 0; process < PUPPET_PROCESSES; process++) {
		if (rig->pids[process] <= 0)
			continue;
		kill(rig->pids[process], SIGKILL);
		waitpid(rig->pids[process], NULL, 0);
		close(rig->uffds[process]);
	}
	engine_destroy(rig->engine);
	for (size_t i = 0; i < PUPPET_PROCESSES * PUPPET_HANDS; i++) {
		close(rig->shared->hands[i / PUPPET_HANDS][i % PUPPET_HANDS].go);
		close(rig->shared->hands[i / PUPPET_HANDS][i % PUPPET_HANDS].done);
	}
	for (size_t i = 0; i < 2; i++)
		if (rig->memfds[i] >= 0)
			close(rig->memfds[i]);
	if (rig->mailbox >= 0)
		close(rig->mailbox);
	close(rig->file);
	munmap(rig->shared, sizeof *rig->shared);
}

#endif
