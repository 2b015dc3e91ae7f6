/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "pins/pins.h"

#include <fcntl.h>
#include <linux/capability.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>

#include "base/failpoint.h"
#include "base/units.h"
#include "harness.h"
#include "linux/collapse.h"
#include "pins/pins_btf.h"
#include "pins/pins_snapshot.h"
#include "slow_disk.h"
#include "uring.h"

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

/* ---- helpers ---- */

static bool have_capability(int capability)
{
	struct __user_cap_header_struct header = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct data[2];

	CHECK_SYS(syscall(SYS_capget, &header, data));
	return data[capability / 32].effective >> (capability % 32) & 1;
}

/* Fails, rather than skips, where the machine has all that the check needs. */
static struct pins *open_bpf(void)
{
	struct pins_config config = { .allow_bpf = true };
	struct error err = { 0 };
	struct pins *pins;
	int rc;

	if (!have_capability(CAP_SYS_ADMIN) && !(have_capability(CAP_BPF) && have_capability(CAP_PERFMON)))
		test_skip("needs CAP_BPF and CAP_PERFMON");
	if (access("/sys/kernel/btf/vmlinux", R_OK))
		test_skip("needs a kernel with BTF");
	rc = pins_create(&config, &pins, &err);
	if (rc)
		test_fail(__FILE__, __LINE__, "%s", err.message);
	CHECK(!strcmp(pins_kind(pins), "bpf"));
	CHECK_OK(pins_begin_pass(pins));
	return pins;
}

#define COLLAPSE_TRIES 20

static struct pins *open_collapse(void)
{
	struct pins_config config = { .allow_collapse = true };
	struct error err = { 0 };
	struct pins *pins;

	if (!have_capability(CAP_SYS_ADMIN))
		test_skip("needs CAP_SYS_ADMIN");
	if (collapse_try_holes(&err) == COLLAPSE_UNKNOWN)
		test_skip("nothing can be collapsed here now");
	if (collapse_try_holes(&err) == COLLAPSE_FILLS_HOLES) {
		CHECK_EQ(pins_create(&config, &pins, &err), -ENOTSUP);
		CHECK_CONTAINS(err.message, "MADV_COLLAPSE fills holes");
		test_skip("needs a kernel whose MADV_COLLAPSE leaves holes alone");
	}
	/* Its self-test needs huge pages, too, and finds none while others have taken them. */
	for (unsigned tries = 0; pins_create(&config, &pins, &err); tries++) {
		if (collapse_try_holes(&err) == COLLAPSE_UNKNOWN)
			test_skip("nothing can be collapsed here now");
		if (tries == COLLAPSE_TRIES)
			test_fail(__FILE__, __LINE__, "%s", err.message);
	}
	CHECK(!strcmp(pins_kind(pins), "collapse"));
	return pins;
}

struct memory {
	int memfd;
	uint8_t *map; /* at a 2 MiB boundary */
	uint64_t size_bytes;
};

static struct memory map_memory(int memfd, uint64_t size_bytes)
{
	struct memory m = { .memfd = memfd, .size_bytes = size_bytes };
	uint8_t *reserve;

	CHECK_SYS(ftruncate(m.memfd, (off_t)size_bytes));
	reserve = mmap(NULL, size_bytes + CHUNK_BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
		       -1, 0);
	CHECK(reserve != MAP_FAILED);
	m.map = (uint8_t *)(((uintptr_t)reserve + CHUNK_BYTES - 1) & ~(uintptr_t)(CHUNK_BYTES - 1));
	CHECK(mmap(m.map, size_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, m.memfd, 0) !=
	      MAP_FAILED);
	return m;
}

/* Of small pages, also where shared memory gets large folios by itself. */
static struct memory open_memory(uint64_t size_bytes)
{
	struct memory m = map_memory((int)CHECK_SYS(memfd_create("guest", MFD_CLOEXEC)), size_bytes);

	if (madvise(m.map, size_bytes, MADV_NOHUGEPAGE))
		CHECK_EQ(errno, EINVAL); /* a kernel without huge pages */
	return m;
}

static uint64_t blocks_of(const struct memory *m)
{
	struct stat st;

	CHECK_SYS(fstat(m->memfd, &st));
	return (uint64_t)st.st_blocks;
}

static bool has(const uint64_t *bits, uint32_t page)
{
	return bits[page / 64] >> (page % 64) & 1;
}

static uint32_t count(const uint64_t *bits)
{
	uint32_t n = 0;

	for (int i = 0; i < PINS_WORDS; i++)
		n += (uint32_t)__builtin_popcountll(bits[i]);
	return n;
}

/* Compaction or reclaim may hold a page for a moment: look until `held_n` are, and no more, with fresh LRU
 * batches. */
static struct pins_chunk look_until(struct pins *pins, const struct memory *m, uint64_t chunk,
				    uint32_t held_n)
{
	struct pins_chunk seen;

	for (int i = 0; i < 50; i++) {
		CHECK_OK(pins_check(pins, m->memfd, chunk * CHUNK_BYTES, CHUNK_PAGES, &seen));
		CHECK(count(seen.held) >= held_n);
		if (count(seen.held) == held_n)
			return seen;
		CHECK_OK(pins_begin_pass(pins));
	}
	test_fail(__FILE__, __LINE__, "%u pages held, not %u", count(seen.held), held_n);
}

static void hold(int pipe_end, const struct memory *m, uint64_t page)
{
	struct iovec iov = { m->map + page * PAGE_BYTES, PAGE_BYTES };

	CHECK_EQ(vmsplice(pipe_end, &iov, 1, 0), PAGE_BYTES);
}

static void let_go(int pipe_end, uint32_t pages_n)
{
	uint8_t buffer[PAGE_BYTES];

	for (uint32_t i = 0; i < pages_n; i++)
		CHECK_EQ(read(pipe_end, buffer, sizeof buffer), PAGE_BYTES);
}

static uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

/* ---- the BPF detector ---- */

