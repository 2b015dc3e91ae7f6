/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Disk transfers into guest memory, in flight across a swap-out: lost if nobody looks for them, and not
 * otherwise.
 *
 * The VMM reads with O_DIRECT from a disk that answers when the test says so: by pread(), by libaio, by
 * io_uring. The engine swaps everything out meanwhile, live or with the VMM frozen. Then the disk answers,
 * and the bytes must be there. */
#include <linux/aio_abi.h>
#include <linux/io_uring.h>

#include "puppet.h"
#include "slow_disk.h"

#define TO 96 /* the transfer's first page */
#define PAGES 8
#define BYTES (PAGES * 4096)

static const struct layout two_chunks = { .memfd_pages = { 1024 }, .regions = { { 0, 0, 1024 } }, .full = 1 };

static struct slow_disk disk;
static int disk_fd; /* open with O_DIRECT, inherited by the VMM */

/* --- in the VMM: begin a transfer to addr; end it, whatever it takes. The bytes that came, or -errno. */

static long pread_all(void *addr, long fd)
{
	long got = syscall(SYS_pread64, fd, addr, BYTES, 0);

	return got < 0 ? -errno : got;
}

static aio_context_t aio_context;

static long aio_begin(void *addr, long fd)
{
	static struct iocb request;
	struct iocb *requests[] = { &request };

	request = (struct iocb){ .aio_lio_opcode = IOCB_CMD_PREAD,
				 .aio_fildes = (uint32_t)fd,
				 .aio_buf = (uintptr_t)addr,
				 .aio_nbytes = BYTES };
	if (!aio_context && syscall(SYS_io_setup, 8, &aio_context))
		return -errno;
	return syscall(SYS_io_submit, aio_context, 1, requests) == 1 ? 0 : -errno;
}

static long aio_end(void *addr, long argument)
{
	struct io_event event;

	(void)addr;
	(void)argument;
	for (;;) {
		long got = syscall(SYS_io_getevents, aio_context, 1, 1, &event, NULL);

		if (got == 1)
			return (long)event.res;
		if (got < 0 && errno != EINTR)
			return -errno;
	}
}

static struct {
	int fd;
	char *sq, *cq;
	struct io_uring_sqe *sqes;
	struct io_uring_params params;
} ring;

static long uring_setup(void)
{
	struct io_uring_params *params = &ring.params;
	size_t sq_bytes, cq_bytes;

	ring.fd = (int)syscall(SYS_io_uring_setup, 4, params);
	if (ring.fd < 0)
		return -errno;
	sq_bytes = params->sq_off.array + params->sq_entries * sizeof(uint32_t);
	cq_bytes = params->cq_off.cqes + params->cq_entries * sizeof(struct io_uring_cqe);
	ring.sq = mmap(NULL, sq_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, ring.fd, IORING_OFF_SQ_RING);
	ring.cq = mmap(NULL, cq_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, ring.fd, IORING_OFF_CQ_RING);
	ring.sqes = mmap(NULL, params->sq_entries * sizeof *ring.sqes, PROT_READ | PROT_WRITE, MAP_SHARED,
			 ring.fd, IORING_OFF_SQES);
	return (void *)ring.sq == MAP_FAILED || (void *)ring.cq == MAP_FAILED ||
			       (void *)ring.sqes == MAP_FAILED ?
		       -ENOMEM :
		       0;
}

static _Atomic uint32_t *ring_word(char *base, uint32_t offset)
{
	return (_Atomic uint32_t *)(void *)(base + offset);
}

static long uring_begin(void *addr, long fd)
{
	uint32_t tail, slot;
	long rc = ring.sqes ? 0 : uring_setup();

	if (rc)
		return rc;
	tail = *ring_word(ring.sq, ring.params.sq_off.tail);
	slot = tail & (ring.params.sq_entries - 1);
	ring.sqes[slot] = (struct io_uring_sqe){
		.opcode = IORING_OP_READ, .fd = (int)fd, .addr = (uintptr_t)addr, .len = BYTES
	};
	*(ring_word(ring.sq, ring.params.sq_off.array) + slot) = slot;
	*ring_word(ring.sq, ring.params.sq_off.tail) = tail + 1;
	return syscall(SYS_io_uring_enter, ring.fd, 1, 0, 0, NULL, 0) == 1 ? 0 : -errno;
}