TEST(nothing_is_held_at_rest)
{
	struct pins *pins = open_bpf();
	struct memory m = open_memory(4 * CHUNK_BYTES);
	struct pins_chunk seen;

	CHECK_EQ(*pins_reason(pins), '\0');
	CHECK_EQ(pins_settle_ms(pins), 0);
	memset(m.map, 1, m.size_bytes);
	for (uint64_t chunk = 0; chunk < 4; chunk++) {
		seen = look_until(pins, &m, chunk, 0);
		CHECK_EQ(count(seen.present), CHUNK_PAGES);
		CHECK_EQ(count(seen.large), 0);
		CHECK(seen.sees_folios);
	}
	pins_destroy(pins);
}

/* Not a reason to do without the check: see pins_bpf.c. */
TEST(the_check_is_loaded_though_the_verifier_is_disturbed)
{
	CHECK_OK(failpoint_arm("pins.load=times:20:EAGAIN"));
	pins_destroy(open_bpf());
	CHECK(failpoint_hits("pins.load") > 20);
	CHECK_OK(failpoint_arm("pins.load=off"));
}

TEST(a_refusal_is_reported_as_it_was)
{
	struct pins_config config = { .allow_bpf = true };
	struct error err = { 0 };
	struct pins *pins;

	pins_destroy(open_bpf()); /* skips where there is none */
	CHECK_OK(failpoint_arm("pins.load=EINVAL"));
	CHECK_EQ(pins_create(&config, &pins, &err), -ENOTSUP);
	CHECK_CONTAINS(err.message, strerror(EINVAL));
	CHECK_OK(failpoint_arm("pins.load=off"));
}

TEST(a_page_in_a_pipe_is_held)
{
	struct pins *pins = open_bpf();
	struct memory m = open_memory(2 * CHUNK_BYTES);
	struct pins_chunk seen;
	int ends[2];

	memset(m.map, 1, m.size_bytes);
	CHECK_SYS(pipe(ends));
	hold(ends[1], &m, CHUNK_PAGES + 77);
	look_until(pins, &m, 0, 0);
	seen = look_until(pins, &m, 1, 1);
	CHECK(has(seen.held, 77));
	CHECK(has(seen.present, 77));
	let_go(ends[0], 1);
	look_until(pins, &m, 1, 0);
	pins_destroy(pins);
}

TEST(registered_buffers_are_held)
{
	struct pins *pins = open_bpf();
	struct memory m = open_memory(CHUNK_BYTES);
	int ring = uring_open();
	struct pins_chunk seen;

	memset(m.map, 1, m.size_bytes);
	uring_register(ring, m.map + 10 * PAGE_BYTES + 100, 4 * PAGE_BYTES); /* touches five pages */
	seen = look_until(pins, &m, 0, 5);
	for (uint32_t page = 10; page < 15; page++)
		CHECK(has(seen.held, page));
	uring_unregister(ring);
	look_until(pins, &m, 0, 0);
	pins_destroy(pins);
}

struct direct_read {
	int fd;
	uint8_t *to;
};

static void *read_direct(void *arg)
{
	struct direct_read *job = arg;

	CHECK_EQ(pread(job->fd, job->to, 8 * PAGE_BYTES, 0), 8 * PAGE_BYTES);
	return NULL;
}

TEST(direct_io_in_flight_is_held)
{
	struct memory m = open_memory(CHUNK_BYTES);
	static struct slow_disk disk;
	struct direct_read job;
	struct pins_chunk seen;
	struct pins *pins;
	pthread_t thread;

	slow_disk_open(&disk, 0xab);
	pins = open_bpf();
	memset(m.map, 1, m.size_bytes);
	job.fd = (int)CHECK_SYS(open(disk.path, O_RDONLY | O_DIRECT | O_CLOEXEC));
	job.to = m.map + 100 * PAGE_BYTES;
	CHECK_EQ(pthread_create(&thread, NULL, read_direct, &job), 0);
	slow_disk_await(&disk, 1);
	seen = look_until(pins, &m, 0, 8);
	for (uint32_t page = 100; page < 108; page++)
		CHECK(has(seen.held, page));
	slow_disk_release(&disk);
	pthread_join(thread, NULL);
	look_until(pins, &m, 0, 0);
	CHECK_EQ(m.map[107 * PAGE_BYTES], 0xab);
	pins_destroy(pins);
	close(job.fd);
	slow_disk_close(&disk);
}

/* Evict the chunk with a transfer into eight of its pages in flight, as the swapper would; returns how many
 * of them have got the disk's bytes in the end. */
static uint32_t evict_in_flight(struct slow_disk *disk, struct pins *pins)
{
	struct memory m = open_memory(CHUNK_BYTES);
	struct direct_read job = { .fd = (int)CHECK_SYS(open(disk->path, O_RDONLY | O_DIRECT | O_CLOEXEC)),
				   .to = m.map + 100 * PAGE_BYTES };
	uint32_t arrived_n = 0;
	struct pins_chunk seen;
	pthread_t thread;

	memset(m.map, 1, m.size_bytes);
	CHECK_EQ(pthread_create(&thread, NULL, read_direct, &job), 0);
	slow_disk_await(disk, 1);
	CHECK_OK(pins_begin_pass(pins));
	CHECK_OK(pins_check(pins, m.memfd, 0, CHUNK_PAGES, &seen));
	for (uint32_t page = 0; page < CHUNK_PAGES; page++)
		if (!has(seen.held, page))
			CHECK_SYS(fallocate(m.memfd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
					    (off_t)(page * PAGE_BYTES), PAGE_BYTES));
	slow_disk_release(disk);
	pthread_join(thread, NULL);
	for (uint32_t page = 100; page < 108; page++)
		arrived_n += m.map[page * PAGE_BYTES] == 0xab;
	close(job.fd);
	return arrived_n;
}

TEST(the_check_is_what_saves_a_transfer)
{
	static struct slow_disk disk;
	struct pins *pins;

	slow_disk_open(&disk, 0xab);
	pins = open_bpf();
	CHECK_OK(failpoint_arm("pins.blind=EIO"));
	CHECK_EQ(evict_in_flight(&disk, pins), 0); /* lost, with no error anywhere */
	CHECK_OK(failpoint_arm("pins.blind=off"));
	CHECK_EQ(evict_in_flight(&disk, pins), 8);
	pins_destroy(pins);
	slow_disk_close(&disk);
}

TEST(mappings_do_not_count)
{
	struct pins *pins = open_bpf();
	struct memory m = open_memory(CHUNK_BYTES);
	int ready[2], go[2];
	char byte = 0;

	CHECK_SYS(pipe(ready));
	CHECK_SYS(pipe(go));
	memset(m.map, 1, m.size_bytes);
	for (int child = 0; child < 2; child++) {
		pid_t pid = fork();

		CHECK_SYS(pid);
		if (!pid) {
			for (uint64_t i = 0; i < m.size_bytes; i += PAGE_BYTES * (1 + (uint64_t)child))
				m.map[i]++;
			CHECK_EQ(write(ready[1], &byte, 1), 1);
			_exit(read(go[0], &byte, 1) == 1 ? 0 : 1);
		}
	}
	CHECK_EQ(read(ready[0], &byte, 1), 1);
	CHECK_EQ(read(ready[0], &byte, 1), 1);
	look_until(pins, &m, 0, 0);
	CHECK_EQ(write(go[1], "ab", 2), 2);
	while (wait(NULL) > 0)
		;
	look_until(pins, &m, 0, 0);
	CHECK_SYS(munmap(m.map, m.size_bytes)); /* in the page cache only */
	CHECK_EQ(count(look_until(pins, &m, 0, 0).present), CHUNK_PAGES);
	pins_destroy(pins);
}

/* A file's page cache is a tree of a height that depends on its last page. */
static void check_tree(struct pins *pins, uint64_t last_page)
{
	struct memory m = open_memory(bytes_of_pages(last_page + 1 + CHUNK_PAGES) & ~(CHUNK_BYTES - 1));
	uint64_t chunk = last_page / CHUNK_PAGES;
	struct pins_chunk seen;
	uint64_t blocks;
	int ends[2];

	CHECK_SYS(pipe(ends));
	m.map[last_page * PAGE_BYTES] = 1;
	blocks = blocks_of(&m);
	CHECK_OK(pins_begin_pass(pins));
	seen = look_until(pins, &m, chunk, 0);
	CHECK_EQ(count(seen.present), 1);
	CHECK(has(seen.present, last_page % CHUNK_PAGES));
	hold(ends[1], &m, last_page);
	seen = look_until(pins, &m, chunk, 1);
	CHECK(has(seen.held, last_page % CHUNK_PAGES));
	if (chunk)
		CHECK_EQ(count(look_until(pins, &m, 0, 0).present), 0);
	CHECK_EQ(count(look_until(pins, &m, chunk + 1, 0).present), 0); /* beyond the end */
	CHECK_EQ(count(look_until(pins, &m, chunk + 100000, 0).present), 0);
	CHECK_EQ(blocks_of(&m), blocks);
	CHECK_SYS(munmap(m.map, m.size_bytes));
	CHECK_SYS(close(m.memfd));
	CHECK_SYS(close(ends[0]));
	CHECK_SYS(close(ends[1]));
}

TEST(trees_of_every_height)
{
	static const uint64_t last_pages[] = { 0, 1, 63, 64, 511, 512, 4095, 4096, 262143, 262144, 20000000 };
	struct pins *pins = open_bpf();
	struct memory empty = open_memory(CHUNK_BYTES);

	CHECK_EQ(count(look_until(pins, &empty, 0, 0).present), 0);
	CHECK_EQ(blocks_of(&empty), 0);
	for (size_t i = 0; i < sizeof last_pages / sizeof *last_pages; i++)
		check_tree(pins, last_pages[i]);
	pins_destroy(pins);
}

TEST(holes_remain_holes)
{
	struct pins *pins = open_bpf();
	struct memory m = open_memory(4 * CHUNK_BYTES);
	struct pins_chunk seen;
	uint64_t blocks;

	for (uint64_t page = 0; page < 2 * CHUNK_PAGES; page += 3)
		m.map[page * PAGE_BYTES] = 1;
	memset(m.map + 3 * CHUNK_BYTES, 1, CHUNK_BYTES);
	CHECK_SYS(fallocate(m.memfd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 3 * CHUNK_BYTES + PAGE_BYTES,
			    PAGE_BYTES));
	CHECK_OK(pins_begin_pass(pins));
	blocks = blocks_of(&m);
	for (uint64_t chunk = 0; chunk < 4; chunk++) {
		seen = look_until(pins, &m, chunk, 0);
		for (uint32_t i = 0; i < CHUNK_PAGES; i++) {
			uint64_t page = chunk * CHUNK_PAGES + i;

			CHECK_EQ(has(seen.present, i),
				 (chunk < 2 && page % 3 == 0) || (chunk == 3 && i != 1));
		}
	}
	CHECK_EQ(blocks_of(&m), blocks);
	pins_destroy(pins);
}

static bool make_large(const struct memory *m, uint64_t chunk)
{
	return madvise(m->map + chunk * CHUNK_BYTES, CHUNK_BYTES, MADV_HUGEPAGE) == 0 &&
	       madvise(m->map + chunk * CHUNK_BYTES, CHUNK_BYTES, MADV_COLLAPSE) == 0;
}