static long uring_end(void *addr, long argument)
{
	_Atomic uint32_t *head = ring_word(ring.cq, ring.params.cq_off.head);
	const struct io_uring_cqe *cqes = (const void *)(ring.cq + ring.params.cq_off.cqes);
	long result;

	(void)addr;
	(void)argument;
	while (*head == *ring_word(ring.cq, ring.params.cq_off.tail))
		if (syscall(SYS_io_uring_enter, ring.fd, 0, 1, IORING_ENTER_GETEVENTS, NULL, 0) < 0 &&
		    errno != EINTR)
			return -errno;
	result = cqes[*head & (ring.params.cq_entries - 1)].res;
	*head = *head + 1;
	return result;
}

struct way {
	const char *name;
	long (*begin)(void *addr, long fd); /* NULL: end() does all, and is in the kernel meanwhile */
	long (*end)(void *addr, long fd);
};

static const struct way ways[] = {
	{ "pread", NULL, pread_all },
	{ "libaio", aio_begin, aio_end },
	{ "io_uring", uring_begin, uring_end },
};

#define WAYS_N (sizeof ways / sizeof *ways)

/* --- the test's side */

static struct puppet_order transfer(long (*run)(void *, long))
{
	return (struct puppet_order){ .kind = ORDER_CALL, .page = TO, .run = run, .argument = disk_fd };
}

static void open_disk(void)
{
	slow_disk_open(&disk, PUPPET_DISK_BYTE);
	disk_fd = (int)CHECK_SYS(open(disk.path, O_RDONLY | O_DIRECT | O_CLOEXEC));
}

static void close_disk(void)
{
	close(disk_fd);
	slow_disk_close(&disk);
}

/* The transfer has pinned its pages when this returns. */
static void begin_transfer(struct rig *rig, const struct way *way)
{
	if (way->begin) {
		long rc = (long)puppet_do(rig, 0, 1, transfer(way->begin));

		if (rc == -ENOSYS || rc == -EPERM)
			test_skip("%s is not to be had: %s", way->name, strerror((int)-rc));
		CHECK_OK((int)rc);
	} else {
		puppet_tell(rig, 0, 1, transfer(way->end));
	}
	slow_disk_await(&disk, 1);
}

static void end_transfer(struct rig *rig, const struct way *way)
{
	slow_disk_release(&disk);
	if (way->begin)
		puppet_tell(rig, 0, 1, transfer(way->end));
	CHECK_EQ((long)puppet_await(rig, 0, 1), BYTES);
	for (uint64_t page = TO; page < TO + PAGES; page++)
		rig->shared->versions[page][0] = rig->shared->versions[page][1] = PUPPET_DISK;
}

static uint64_t lost_pages(struct rig *rig)
{
	return puppet_do(rig, 0, 0, (struct puppet_order){ .kind = ORDER_CHECK, .page = TO, .pages = PAGES });
}

static void need_detector(const struct pins_config *config)
{
	struct error err = { 0 };
	struct pins *pins;

	if (pins_create(config, &pins, &err))
		test_skip("%s", err.message);
	pins_destroy(pins);
}

static void start(struct rig *rig, const struct pins_config *config, enum swap_mode mode)
{
	rig_start(rig, &two_chunks);
	rig->options.mode = mode;
	rig->options.check_pins = true;
	rig->options.pins = *config;
}

/* A thread that waits for its disk cannot be stopped: the freeze gives up, and nothing has been changed. */
static void cannot_freeze(struct rig *rig, const struct way *way)
{
	struct notice done;

	rig->options.freeze_timeout_ms = 300;
	rig_start_job(rig, JOB_SWAP_OUT);
	done = rig_await_job(rig);
	CHECK_EQ(done.code, ETIMEDOUT);
	CHECK_EQ(rig_resident_pages(rig, 0, 1024), 1024);
	end_transfer(rig, way);
	puppet_check_all(rig, 0);
}