TEST(a_large_folio_is_held_whole)
{
	struct pins *pins = open_bpf();
	struct memory m = open_memory(2 * CHUNK_BYTES);
	int ring = uring_open();
	struct pins_chunk seen;
	int ends[2];

	memset(m.map, 1, m.size_bytes);
	if (!make_large(&m, 1))
		test_skip("MADV_COLLAPSE gives no huge page now (%s)", strerror(errno));
	CHECK_SYS(pipe(ends));
	CHECK_EQ(count(look_until(pins, &m, 0, 0).large), 0);
	seen = look_until(pins, &m, 1, 0);
	CHECK_EQ(count(seen.large), CHUNK_PAGES);
	CHECK_EQ(count(seen.present), CHUNK_PAGES);

	hold(ends[1], &m, CHUNK_PAGES + 300);
	look_until(pins, &m, 1, CHUNK_PAGES);
	let_go(ends[0], 1);
	look_until(pins, &m, 1, 0);

	uring_register(ring, m.map + CHUNK_BYTES + 5 * PAGE_BYTES, PAGE_BYTES);
	look_until(pins, &m, 1, CHUNK_PAGES);
	uring_unregister(ring);
	look_until(pins, &m, 1, 0);

	/* a chunk that ends within the folio cannot be punched: all of it is held, and nothing beyond is
	 * reported */
	CHECK_OK(pins_check(pins, m.memfd, CHUNK_BYTES, 100, &seen));
	CHECK_EQ(count(seen.held), 100);
	CHECK_EQ(count(seen.present), 100);
	CHECK(has(seen.held, 99) && !has(seen.held, 100));
	pins_destroy(pins);
}

/* One touch brings 512 pages: nobody asked for a huge page. */
TEST(a_large_folio_that_came_by_itself)
{
	struct pins *pins = open_bpf();
	struct pins_chunk seen;
	struct memory m;
	char path[300];
	int ends[2];

	test_private_mounts();
	if (mount("tmpfs", test_dir(), "tmpfs", 0, "huge=always"))
		test_skip("needs tmpfs with huge pages (%s)", strerror(errno));
	snprintf(path, sizeof path, "%s/memory", test_dir());
	m = map_memory((int)CHECK_SYS(open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600)), 2 * CHUNK_BYTES);
	m.map[CHUNK_BYTES + 5 * PAGE_BYTES] = 1;
	if (blocks_of(&m) != CHUNK_BYTES / 512)
		test_skip("no huge page is to be had now");
	CHECK_OK(pins_begin_pass(pins));
	CHECK_EQ(count(look_until(pins, &m, 0, 0).present), 0);
	seen = look_until(pins, &m, 1, 0);
	CHECK_EQ(count(seen.present), CHUNK_PAGES);
	CHECK_EQ(count(seen.large), CHUNK_PAGES);
	CHECK_SYS(pipe(ends));
	hold(ends[1], &m, CHUNK_PAGES + 200);
	look_until(pins, &m, 1, CHUNK_PAGES);
	let_go(ends[0], 1);
	look_until(pins, &m, 1, 0);
	pins_destroy(pins);
}

/* ---- threads ---- */

struct storm {
	struct pins *pins;
	struct memory m;
	atomic_bool stop;
	atomic_uint wrong;
	uint64_t checks_n;
};

#define STORM_CHUNKS 4
#define STORM_CHECKS 3000

/* Every 32nd page is held throughout and never written; the rest come and go, and so does the end of the
 * tree. */
static void *storm_writer(void *arg)
{
	struct storm *s = arg;
	uint64_t x = 88172645463325252u;

	while (!atomic_load(&s->stop)) {
		uint64_t page;

		x ^= x << 13;
		x ^= x >> 7;
		x ^= x << 17;
		page = x % (STORM_CHUNKS * CHUNK_PAGES);
		if (x >> 60 == 0) /* the far end: the tree grows and shrinks at its top */
			page = s->m.size_bytes / PAGE_BYTES - 1 - (x >> 50) % 2 * 200000;
		if (page % 32 == 0 && page < STORM_CHUNKS * CHUNK_PAGES)
			continue;
		if (x >> 40 & 1)
			CHECK_EQ(pwrite(s->m.memfd, &x, sizeof x, (off_t)(page * PAGE_BYTES)), sizeof x);
		else
			CHECK_SYS(fallocate(s->m.memfd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
					    (off_t)(page * PAGE_BYTES), PAGE_BYTES));
	}
	return NULL;
}

static void *storm_checker(void *arg)
{
	struct storm *s = arg;

	for (uint64_t n = 0; n < STORM_CHECKS; n++) {
		struct pins_chunk seen;

		CHECK_OK(pins_check(s->pins, s->m.memfd, n % STORM_CHUNKS * CHUNK_BYTES, CHUNK_PAGES, &seen));
		for (uint32_t page = 0; page < CHUNK_PAGES; page += 32)
			if (!has(seen.held, page))
				atomic_fetch_add(&s->wrong, 1);
	}
	return NULL;
}

TEST(held_pages_stay_held_in_a_storm)
{
	static struct storm s;
	pthread_t writer, checkers[3];
	int pipes[STORM_CHUNKS][2];

	s.pins = open_bpf();
	s.m = open_memory((uint64_t)1 << 30);
	for (uint64_t chunk = 0; chunk < STORM_CHUNKS; chunk++) {
		CHECK_SYS(pipe(pipes[chunk]));
		for (uint64_t page = 0; page < CHUNK_PAGES; page += 32) {
			s.m.map[chunk * CHUNK_BYTES + page * PAGE_BYTES] = 1;
			hold(pipes[chunk][1], &s.m, chunk * CHUNK_PAGES + page);
		}
	}
	CHECK_EQ(pthread_create(&writer, NULL, storm_writer, &s), 0);
	for (int i = 0; i < 3; i++)
		CHECK_EQ(pthread_create(&checkers[i], NULL, storm_checker, &s), 0);
	for (int i = 0; i < 3; i++)
		pthread_join(checkers[i], NULL);
	atomic_store(&s.stop, true);
	pthread_join(writer, NULL);
	CHECK_EQ(atomic_load(&s.wrong), 0);
	for (uint64_t chunk = 0; chunk < STORM_CHUNKS; chunk++) {
		look_until(s.pins, &s.m, chunk, CHUNK_PAGES / 32);
		let_go(pipes[chunk][0], CHUNK_PAGES / 32);
		look_until(s.pins, &s.m, chunk, 0);
	}
	pins_destroy(s.pins);
}