/* One transfer across one swap-out by this detector. How many of its pages are lost. */
static uint64_t lose(const struct way *way, const struct pins_config *config, enum swap_mode mode,
		     const char *kind, uint64_t pinned_pages)
{
	uint64_t lost;
	struct rig rig;

	fprintf(stderr, "%s, %s\n", way->name, mode == MODE_LIVE ? "live" : "frozen");
	start(&rig, config, mode);
	begin_transfer(&rig, way);
	if (mode == MODE_FREEZE && !way->begin) {
		cannot_freeze(&rig, way);
		rig_stop(&rig);
		return 0;
	}
	rig_run_job(&rig, JOB_SWAP_OUT);
	CHECK(!strcmp(engine_pin_check(rig.engine), kind));
	CHECK_EQ(rig_stats(&rig).pinned_pages, pinned_pages);
	CHECK_EQ(rig_resident_pages(&rig, 0, 1024), pinned_pages);
	CHECK_EQ(rig_resident_pages(&rig, TO, PAGES), pinned_pages ? PAGES : 0);
	end_transfer(&rig, way);
	lost = lost_pages(&rig);
	if (!lost) {
		puppet_check_all(&rig, 0);
		rig_run_job(&rig, JOB_SWAP_OUT); /* nothing is held any more */
		CHECK_EQ(rig_stats(&rig).pinned_pages, 0);
		CHECK_EQ(rig_resident_pages(&rig, 0, 1024), 0);
		puppet_check_all(&rig, 0);
	}
	CHECK_EQ(rig.odd, 0);
	rig_stop(&rig);
	return lost;
}

static const struct pins_config by_bpf = { .allow_bpf = true };
static const struct pins_config by_collapse = { .allow_collapse = true };
static const struct pins_config by_promise = { .promised_unpinned = true };

static void none_lost(const struct pins_config *config, const char *kind, uint64_t pinned_pages)
{
	open_disk();
	need_detector(config);
	for (size_t i = 0; i < WAYS_N; i++) {
		CHECK_EQ(lose(&ways[i], config, MODE_LIVE, kind, pinned_pages), 0);
		CHECK_EQ(lose(&ways[i], config, MODE_FREEZE, kind, pinned_pages), 0);
	}
	close_disk();
}

/* The control: the same with the check blinded. If this lost nothing, the tests below would prove nothing. */
TEST(blinded_all_are_lost)
{
	open_disk();
	need_detector(&by_bpf);
	CHECK_OK(failpoint_arm("pins.blind=EIO"));
	for (size_t i = 0; i < WAYS_N; i++) {
		CHECK_EQ(lose(&ways[i], &by_bpf, MODE_LIVE, "bpf", 0), PAGES);
		if (ways[i].begin)
			CHECK_EQ(lose(&ways[i], &by_bpf, MODE_FREEZE, "bpf", 0), PAGES);
	}
	close_disk();
}

/* And so with a VMM that promised what it does not keep. */
TEST(a_broken_promise_loses)
{
	open_disk();
	CHECK_EQ(lose(&ways[1], &by_promise, MODE_LIVE, "promise", 0), PAGES);
	CHECK_EQ(lose(&ways[1], &by_promise, MODE_FREEZE, "promise", 0), PAGES);
	close_disk();
}

TEST(bpf_loses_none)
{
	none_lost(&by_bpf, "bpf", PAGES);
}

/* It cannot tell which page of a chunk is held: all of them stay. */
TEST(collapse_loses_none)
{
	none_lost(&by_collapse, "collapse", 512);
}

/* The disk answers within the settle time; the end of that is told by hand, so that no clock decides. */
static void settle(const struct way *way, enum swap_mode mode)
{
	static const struct pins_config by_settling = { .allow_settle = true, .settle_ms = 60000 };
	struct rig rig;

	fprintf(stderr, "%s, %s\n", way->name, mode == MODE_LIVE ? "live" : "frozen");
	start(&rig, &by_settling, mode);
	begin_transfer(&rig, way);
	rig_arm(&rig, "evict.protected", "count");
	rig_start_job(&rig, JOB_SWAP_OUT);
	while (failpoint_hits("evict.protected") <
	       rig.hits + 2) /* both chunks: now no more can begin unseen */
		sched_yield();
	rig_disarm("evict.protected");
	if (mode == MODE_LIVE) {
		end_transfer(&rig, way);
	} else {
		uint64_t got = 0;

		/* The VMM stands still, but its memory can be looked at: through the memfd. */
		slow_disk_release(&disk);
		while (got != PUPPET_DISK_BYTE * 0x0101010101010101u)
			CHECK_EQ(pread(rig.memfds[0], &got, sizeof got, (TO + PAGES) * 4096 - 8), 8);
	}
	engine_continue_job(rig.engine);
	rig_end_job(&rig);
	CHECK(!strcmp(engine_pin_check(rig.engine), "settle"));
	CHECK_EQ(rig_stats(&rig).pinned_pages, 0);
	CHECK_EQ(rig_resident_pages(&rig, 0, 1024), 0);
	if (mode == MODE_FREEZE) {
		CHECK_EQ((long)puppet_do(&rig, 0, 1, transfer(way->end)), BYTES);
		for (uint64_t page = TO; page < TO + PAGES; page++)
			rig.shared->versions[page][0] = rig.shared->versions[page][1] = PUPPET_DISK;
	}
	puppet_check_all(&rig, 0);
	CHECK_EQ(rig.odd, 0);
	rig_stop(&rig);
}

TEST(settling_loses_none_that_end_in_time)
{
	open_disk();
	for (size_t i = 0; i < WAYS_N; i++) {
		settle(&ways[i], MODE_LIVE);
		if (ways[i].begin)
			settle(&ways[i], MODE_FREEZE);
	}
	close_disk();
}

/* A transfer that begins after the protect faults on each of its pages: they are the guest's again, and
 * stay. */
TEST(transfers_that_begin_after_the_protect)
{
	open_disk();
	for (size_t i = 0; i < WAYS_N; i++) {
		struct rig rig;

		fprintf(stderr, "%s\n", ways[i].name);
		start(&rig, &by_promise, MODE_LIVE);
		rig_start_job_until(&rig, JOB_SWAP_OUT, "evict.read");
		begin_transfer(&rig, &ways[i]);
		rig_disarm("evict.read");
		rig_end_job(&rig);
		CHECK_EQ(rig_resident_pages(&rig, TO, PAGES), PAGES);
		end_transfer(&rig, &ways[i]);
		puppet_check_all(&rig, 0);
		rig_stop(&rig);
	}
	close_disk();
}

/* Into memory that is out: the pages come back before the disk is even asked. */
TEST(transfers_into_what_is_out)
{
	open_disk();
	for (size_t i = 0; i < WAYS_N; i++) {
		struct rig rig;

		fprintf(stderr, "%s\n", ways[i].name);
		start(&rig, &by_promise, MODE_LIVE);
		rig_run_job(&rig, JOB_SWAP_OUT);
		CHECK_EQ(rig_resident_pages(&rig, 0, 1024), 0);
		begin_transfer(&rig, &ways[i]);
		CHECK_EQ(rig_resident_pages(&rig, TO, PAGES), PAGES);
		end_transfer(&rig, &ways[i]);
		puppet_check_all(&rig, 0);
		rig_stop(&rig);
	}
	close_disk();
}

static const struct layout private_memory = { .regions = { { 0, 0, 1024 } }, .full = 1, .private = 1 };

/* Private memory is moved, and the kernel moves nothing that a device may write to. Where there are huge
 * pages, none of a huge page moves. */
TEST(moving_loses_none)
{
	if (!mover_can_move())
		test_skip("this kernel has no UFFDIO_MOVE, which is since Linux 6.8");
	open_disk();
	for (size_t i = 0; i < WAYS_N; i++) {
		struct rig rig;

		fprintf(stderr, "%s\n", ways[i].name);
		rig_start(&rig, &private_memory);
		begin_transfer(&rig, &ways[i]);
		rig_run_job(&rig, JOB_SWAP_OUT);
		CHECK(rig_stats(&rig).pinned_pages >= PAGES);
		CHECK_EQ(rig_resident_pages(&rig, TO, PAGES), PAGES);
		end_transfer(&rig, &ways[i]);
		puppet_check_all(&rig, 0);
		rig_run_job(&rig, JOB_SWAP_OUT); /* nothing is held any more */
		CHECK_EQ(rig_resident_pages(&rig, 0, 1024), 0);
		puppet_check_all(&rig, 0);
		CHECK_EQ(rig.odd, 0);
		rig_stop(&rig);
	}
	close_disk();
}