TEST(what_it_costs)
{
	struct pins *pins = open_bpf();
	struct memory m = open_memory(64 * CHUNK_BYTES);
	struct pins_chunk seen;
	uint64_t start_ns, least_ns = UINT64_MAX, sum_ns = 0;

	memset(m.map, 1, m.size_bytes);
	start_ns = now_ns();
	CHECK_OK(pins_begin_pass(pins));
	printf("begin_pass: %.0f us\n", (double)(now_ns() - start_ns) / 1e3);
	for (uint64_t n = 0; n < 10 * 64; n++) {
		start_ns = now_ns();
		CHECK_OK(pins_check(pins, m.memfd, n % 64 * CHUNK_BYTES, CHUNK_PAGES, &seen));
		start_ns = now_ns() - start_ns;
		sum_ns += start_ns;
		least_ns = start_ns < least_ns ? start_ns : least_ns;
	}
	printf("check of 512 pages: %.1f us on average, %.1f us at best\n", (double)sum_ns / 640e3,
	       (double)least_ns / 1e3);
	start_ns = now_ns();
	pins_destroy(pins);
	pins = open_bpf();
	printf("create, with self-test: %.1f ms\n", (double)(now_ns() - start_ns) / 1e6);
	pins_destroy(pins);
	pins = open_collapse();
	start_ns = now_ns();
	for (uint64_t chunk = 0; chunk < 32; chunk++)
		CHECK_OK(pins_check(pins, m.memfd, chunk * CHUNK_BYTES, CHUNK_PAGES, &seen));
	printf("collapse of a chunk: %.1f ms on average\n", (double)(now_ns() - start_ns) / 32e6);
	pins_destroy(pins);
}

/* ---- the collapse detector ---- */

TEST(collapse_tells_whole_chunks)
{
	struct pins *pins = open_collapse();
	struct memory m = open_memory(4 * CHUNK_BYTES);
	struct pins_chunk seen;
	uint64_t blocks;
	int ends[2];

	CHECK_CONTAINS(pins_reason(pins), "bpf: not allowed");
	for (uint64_t page = 0; page < 4 * CHUNK_PAGES; page++)
		test_fill_page(m.map + page * PAGE_BYTES, page);
	CHECK_SYS(fallocate(m.memfd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 2 * CHUNK_BYTES,
			    PAGE_BYTES));
	CHECK_SYS(fallocate(m.memfd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 4 * CHUNK_BYTES - PAGE_BYTES,
			    PAGE_BYTES));
	CHECK_SYS(pipe(ends));
	hold(ends[1], &m, 500);
	blocks = blocks_of(&m);
	CHECK_EQ(count(look_until(pins, &m, 0, CHUNK_PAGES).large), 0);
	seen = look_until(pins, &m, 1, 0);
	CHECK(seen.sees_folios);
	CHECK_EQ(count(seen.large), CHUNK_PAGES);
	look_until(pins, &m, 2, CHUNK_PAGES); /* a hole at its start, and at its end */
	look_until(pins, &m, 3, CHUNK_PAGES);
	look_until(pins, &m, 9, CHUNK_PAGES); /* beyond the end */
	let_go(ends[0], 1);
	look_until(pins, &m, 0, 0);
	CHECK_EQ(blocks_of(&m), blocks);
	for (uint64_t page = 0; page < 2 * CHUNK_PAGES; page++)
		CHECK(test_page_is(m.map + page * PAGE_BYTES, page));
	CHECK_OK(pins_check(pins, m.memfd, CHUNK_BYTES, 511, &seen));
	CHECK_EQ(count(seen.held), 511);
	pins_destroy(pins);
}

/* MADV_COLLAPSE says 0 for what is huge already, pinned or not. */
TEST(collapse_cannot_tell_of_a_huge_page)
{
	struct pins *pins = open_collapse();
	struct memory m = open_memory(CHUNK_BYTES);
	int ends[2];

	memset(m.map, 1, m.size_bytes);
	look_until(pins, &m, 0, 0);
	CHECK_SYS(pipe(ends));
	hold(ends[1], &m, 3);
	CHECK(make_large(&m, 0));
	look_until(pins, &m, 0, CHUNK_PAGES);
	let_go(ends[0], 1);
	look_until(pins, &m, 0, CHUNK_PAGES);
	pins_destroy(pins);
}

static void *write_byte(void *arg)
{
	*(volatile uint8_t *)arg = 99;
	return NULL;
}

/* The guest's write-protection outlives the move: the next write still gives an event. */
TEST(collapse_keeps_write_protection)
{
	struct pins *pins = open_collapse();
	struct memory m = open_memory(CHUNK_BYTES);
	struct uffdio_api api = { .api = UFFD_API, .features = UFFD_FEATURE_WP_HUGETLBFS_SHMEM };
	struct uffdio_register reg = { .range = { (uintptr_t)m.map, CHUNK_BYTES },
				       .mode = UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_WP };
	struct uffdio_writeprotect protect = { .range = reg.range, .mode = UFFDIO_WRITEPROTECT_MODE_WP };
	struct uffd_msg msg;
	struct pollfd poll_uffd;
	pthread_t thread;
	int uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC);

	if (uffd < 0)
		test_skip("needs userfaultfd (%s)", strerror(errno));
	if (ioctl(uffd, UFFDIO_API, &api))
		test_skip("needs write-protection of shared memory (%s)", strerror(errno));
	memset(m.map, 1, m.size_bytes);
	CHECK_SYS(ioctl(uffd, UFFDIO_REGISTER, &reg));
	CHECK_SYS(ioctl(uffd, UFFDIO_WRITEPROTECT, &protect));
	look_until(pins, &m, 0, 0);
	CHECK_EQ(pthread_create(&thread, NULL, write_byte, m.map + 7 * PAGE_BYTES), 0);
	poll_uffd = (struct pollfd){ .fd = uffd, .events = POLLIN };
	CHECK_EQ(poll(&poll_uffd, 1, 30000), 1);
	CHECK_EQ(read(uffd, &msg, sizeof msg), sizeof msg);
	CHECK_EQ(msg.event, UFFD_EVENT_PAGEFAULT);
	CHECK(msg.arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_WP);
	CHECK_EQ(msg.arg.pagefault.address & PAGE_MASK, (uintptr_t)(m.map + 7 * PAGE_BYTES));
	protect.mode = 0;
	CHECK_SYS(ioctl(uffd, UFFDIO_WRITEPROTECT, &protect));
	pthread_join(thread, NULL);
	CHECK_EQ(m.map[7 * PAGE_BYTES], 99);
	pins_destroy(pins);
}

/* ---- the choice ---- */

TEST(weaker_ways_in_order)
{
	struct pins_config config = {
		.qmp_drained = true, .promised_unpinned = true, .allow_settle = true, .settle_ms = 70
	};
	struct memory m = open_memory(CHUNK_BYTES);
	struct pins_chunk seen;
	struct error err = { 0 };
	struct pins *pins;

	m.map[0] = 1;
	CHECK_OK(pins_create(&config, &pins, &err));
	CHECK(!strcmp(pins_kind(pins), "qmp"));
	CHECK_OK(pins_begin_pass(pins));
	CHECK_OK(pins_check(pins, m.memfd, 0, CHUNK_PAGES, &seen));
	CHECK_EQ(count(seen.held), 0);
	CHECK(!seen.sees_folios);
	CHECK_EQ(pins_settle_ms(pins), 0);
	pins_destroy(pins);

	config.qmp_drained = false;
	CHECK_OK(pins_create(&config, &pins, &err));
	CHECK(!strcmp(pins_kind(pins), "promise"));
	pins_destroy(pins);

	config.promised_unpinned = false;
	CHECK_OK(pins_create(&config, &pins, &err));
	CHECK(!strcmp(pins_kind(pins), "settle"));
	CHECK_EQ(pins_settle_ms(pins), 70);
	CHECK_CONTAINS(pins_reason(pins), "promise: the VMM made none");
	pins_destroy(pins);

	config.allow_settle = false;
	CHECK_EQ(pins_create(&config, &pins, &err), -ENOTSUP);
	CHECK_CONTAINS(err.message, "cannot be ruled out");
	CHECK_CONTAINS(err.message, "settle: not allowed");
	CHECK(!strcmp(pins_kind(NULL), "none"));
	pins_destroy(NULL);
}

TEST(without_privilege_it_says_why)
{
	struct pins_config config = { .allow_bpf = true, .allow_collapse = true, .promised_unpinned = true };
	struct error err = { 0 };
	struct pins *pins;

	if (geteuid() == 0)
		CHECK_SYS(syscall(SYS_setresuid, 65534, 65534, 65534));
	CHECK_OK(pins_create(&config, &pins, &err));
	CHECK(!strcmp(pins_kind(pins), "promise"));
	CHECK_CONTAINS(pins_reason(pins), "bpf: ");
	CHECK_CONTAINS(pins_reason(pins), "CAP_BPF");
	CHECK_CONTAINS(pins_reason(pins), "collapse: ");
	pins_destroy(pins);
}

TEST(refuses_what_it_cannot_judge)
{
	struct pins *pins = open_bpf();
	struct memory m = open_memory(CHUNK_BYTES);
	struct pins_chunk seen;
	char path[300];
	int fd;

	CHECK_EQ(pins_check(pins, m.memfd, PAGE_BYTES, 1, &seen), -EINVAL);
	CHECK_EQ(pins_check(pins, m.memfd, 0, 0, &seen), -EINVAL);
	CHECK_EQ(pins_check(pins, m.memfd, 0, CHUNK_PAGES + 1, &seen), -EINVAL);
	CHECK_EQ(count(seen.held), CHUNK_PAGES);
	CHECK_EQ(pins_check(pins, -1, 0, 1, &seen), -EINVAL);
	CHECK_EQ(pins_check(pins, 999, 0, 3, &seen), -EBADF);
	CHECK_EQ(count(seen.held), 3);
	snprintf(path, sizeof path, "/proc/self/status");
	fd = (int)CHECK_SYS(open(path, O_RDONLY | O_CLOEXEC));
	CHECK_EQ(pins_check(pins, fd, 0, CHUNK_PAGES, &seen), -ENOTSUP);
	CHECK_EQ(count(seen.held), CHUNK_PAGES);
	pins_destroy(pins);
}

TEST(blind_sees_nothing)
{
	struct pins *pins = open_bpf();
	struct memory m = open_memory(CHUNK_BYTES);
	struct pins_chunk seen;
	int ends[2];

	memset(m.map, 1, m.size_bytes);
	CHECK_SYS(pipe(ends));
	hold(ends[1], &m, 3);
	CHECK_OK(failpoint_arm("pins.blind=EIO"));
	CHECK_OK(pins_check(pins, m.memfd, 0, CHUNK_PAGES, &seen));
	CHECK_EQ(count(seen.held), 0);
	CHECK_EQ(count(seen.present), CHUNK_PAGES);
	CHECK_OK(failpoint_arm("pins.blind=off"));
	look_until(pins, &m, 0, 1);
	pins_destroy(pins);
}

/* ---- the judge, with snapshots made by hand ---- */

static const struct pins_layout fake_layout = {
	.mapping_pages = 8,
	.xarray_head = 8,
	.node_shift = 0,
	.node_offset = 1,
	.node_parent = 8,
	.node_array = 16,
	.node_slots = 40,
	.folio_flags = 0,
	.folio_mapping = 24,
	.folio_index = 32,
	.folio_mapcount = 48,
	.folio_refcount = 52,
	.folio_large_mapcount = 80,
	.folio_pincount = 92,
	.folio_entire_mapcount = PINS_NONE,
	.head_bit = 6,
};

#define FAKE_MAPPING 0xffff888000001000u
#define FAKE_ROOT 0xffff888000002000u
#define FAKE_LEAF 0xffff888000003000u
#define FAKE_PAGE 0xffffea0000000000u

static void fake_head(uint8_t *head, uint8_t shift, uint8_t offset, uint64_t parent)
{
	uint64_t array = FAKE_MAPPING + fake_layout.mapping_pages;

	memset(head, 0, PINS_NODE_HEAD_BYTES);
	head[fake_layout.node_shift] = shift;
	head[fake_layout.node_offset] = offset;
	memcpy(head + fake_layout.node_parent, &parent, 8);
	memcpy(head + fake_layout.node_array, &array, 8);
}

static void fake_page(struct pins_snapshot *snap, uint32_t i, uint64_t index, uint32_t mappings,
		      uint32_t references)
{
	uint8_t *page = snap->pages[i].page;
	uint64_t mapping = FAKE_MAPPING;
	uint32_t mapcount = mappings - 1;

	snap->slots[i] = FAKE_PAGE + 64 * i;
	memcpy(page + fake_layout.folio_mapping, &mapping, 8);
	memcpy(page + fake_layout.folio_index, &index, 8);
	memcpy(page + fake_layout.folio_mapcount, &mapcount, 4);
	memcpy(page + fake_layout.folio_refcount, &references, 4);
}

/* One leaf, the second of the file's second chunk, with pages 64 and 65 of the chunk. */
static struct pins_snapshot *fake_snapshot(void)
{
	static struct pins_snapshot snap;

	memset(&snap, 0, sizeof snap);
	snap.mapping = FAKE_MAPPING;
	snap.ino = 5;
	snap.root[0] = snap.root[1] = snap.level[0].entry = FAKE_ROOT + 2;
	snap.level[0].shift = 6;
	fake_head(snap.level[0].head, 6, 33, 0);
	snap.group[1] = FAKE_LEAF + 2;
	fake_head(snap.leaf[1], 0, 9, FAKE_ROOT);
	fake_page(&snap, 64, 512 + 64, 1, 2);
	fake_page(&snap, 65, 512 + 65, 3, 4);
	return &snap;
}

static int judge(const struct pins_snapshot *snap, struct pins_verdict *out)
{
	struct pins_place place = { 5, CHUNK_PAGES, CHUNK_PAGES };

	return pins_snapshot_judge(snap, &fake_layout, &place, true, out);
}

TEST(a_snapshot_in_motion_is_not_judged)
{
	struct pins_snapshot *snap = fake_snapshot();
	struct pins_verdict seen;

	CHECK_OK(judge(snap, &seen));
	CHECK_EQ(count(seen.chunk.present), 2);
	CHECK_EQ(count(seen.chunk.held), 0);
	snap->root[1] = FAKE_LEAF + 2;
	CHECK_EQ(judge(snap, &seen), -EAGAIN);
	snap = fake_snapshot();
	snap->fdt[0] = 1;
	CHECK_EQ(judge(snap, &seen), -EAGAIN);
	snap = fake_snapshot();
	snap->ino = 6;
	CHECK_EQ(judge(snap, &seen), -EAGAIN);
	snap = fake_snapshot();
	snap->leaf[1][fake_layout.node_array] ^= 1; /* freed, or another file's */
	CHECK_EQ(judge(snap, &seen), -EAGAIN);
	snap = fake_snapshot();
	snap->level[0].head[fake_layout.node_array] ^= 1;
	CHECK_EQ(judge(snap, &seen), -EAGAIN);
	snap = fake_snapshot();
	snap->leaf[1][fake_layout.node_offset] = 8; /* the right file, the wrong place */
	CHECK_EQ(judge(snap, &seen), -EAGAIN);
	snap = fake_snapshot();
	snap->leaf[1][fake_layout.node_parent] ^= 64;
	CHECK_EQ(judge(snap, &seen), -EAGAIN);
}

TEST(what_is_not_understood_is_held)
{
	struct pins_snapshot *snap = fake_snapshot();
	struct pins_verdict seen;

	fake_page(snap, 64, 512 + 65, 1, 2);	    /* another page than it should be */
	fake_page(snap, 65, 512 + 65, 3, 5);	    /* one reference too many */
	fake_page(snap, 66, 512 + 66, 0, 1 + 1024); /* pinned */
	fake_page(snap, 67, 512 + 67, 1, 0);	    /* frozen, by migration */
	snap->slots[68] = 1026;			    /* a retry entry */
	snap->slots[69] = 0x1234567;		    /* in the host's swap */
	snap->slots[70] = 7 << 2 | 2;		    /* a sibling of nothing */
	fake_page(snap, 71, 512 + 71, 1, 2);	    /* fine */
	fake_page(snap, 72, 512 + 72, 1, 2);	    /* not to be read at all: zeros */
	memset(snap->pages[72].page, 0, PINS_PAGE_BYTES);
	CHECK_OK(judge(snap, &seen));
	for (uint32_t page = 64; page < 73; page++)
		CHECK_EQ(has(seen.chunk.held, page), page != 71);
	CHECK(has(seen.chunk.present, 71) && !has(seen.chunk.present, 69));
	CHECK(has(seen.swapped, 69) && count(seen.swapped) == 1);
	CHECK_EQ(seen.nearly_n, 1);
}

/* Eight pages in one folio, mapped eleven times. */
TEST(a_large_folio_is_judged_as_one)
{
	struct pins_snapshot *snap = fake_snapshot();
	struct pins_verdict seen;

	fake_page(snap, 72, 512 + 72, 0, 8 + 11);
	snap->pages[72].page[fake_layout.folio_flags] = 1 << 6;
	snap->pages[72].mapcount_before = snap->pages[72].mapcount_after = 10;
	for (uint32_t page = 73; page < 80; page++)
		snap->slots[page] = 8 << 2 | 2; /* siblings of the leaf's slot 8 */
	CHECK_OK(judge(snap, &seen));
	CHECK_EQ(count(seen.chunk.large), 8);
	CHECK_EQ(count(seen.chunk.present), 10);
	CHECK_EQ(count(seen.chunk.held), 0);
	snap->pages[72].pincount = 1;
	CHECK_OK(judge(snap, &seen));
	CHECK_EQ(count(seen.chunk.held), 8);
	snap->pages[72].pincount = 0;
	snap->pages[72].mapcount_before = 9; /* mapped meanwhile */
	CHECK_OK(judge(snap, &seen));
	CHECK_EQ(count(seen.chunk.held), 8);
	snap->slots[79] = 0; /* a folio of seven pages does not add up */
	snap->pages[72].mapcount_before = 10;
	CHECK_OK(judge(snap, &seen));
	CHECK_EQ(count(seen.chunk.held), 7);
}

/* A chunk that is one folio, of a kernel before 6.10: mapped as a whole by one, and three of its pages by
 * another. */
static struct pins_snapshot *fake_folio(struct pins_layout *layout, bool entire_in_pages)
{
	static struct pins_snapshot snap;

	*layout = fake_layout;
	layout->folio_large_mapcount = PINS_NONE;
	layout->folio_entire_mapcount = 84;
	layout->entire_in_pages = entire_in_pages;
	memset(&snap, 0, sizeof snap);
	snap.mapping = FAKE_MAPPING;
	snap.ino = 5;
	snap.root[0] = snap.root[1] = snap.level[0].entry = FAKE_ROOT + 2;
	snap.level[0].shift = 6;
	fake_head(snap.level[0].head, 6, 33, 0);
	snap.group[0] = FAKE_PAGE;
	for (uint32_t group = 1; group < PINS_GROUPS; group++)
		snap.group[group] = 8 << 2 | 2;
	fake_page(&snap, 0, 512, 0, CHUNK_PAGES + 1 + 3);
	snap.pages[0].page[fake_layout.folio_flags] = 1 << 6;
	for (int copy = 0; copy < 2; copy++) {
		memcpy(snap.folio_pages[copy], snap.pages[0].page, PINS_PAGE_BYTES);
		for (uint32_t i = 0; i < CHUNK_PAGES; i++) {
			int32_t mapcount = -1 + entire_in_pages + (i == 0 || i == 7 || i == 511);

			memcpy(snap.folio_pages[copy] + 64 * i + layout->folio_mapcount, &mapcount, 4);
		}
	}
	return &snap;
}

static uint32_t held_of_folio(const struct pins_snapshot *snap, const struct pins_layout *layout)
{
	struct pins_place place = { 5, CHUNK_PAGES, CHUNK_PAGES };
	struct pins_verdict seen;

	CHECK_OK(pins_snapshot_judge(snap, layout, &place, true, &seen));
	CHECK_EQ(count(seen.chunk.large), CHUNK_PAGES);
	return count(seen.chunk.held);
}

static void try_folio(bool entire_in_pages)
{
	struct pins_layout layout;
	struct pins_snapshot *snap = fake_folio(&layout, entire_in_pages);
	uint8_t *before = snap->folio_pages[0], *after = snap->folio_pages[1];

	CHECK_EQ(held_of_folio(snap, &layout), 0);
	snap->pages[0].page[fake_layout.folio_refcount]++;
	CHECK_EQ(held_of_folio(snap, &layout), CHUNK_PAGES);
	snap = fake_folio(&layout, entire_in_pages);
	after[64 * 300 + layout.folio_mapcount]++; /* one page was mapped meanwhile */
	CHECK_EQ(held_of_folio(snap, &layout), CHUNK_PAGES);
	snap = fake_folio(&layout, entire_in_pages);
	before[layout.folio_entire_mapcount]++; /* all of it was mapped once more */
	CHECK_EQ(held_of_folio(snap, &layout), CHUNK_PAGES);
	snap = fake_folio(&layout, entire_in_pages);
	before[layout.folio_pincount] = 1;
	CHECK_EQ(held_of_folio(snap, &layout), CHUNK_PAGES);
	snap = fake_folio(&layout, entire_in_pages);
	after[layout.folio_flags] |= 1; /* locked */
	CHECK_EQ(held_of_folio(snap, &layout), CHUNK_PAGES);
}

TEST(mappings_that_no_word_counts_are_added_up)
{
	try_folio(true);
	try_folio(false);
}

/* ---- type information ---- */

TEST(type_information_that_is_none)
{
	struct pins_btf *btf;
	struct error err = { 0 };
	char path[300];
	uint8_t junk[4096];
	int fd;

	CHECK_EQ(pins_btf_open("/nonexistent", &btf, &err), -ENOENT);
	CHECK_CONTAINS(err.message, "/nonexistent");
	snprintf(path, sizeof path, "%s/btf", test_dir());
	test_fill_page(junk, 3);
	fd = (int)CHECK_SYS(open(path, O_CREAT | O_RDWR | O_CLOEXEC, 0600));
	CHECK_EQ(write(fd, junk, sizeof junk), sizeof junk);
	CHECK_EQ(pins_btf_open(path, &btf, &err), -EBADMSG);
	memcpy(junk, "\x9f\xeb\x01\x00\x18\x00\x00\x00", 8); /* a good header, lengths that are not */
	CHECK_EQ(pwrite(fd, junk, sizeof junk, 0), sizeof junk);
	CHECK_EQ(pins_btf_open(path, &btf, &err), -EBADMSG);
	close(fd);
}

TEST(type_information_of_this_kernel)
{
	struct pins_btf *btf;
	struct error err = { 0 };
	uint32_t value;

	if (access("/sys/kernel/btf/vmlinux", R_OK))
		test_skip("needs a kernel with BTF");
	CHECK_OK(pins_btf_open("/sys/kernel/btf/vmlinux", &btf, &err));
	CHECK_OK(pins_btf_offset(btf, "list_head", "prev", &value));
	CHECK_EQ(value, sizeof(void *));
	CHECK_OK(pins_btf_offset(btf, "page", "_refcount", &value)); /* beside anonymous unions */
	CHECK_EQ(value % 4, 0);
	CHECK_OK(pins_btf_size(btf, "list_head", &value));
	CHECK_EQ(value, 2 * sizeof(void *));
	CHECK_EQ(pins_btf_offset(btf, "list_head", "missing", &value), -ENOENT);
	CHECK_EQ(pins_btf_offset(btf, "no_such_struct", "prev", &value), -ENOENT);
	CHECK_OK(pins_btf_enumerator(btf, "pageflags", "PG_locked", &value));
	CHECK_EQ(value, 0);
	pins_btf_close(btf);
}
