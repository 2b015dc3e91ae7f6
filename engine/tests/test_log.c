/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "base/failpoint.h"
#include "base/memory_error.h"
#include "base/units.h"
#include "harness.h"
#include "store/compact.h"
#include "store/log.h"
#include "store/move.h"
#include "store/page_read.h"
#include "store/segments_inside.h"
#include "store/tend.h"
#include "store/thin.h"

#include <linux/magic.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stddef.h>
#include <sys/mount.h>
#include <sys/syscall.h>
#include <sys/vfs.h>

#define N 1500 /* pages: a few segments */
#define MIB ((uint64_t)1 << 20)

/* Page i is text that compresses, noise that does not, or one word. */
enum sort { TEXT, NOISE, FILL, MIXED };

static void make_page(char *page, enum sort sort, uint64_t seed)
{
	if (sort == MIXED)
		sort = (enum sort)(seed % 3);
	if (sort == NOISE) {
		test_fill_page(page, seed);
	} else if (sort == FILL) {
		for (size_t i = 0; i < PAGE_BYTES / 8; i++)
			memcpy(page + 8 * i, &seed, 8);
	} else {
		test_fill_page(page, seed);
		for (size_t i = 1024; i < PAGE_BYTES; i++)
			page[i] = page[i % 64];
	}
}

static struct log_config config(const char *dir)
{
	return (struct log_config){ .dir = dir,
				    .segments_fd = -1,
				    .ram_fd = -1,
				    .disk_fd = -1,
				    .key_fd = -1,
				    .compress = true,
				    .encrypt = true,
				    .ram_max_bytes = 1024 * MIB,
				    .disk_max_bytes = 1024 * MIB };
}

static struct log *make(const struct log_config *config)
{
	struct log *log;
	struct error err = { 0 };

	if (log_create(config, &log, &err))
		test_fail(__FILE__, __LINE__, "%s", err.message);
	return log;
}

/* How many of n were put; slots of these in *slots. */
static size_t try_put(struct log *log, size_t writer, enum sort sort, uint64_t first, size_t n,
		      uint64_t *slots, struct error *err)
{
	char page[PAGE_BYTES];
	size_t done = 0;

	while (done < n) {
		struct page_to_put put = { .page = page, .owner = first + done };

		make_page(page, sort, first + done);
		if (log_put(log, writer, &put, 1, err) != 1)
			break;
		slots[done++] = put.slot_idx;
	}
	return done;
}

static void put(struct log *log, enum sort sort, uint64_t first, size_t n, uint64_t *slots)
{
	struct error err = { 0 };

	if (try_put(log, 0, sort, first, n, slots, &err) != n)
		test_fail(__FILE__, __LINE__, "%s", err.message);
}

static void check(struct log *log, enum sort sort, uint64_t first, size_t n, const uint64_t *slots)
{
	char page[PAGE_BYTES], want[PAGE_BYTES];

	for (size_t i = 0; i < n; i++) {
		CHECK_OK(log_get(log, slots[i], page));
		make_page(want, sort, first + i);
		CHECK(memcmp(page, want, PAGE_BYTES) == 0);
	}
}

static void check_many(struct log *log, enum sort sort, uint64_t first, size_t n, const uint64_t *slots)
{
	char *pages = test_pages(n), want[PAGE_BYTES];
	int *rc = calloc(n, sizeof *rc);

	log_get_many(log, slots, n, pages, rc);
	for (size_t i = 0; i < n; i++) {
		CHECK_OK(rc[i]);
		make_page(want, sort, first + i);
		CHECK(memcmp(pages + bytes_of_pages(i), want, PAGE_BYTES) == 0);
	}
	munmap(pages, bytes_of_pages(n));
	free(rc);
}

static void drop(struct log *log, const uint64_t *slots, size_t n)
{
	for (size_t i = 0; i < n; i++)
		log_drop(log, slots[i]);
	while (log_tidy_step(log))
		;
}

static void move_all(struct log *log)
{
	struct error err = { 0 };
	int rc;

	log_seal_open(log);
	do
		rc = log_move_oldest(log, UINT32_MAX, &err);
	while (!rc);
	if (rc != -ENOENT)
		test_fail(__FILE__, __LINE__, "%s", err.message);
}

static struct log_account account(struct log *log)
{
	struct log_account now;

	log_account(log, &now);
	return now;
}

static struct log *successor(struct log *log)
{
	struct log_config config = { .segments_fd = log->segments.fd,
				     .ram_fd = log->ram.fd,
				     .disk_fd = log->disk ? disk_tier_fd(log->disk) : -1,
				     .key_fd = log->seal ? seal_fd(log->seal) : -1,
				     .compress = true,
				     .ram_max_bytes = 1024 * MIB,
				     .disk_max_bytes = 1024 * MIB };

	return make(&config);
}

TEST(pages_come_back_from_ram)
{
	struct log_config one = config(test_dir());
	struct log *log = make(&one);
	static uint64_t slots[N];
	struct log_account full;

	put(log, MIXED, 1, N, slots);
	check(log, MIXED, 1, N, slots);
	check_many(log, MIXED, 1, N, slots);
	full = account(log);
	CHECK_EQ(full.fill_pages, N / 3);
	CHECK_EQ(full.raw_records, N / 3);
	CHECK_EQ(full.records, 2 * N / 3);
	CHECK_EQ(full.disk_bytes, 0);
	CHECK(full.ram_bytes < N * PAGE_BYTES * 3 / 4);
	drop(log, slots, N);
	log_seal_open(log);
	drop(log, slots, 0);
	CHECK_EQ(account(log).ram_bytes, 0);
	CHECK_EQ(account(log).record_bytes, 0);
	log_destroy(log);
}

TEST(pages_come_back_from_disk)
{
	struct log_config one = config(test_dir());
	struct log *log = make(&one);
	static uint64_t slots[N];

	put(log, MIXED, 1, N, slots);
	move_all(log);
	CHECK_EQ(account(log).ram_bytes, 0);
	CHECK(account(log).disk_bytes > 0);
	CHECK(atomic_load(log->writes->written_bytes) > 0);
	check(log, MIXED, 1, N, slots);
	check_many(log, MIXED, 1, N, slots);
	drop(log, slots, N);
	CHECK_EQ(account(log).disk_bytes, 0);
	log_destroy(log);
}

/* A swap-in asks in the order of the guest's pages, and which of them went out first is another matter. */
TEST(pages_come_back_from_disk_in_any_order)
{
	struct log_config one = config(test_dir());
	struct log *log = make(&one);
	uint64_t slots[4], backwards[4];
	char *pages = test_pages(4), want[PAGE_BYTES];
	int rc[4];

	put(log, TEXT, 1, 4, slots);
	move_all(log);
	for (size_t i = 0; i < 4; i++)
		backwards[i] = slots[3 - i];
	log_get_many(log, backwards, 4, pages, rc);
	for (size_t i = 0; i < 4; i++) {
		CHECK_OK(rc[i]);
		make_page(want, TEXT, 4 - i);
		CHECK(memcmp(pages + bytes_of_pages(i), want, PAGE_BYTES) == 0);
	}
	munmap(pages, bytes_of_pages(4));
	log_destroy(log);
}

/* As a caller does that reads by itself. True if it had to read. */
static bool is_read_apart(struct log *log, enum sort sort, uint64_t slot_idx, uint64_t seed)
{
	static _Alignas(4096) char bytes[PAGE_READ_BYTES_MAX], page[PAGE_BYTES], wanted[PAGE_BYTES];
	struct page_read read;
	int begun = log_begin_read(log, slot_idx, page, &read);

	make_page(wanted, sort, seed);
	CHECK(begun == 0 || begun == 1);
	if (begun == 1) {
		CHECK(read.size_bytes <= PAGE_READ_BYTES_MAX);
		CHECK_EQ(pread(read.fd, bytes, read.size_bytes, (off_t)read.offset_bytes), read.size_bytes);
		CHECK_EQ(log_end_read(log, &read, -EIO, bytes, page), -EIO);
		CHECK_OK(log_end_read(log, &read, 0, bytes, page));
	}
	CHECK(memcmp(page, wanted, PAGE_BYTES) == 0);
	memset(bytes, 0x5a, sizeof bytes);
	if (begun == 1)
		CHECK_EQ(log_end_read(log, &read, 0, bytes, page), -EBADMSG);
	return begun == 1;
}

TEST(a_read_is_begun_and_ended_apart)
{
	struct log_config one = config(test_dir());
	struct log *log = make(&one);
	static uint64_t slots[N];

	put(log, MIXED, 1, N, slots);
	for (size_t i = 0; i < N; i++)
		CHECK(!is_read_apart(log, MIXED, slots[i], 1 + i));
	move_all(log);
	for (size_t i = 0; i < N; i++)
		CHECK_EQ(is_read_apart(log, MIXED, slots[i], 1 + i), (1 + i) % 3 != FILL);
	log_destroy(log);
}

static uint64_t find_on_disk(struct log *log, const char *needle, size_t needle_bytes)
{
	uint64_t found = 0;
	char *bytes = mmap(NULL, SEGMENT_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	for (uint32_t place = 0; place < disk_tier_places(log->disk); place++) {
		if (disk_tier_read(log->disk, place, 0, bytes, SEGMENT_BYTES) &&
		    disk_tier_read(log->disk, place, 0, bytes, 65536))
			continue;
		for (char *at = bytes;
		     (at = memmem(at, (size_t)(bytes + SEGMENT_BYTES - at), needle, needle_bytes)); at++)
			found++;
	}
	munmap(bytes, SEGMENT_BYTES);
	return found;
}

/* And without encryption the same search finds it: the test can fail. */
TEST(nothing_stands_on_the_disk_in_clear)
{
	for (int encrypt = 0; encrypt < 2; encrypt++) {
		struct log_config one = config(test_dir());
		static uint64_t slots[600];
		struct log *log;
		char page[PAGE_BYTES];

		one.encrypt = encrypt;
		log = make(&one);
		put(log, NOISE, 1, 600, slots);
		move_all(log);
		make_page(page, NOISE, 100);
		CHECK_EQ(find_on_disk(log, page + 512, 64) != 0, !encrypt);
		log_destroy(log);
	}
}

static int damage(struct log *log, uint64_t slot_idx, char *page)
{
	off_t at = (off_t)(slot_granule(slot_idx) << GRANULE_SHIFT) + 100;
	uint32_t place = (uint32_t)atomic_load(&log->segments.entries[slot_segment(slot_idx)].place);
	_Alignas(4096) char block[4096];
	uint64_t written;

	(void)written;
	CHECK_OK(disk_tier_read(log->disk, place, (uint64_t)at & ~4095ull, block, 4096));
	block[at % 4096] ^= 4;
	CHECK_EQ(pwrite(disk_tier_fd(log->disk), block, 4096,
			(off_t)(place * SEGMENT_BYTES) + (at & ~4095ll)),
		 4096);
	return log_get(log, slot_idx, page);
}

TEST(a_flipped_bit_on_disk_is_an_error_and_never_bytes)
{
	struct log_config one = config(test_dir());
	struct log *log = make(&one);
	static uint64_t slots[N];
	char page[PAGE_BYTES];
	int rc[10];
	char *pages = test_pages(10);

	put(log, TEXT, 1, N, slots);
	move_all(log);
	CHECK_EQ(damage(log, slots[5], page), -EBADMSG);
	log_get_many(log, slots, 10, pages, rc);
	for (size_t i = 0; i < 10; i++)
		CHECK_EQ(rc[i], i == 5 ? -EBADMSG : 0);
	log_destroy(log);
}

static void read_place(struct log *log, off_t place, char *image)
{
	CHECK_EQ(pread(disk_tier_fd(log->disk), image, SEGMENT_BYTES, place * (off_t)SEGMENT_BYTES),
		 SEGMENT_BYTES);
}

static void write_place(struct log *log, off_t place, const char *image)
{
	CHECK_EQ(pwrite(disk_tier_fd(log->disk), image, SEGMENT_BYTES, place * (off_t)SEGMENT_BYTES),
		 SEGMENT_BYTES);
}

/* Whoever writes to the disk has images that were true once, each record with a valid tag. Those with the
 * same length and owner, in the same segment and place, are refused all the same, also by a successor. */
TEST(an_older_image_and_one_of_another_place_are_errors_and_never_bytes)
{
	struct log_config one = config(test_dir());
	struct log *log = make(&one), *next;
	static uint64_t old[2000], now[2000];
	char *images = test_pages(pages_of_bytes(3 * SEGMENT_BYTES)), page[PAGE_BYTES];
	char *first = images + SEGMENT_BYTES, *second = first + SEGMENT_BYTES;

	put(log, NOISE, 1, 2000, old); /* some segments, and all records of one length */
	move_all(log);
	read_place(log, 0, images);
	drop(log, old, 2000);
	put(log, NOISE, 1, 2000, now);
	move_all(log);
	CHECK_EQ(now[0], old[0]);
	check(log, NOISE, 1, 2000, now);
	read_place(log, 0, first);
	read_place(log, 1, second);
	CHECK(memcmp(images, first, SEGMENT_BYTES) != 0);
	write_place(log, 0, images);
	CHECK_EQ(log_get(log, now[0], page), -EBADMSG);
	next = successor(log);
	for (size_t i = 0; i < 2000; i++)
		CHECK_OK(log_mark_used(next, now[i]));
	log_recovered(next);
	CHECK_EQ(log_get(next, now[0], page), -EBADMSG);
	write_place(next, 0, second);
	write_place(next, 1, first);
	CHECK_EQ(log_get(next, now[0], page), -EBADMSG);
	CHECK_EQ(log_get(next, now[600], page), -EBADMSG);
	write_place(next, 0, first);
	write_place(next, 1, second);
	check(next, NOISE, 1, 2000, now);
	log_destroy(next);
	log_destroy(log);
}

TEST(a_flipped_bit_in_the_ram_tier_is_an_error_or_a_page_that_its_hash_refuses)
{
	struct log_config one = config(NULL);
	struct log *log;
	uint64_t slot;
	char page[PAGE_BYTES], *record;

	one.disk_max_bytes = 0;
	log = make(&one);
	put(log, TEXT, 1, 1, &slot);
	CHECK_OK(log_memory_of(log, slot_segment(slot), &record));
	record += slot_granule(slot) << GRANULE_SHIFT;
	for (size_t bit = 0; bit < 24 * 8; bit++) { /* the header: lengths and codec */
		int rc;

		record[bit / 8] ^= (char)(1 << bit % 8);
		rc = log_get(log, slot, page);
		CHECK(rc == 0 || rc == -EBADMSG);
		record[bit / 8] ^= (char)(1 << bit % 8);
	}
	check(log, TEXT, 1, 1, &slot);
	log_destroy(log);
}

static bool nobody(void *context, uint64_t owner, uint64_t from_idx, uint64_t to_idx)
{
	(void)context, (void)owner, (void)from_idx, (void)to_idx;
	return false;
}

/* Memory that a hardware error took away gives SIGBUS, as memory behind the end of a file does. */
static void lose_ram_from(struct log *log, uint64_t offset_bytes)
{
	CHECK_OK(ftruncate(log->ram.fd, (off_t)offset_bytes));
}

static void replace_ram(struct log *log)
{
	CHECK_OK(ftruncate(log->ram.fd, (off_t)(SEGMENTS_MAX * SEGMENT_BYTES)));
}

/* Of the first segment, what lies in its first pages is there yet. */
TEST(lost_memory_of_the_ram_tier_is_an_error_for_its_pages_and_for_no_others)
{
	struct log_config one = config(test_dir());
	struct log *log = make(&one);
	static uint64_t slots[N];
	char page[PAGE_BYTES];
	size_t lost_n = 0, i = 0;

	put(log, TEXT, 1, N, slots);
	lose_ram_from(log, 4 * PAGE_BYTES);
	for (; (uint64_t)(slot_granule(slots[i]) << GRANULE_SHIFT) + RECORD_BYTES_MAX < 4 * PAGE_BYTES; i++)
		check(log, TEXT, 1 + i, 1, &slots[i]);
	CHECK(i > 0);
	for (size_t k = i; k < N; k++)
		lost_n += log_get(log, slots[k], page) == -EIO;
	CHECK(lost_n >= N - i - 5); /* a record may end before that length */
	CHECK(log_compact_step(log, nobody, NULL) == false);
	move_all(log); /* what is there is on disk now */
	check(log, TEXT, 1, i, slots);
	replace_ram(log);
	for (size_t k = N - 10; k < N; k++)
		CHECK(log_get(log, slots[k], page) != 0);
	put(log, TEXT, 1 + N, 1, slots);
	check(log, TEXT, 1 + N, 1, slots);
	log_destroy(log);
}

TEST(a_page_that_cannot_be_stored_in_lost_memory_is_an_error_and_the_next_goes_elsewhere)
{
	struct log_config one = config(test_dir());
	struct log *log = make(&one);
	struct error err = { 0 };
	uint64_t slots[3];

	for (enum sort sort = TEXT; sort <= NOISE; sort++) {
		put(log, sort, 1, 1, slots);
		lose_ram_from(log, 0);
		CHECK_EQ(try_put(log, 0, sort, 2, 1, &slots[1], &err), 0);
		CHECK_EQ(err.code, EIO);
		replace_ram(log);
		put(log, sort, 2, 1, &slots[1]);
		check(log, sort, 2, 1, &slots[1]);
		CHECK(slot_segment(slots[0]) != slot_segment(slots[1]));
	}
	log_destroy(log);
}

static void touch(void *argument)
{
	(void)*(volatile char *)argument;
}

/* It ends the process as it would have done before. */
TEST(a_bus_error_elsewhere_is_nobody_elses)
{
	struct log_config one = config(test_dir());
	struct log *log;
	int status;
	pid_t pid;

	signal(SIGBUS, SIG_DFL); /* a sanitizer may have one of its own */
	log = make(&one);
	for (int sent = 0; sent < 2; sent++) {
		pid = fork();
		if (pid == 0) {
			int fd = memfd_create("empty", MFD_CLOEXEC);
			void *at = mmap(NULL, PAGE_BYTES, PROT_READ, MAP_SHARED, fd, 0);

			if (memory_try(touch, at)) /* still able to survive one */
				_exit(3);
			if (sent)
				raise(SIGBUS);
			else
				touch(at);
			_exit(4);
		}
		waitpid(pid, &status, 0);
		CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGBUS);
	}
	log_destroy(log);
}

/* The kernel announces a hardware error in memory that is mapped, before anybody touches it, where
 * vm.memory_failure_early_kill is set. Who touches it later survives that, too. */
TEST(a_hardware_error_that_is_only_announced_changes_nothing)
{
	struct log_config one = config(test_dir());
	struct log *log;
	int status;
	pid_t pid;

	signal(SIGBUS, SIG_DFL);
	log = make(&one);
	pid = fork();
	if (pid == 0) {
		int fd = memfd_create("empty", MFD_CLOEXEC);
		void *at = mmap(NULL, PAGE_BYTES, PROT_READ, MAP_SHARED, fd, 0);
		siginfo_t announced = { .si_signo = SIGBUS, .si_code = BUS_MCEERR_AO };

		if (syscall(SYS_rt_tgsigqueueinfo, getpid(), gettid(), SIGBUS, &announced))
			_exit(2);
		_exit(memory_try(touch, at) ? 3 : 0);
	}
	waitpid(pid, &status, 0);
	CHECK(WIFEXITED(status));
	CHECK_EQ(WEXITSTATUS(status), 0);
	log_destroy(log);
}

TEST(the_ram_tier_overflows_to_disk)
{
	struct log_config one = config(test_dir());
	struct log *log;
	static uint64_t slots[8 * N];

	one.ram_max_bytes = 8 * MIB;
	log = make(&one);
	put(log, NOISE, 1, 8 * N, slots);
	CHECK(account(log).ram_bytes <= 8 * MIB);
	CHECK(account(log).disk_bytes > 8 * N * PAGE_BYTES - 12 * MIB);
	check(log, NOISE, 1, 8 * N, slots);
	log_destroy(log);
}

TEST(a_full_ram_tier_without_a_disk_says_so)
{
	struct log_config one = config(NULL);
	struct log *log;
	static uint64_t slots[8 * N];
	struct error err = { 0 };
	size_t n;

	one.ram_max_bytes = 10 * MIB;
	one.disk_max_bytes = 0;
	log = make(&one);
	n = try_put(log, 0, NOISE, 1, 8 * N, slots, &err);
	CHECK(n > 4 * N / 3 && n < 2 * N);
	CHECK_EQ(err.code, ENOSPC);
	CHECK_EQ(log->limited_by, LIMITED_BY_RAM_TIER);
	CHECK_CONTAINS(err.message, "RamTierMax=");
	check(log, NOISE, 1, n, slots);
	CHECK(account(log).ram_bytes <= 10 * MIB);
	log_destroy(log);
}

TEST(a_full_disk_tier_says_so)
{
	struct log_config one = config(test_dir());
	struct log *log;
	static uint64_t slots[8 * N];
	struct error err = { 0 };
	size_t n;

	one.ram_max_bytes = 8 * MIB;
	one.disk_max_bytes = 6 * MIB;
	log = make(&one);
	n = try_put(log, 0, NOISE, 1, 8 * N, slots, &err);
	CHECK(n < 8 * N);
	CHECK_EQ(log->limited_by, LIMITED_BY_DISK_TIER);
	CHECK(account(log).disk_bytes <= 6 * MIB);
	check(log, NOISE, 1, n, slots);
	log_destroy(log);
}

TEST(a_spent_write_budget_says_so_and_is_never_exceeded)
{
	struct log_config one = config(test_dir());
	struct log *log;
	static uint64_t slots[8 * N];
	struct error err = { 0 };
	size_t n;

	one.ram_max_bytes = 8 * MIB;
	log = make(&one);
	atomic_store(&log->writes->max_bytes, 5 * MIB);
	n = try_put(log, 0, NOISE, 1, 8 * N, slots, &err);
	CHECK(n < 8 * N);
	CHECK_EQ(log->limited_by, LIMITED_BY_WRITE_BUDGET);
	CHECK(atomic_load(log->writes->written_bytes) <= 5 * MIB);
	check(log, NOISE, 1, n, slots);
	log_destroy(log);
}

TEST(a_full_disk_leaves_the_segment_in_ram)
{
	struct log_config one = config(test_dir());
	struct log *log = make(&one);
	static uint64_t slots[N];
	struct error err = { 0 };

	put(log, NOISE, 1, N, slots);
	log_seal_open(log);
	CHECK_OK(failpoint_arm("store.write=ENOSPC"));
	CHECK_EQ(log_move_oldest(log, UINT32_MAX, &err), -ENOSPC);
	CHECK_EQ(log->limited_by, LIMITED_BY_NO_SPACE);
	CHECK_CONTAINS(err.message, "no space");
	CHECK_EQ(disk_tier_places(log->disk), 0);
	check(log, NOISE, 1, N, slots);
	CHECK_OK(failpoint_arm("store.write=off"));
	move_all(log);
	check(log, NOISE, 1, N, slots);
	log_destroy(log);
}

TEST(no_memory_for_a_segment_is_an_error)
{
	struct log_config one = config(NULL);
	struct log *log;
	uint64_t slot;
	struct error err = { 0 };

	one.disk_max_bytes = 0;
	log = make(&one);
	CHECK_OK(failpoint_arm("store.ram=ENOMEM"));
	CHECK_EQ(try_put(log, 0, TEXT, 1, 1, &slot, &err), 0);
	CHECK_EQ(err.code, ENOMEM);
	CHECK_OK(failpoint_arm("store.ram=off"));
	put(log, TEXT, 1, 1, &slot);
	check(log, TEXT, 1, 1, &slot);
	log_destroy(log);
}

TEST(memory_for_a_segment_is_asked_for_again_when_the_kernel_was_interrupted)
{
	struct log_config one = config(NULL);
	struct log *log;
	uint64_t slot;

	one.disk_max_bytes = 0;
	log = make(&one);
	CHECK_OK(failpoint_arm("store.ram=once:EINTR"));
	put(log, TEXT, 1, 1, &slot);
	check(log, TEXT, 1, 1, &slot);
	log_destroy(log);
}

TEST(a_successor_has_all_that_the_page_map_names_and_gives_back_the_rest)
{
	struct log_config one = config(test_dir());
	struct log *log = make(&one), *next;
	static uint64_t slots[3 * N];
	uint64_t full_bytes;

	put(log, MIXED, 1, N, slots);
	move_all(log);
	put(log, MIXED, 1 + N, N, slots + N);
	put(log, MIXED, 1 + 2 * N, N, slots + 2 * N);
	full_bytes = account(log).ram_bytes;
	next = successor(log);
	for (size_t i = 0; i < 2 * N; i++)
		CHECK_OK(log_mark_used(next, slots[i]));
	CHECK_EQ(log_mark_used(next, slots[0]), -EEXIST);
	CHECK_EQ(log_mark_used(next, slot_of_record(SEGMENTS_MAX - 1, 5)), -ERANGE);
	log_recovered(next);
	check_many(next, MIXED, 1, 2 * N, slots);
	CHECK(account(next).ram_bytes < full_bytes);
	CHECK_EQ(account(next).fill_pages, 2 * N / 3);
	put(next, MIXED, 1 + 2 * N, N, slots + 2 * N);
	check(next, MIXED, 1, 3 * N, slots);
	drop(next, slots, 3 * N);
	log_seal_open(next);
	drop(next, slots, 0);
	CHECK_EQ(account(next).ram_bytes, 0);
	CHECK_EQ(account(next).disk_bytes, 0);
	log_destroy(next);
	log_destroy(log);
}

static struct log *successor_with(struct log *log, const uint64_t *slots, size_t n)
{
	struct log *next = successor(log);

	for (size_t i = 0; i < n; i++)
		CHECK_OK(log_mark_used(next, slots[i]));
	log_recovered(next);
	return next;
}

static void check_each_way(struct log *log, enum sort sort, size_t n, const uint64_t *slots)
{
	check(log, sort, 1, n, slots);
	check_many(log, sort, 1, n, slots);
	for (size_t i = 0; i < n; i++)
		CHECK(is_read_apart(log, sort, slots[i], 1 + i));
}

/* The image that goes to disk ends with its last record in use, and may be the end of the file. A successor
 * knows only where records in use begin, so it takes that last one to be longer than it is. */
TEST(a_successor_reads_the_last_record_on_disk_after_later_ones_were_dropped)
{
	struct log_config one = config(test_dir());
	struct log *log = make(&one), *next;
	static uint64_t slots[40];

	put(log, TEXT, 1, 40, slots);
	drop(log, slots + 7, 33);
	move_all(log);
	next = successor_with(log, slots, 7);
	check_each_way(next, TEXT, 7, slots);
	log_destroy(next);
	log_destroy(log);
}

/* The same of a successor that moves what its predecessor left on RAM. */
TEST(a_successor_moves_a_segment_whose_later_records_were_dropped_and_reads_it)
{
	struct log_config one = config(test_dir());
	struct log *log = make(&one), *next;
	static uint64_t slots[40];

	put(log, TEXT, 1, 40, slots);
	next = successor_with(log, slots, 7);
	move_all(next);
	check_each_way(next, TEXT, 7, slots);
	log_destroy(next);
	log_destroy(log);
}

/* Drop all but every 16th page; what is left is in `slots`. */
static size_t drop_most(struct log *log, uint64_t *slots, size_t n)
{
	for (size_t i = 0; i < n; i++)
		if (i % 16)
			log_drop(log, slots[i]);
	for (size_t i = 0; i < n; i += 16)
		slots[i / 16] = slots[i];
	return (n + 15) / 16;
}

static void check_every_16th(struct log *log, enum sort sort, size_t n, const uint64_t *slots)
{
	for (size_t i = 0; i < n; i++) {
		check(log, sort, 1 + 16 * i, 1, &slots[i]);
		CHECK(is_read_apart(log, sort, slots[i], 1 + 16 * i));
	}
}

static void thin_all(struct log *log)
{
	drop(log, NULL, 0);
	while (log_thin_step(log))
		;
}

static void check_thins(enum sort sort)
{
	struct log_config one = config(test_dir());
	struct log *log = make(&one), *next;
	static uint64_t slots[N];
	uint64_t before_bytes;
	size_t n;

	put(log, sort, 1, N, slots);
	move_all(log);
	thin_all(log);
	before_bytes = account(log).disk_bytes;
	CHECK_EQ(disk_tier_reserved_bytes(log->disk), disk_tier_places(log->disk) * SEGMENT_BYTES);
	n = drop_most(log, slots, N);
	thin_all(log);
	CHECK(account(log).disk_bytes < before_bytes / 2);
	CHECK(account(log).disk_bytes >= n * 1024);
	CHECK(disk_tier_reserved_bytes(log->disk) <= account(log).disk_bytes);
	check_every_16th(log, sort, n, slots);
	next = successor_with(log, slots, n);
	check_every_16th(next, sort, n, slots);
	thin_all(next);
	CHECK(disk_tier_reserved_bytes(next->disk) < before_bytes);
	check_every_16th(next, sort, n, slots);
	drop(next, slots, n);
	CHECK_EQ(disk_tier_reserved_bytes(next->disk), 0);
	CHECK_EQ(account(next).disk_bytes, 0);
	log_destroy(next);
	log_destroy(log);
}

/* Else a VM that writes to most of its pages, and to a few of them never, would take more and more of the
 * disk. */
TEST(blocks_on_disk_that_nothing_uses_are_given_back)
{
	check_thins(NOISE);
	check_thins(TEXT);
}

/* While much comes back at once, page faults want the disk, and what is sparse now is empty soon. */
TEST(blocks_are_given_back_some_time_after_a_segment_has_become_sparse)
{
	struct log_config one = config(test_dir());
	struct log *log = make(&one);
	static uint64_t slots[N];
	uint64_t before_bytes;

	put(log, NOISE, 1, N, slots);
	move_all(log);
	while (log_tend_step(log, nobody, NULL))
		;
	CHECK_EQ(log_tend_wait_ms(log), -1);
	before_bytes = account(log).disk_bytes;
	drop_most(log, slots, N);
	CHECK(atomic_load(&log->thin_from_s) > 0);
	CHECK(log_tend_wait_ms(log) > 0);
	atomic_store(&log->thin_from_s, UINT32_MAX); /* this machine may be slow */
	CHECK(!log_tend_step(log, nobody, NULL));
	CHECK_EQ(account(log).disk_bytes, before_bytes);
	atomic_store(&log->thin_from_s, 1);
	CHECK(log_tend_step(log, nobody, NULL));
	while (log_tend_step(log, nobody, NULL))
		;
	CHECK(account(log).disk_bytes < before_bytes / 2);
	CHECK_EQ(log_tend_wait_ms(log), -1);
	log_destroy(log);
}

/* Its image has blocks for all that was written, zeros included. */
TEST(a_segment_that_was_sparse_when_it_went_to_disk_gives_its_blocks_back)
{
	struct log_config one = config(test_dir());
	struct log *log = make(&one);
	static uint64_t slots[N];
	uint64_t before_bytes;
	size_t n;

	put(log, NOISE, 1, N, slots);
	n = drop_most(log, slots, N);
	atomic_store(&log->thin_from_s, 0);
	move_all(log);
	before_bytes = account(log).disk_bytes;
	CHECK(log_tend_wait_ms(log) > 0);
	thin_all(log);
	CHECK(account(log).disk_bytes < before_bytes / 2);
	check_every_16th(log, NOISE, n, slots);
	log_destroy(log);
}

static void *thin_once(void *log)
{
	CHECK(log_thin_step(log));
	return NULL;
}

/* Whoever needs room gives blocks back, too: the tender does not see that segment meanwhile. */
TEST(a_segment_that_becomes_sparse_again_while_another_thread_has_it_is_not_forgotten)
{
	struct log_config one = config(test_dir());
	struct log *log = make(&one);
	static uint64_t slots[400];
	uint64_t hits = failpoint_hits("store.punch");
	pthread_t thread;
	size_t n;

	put(log, NOISE, 1, 400, slots); /* one segment */
	move_all(log);
	while (log_tend_step(log, nobody, NULL))
		;
	n = drop_most(log, slots, 400);
	CHECK_OK(failpoint_arm("store.punch=stall"));
	CHECK_OK(pthread_create(&thread, NULL, thin_once, log));
	while (failpoint_hits("store.punch") == hits)
		sched_yield();
	drop(log, slots, n - 1);
	atomic_store(&log->thin_from_s, 1); /* it is time */
	while (log_tend_step(log, nobody, NULL))
		;
	CHECK_OK(failpoint_arm("store.punch=off"));
	CHECK_OK(pthread_join(thread, NULL));
	CHECK(log_tend_wait_ms(log) > 0);
	CHECK(log_thin_step(log));
	check(log, NOISE, 1 + 16 * (n - 1), 1, &slots[n - 1]);
	log_destroy(log);
}

TEST(a_disk_that_cannot_punch_keeps_its_blocks)
{
	struct log_config one = config(test_dir());
	struct log *log = make(&one);
	static uint64_t slots[N];
	size_t n;

	CHECK_OK(failpoint_arm("store.punch=EOPNOTSUPP"));
	put(log, NOISE, 1, N, slots);
	move_all(log);
	n = drop_most(log, slots, N);
	thin_all(log);
	CHECK_EQ(disk_tier_reserved_bytes(log->disk), disk_tier_places(log->disk) * SEGMENT_BYTES);
	check_every_16th(log, NOISE, n, slots);
	log_destroy(log);
}

/* DiskTierMax= counts what has blocks. */
TEST(what_was_given_back_makes_room_below_the_limit)
{
	struct log_config one = config(test_dir());
	static uint64_t slots[N], more[N];
	struct log *log;
	size_t n;

	one.disk_max_bytes = 10 * MIB;
	one.ram_max_bytes = 0;
	log = make(&one);
	put(log, NOISE, 1, N, slots);
	move_all(log);
	n = drop_most(log, slots, N);
	put(log, NOISE, 1, N, more); /* what needs room does not wait until blocks are given back */
	move_all(log);
	check_every_16th(log, NOISE, n, slots);
	check(log, NOISE, 1, N, more);
	log_destroy(log);
}

/* systemd kept all but one of the fds. Nothing may be given up for lost: the next try may have it. */
static void refuses_without(struct log *log, bool disk, bool key, const char *what)
{
	struct log_config config = { .segments_fd = log->segments.fd,
				     .ram_fd = log->ram.fd,
				     .disk_fd = disk ? disk_tier_fd(log->disk) : -1,
				     .key_fd = key ? seal_fd(log->seal) : -1,
				     .compress = true,
				     .encrypt = true,
				     .ram_max_bytes = 1024 * MIB,
				     .disk_max_bytes = 1024 * MIB };
	struct error err = { 0 };
	struct log *next;

	CHECK_EQ(log_create(&config, &next, &err), -ENODEV);
	CHECK_CONTAINS(err.message, what);
}

TEST(a_successor_that_was_not_given_the_disk_or_the_key_changes_nothing)
{
	struct log_config one = config(test_dir());
	struct log *log = make(&one), *next, *third;
	static uint64_t slots[40];

	put(log, TEXT, 1, 40, slots);
	move_all(log);
	refuses_without(log, false, true, "the file on disk");
	refuses_without(log, true, false, "the key");
	next = successor_with(log, slots, 40);
	check_each_way(next, TEXT, 40, slots);
	refuses_without(next, false, true, "the file on disk");
	refuses_without(next, true, false, "the key");
	third = successor_with(next, slots, 40);
	check_each_way(third, TEXT, 40, slots);
	log_destroy(third);
	log_destroy(next);
	log_destroy(log);
}

/* What is on disk was never encrypted: there is no key that could be missing. */
TEST(a_successor_without_encryption_needs_no_key)
{
	struct log_config one = config(test_dir());
	struct log *log, *next;
	static uint64_t slots[40];

	one.encrypt = false;
	log = make(&one);
	put(log, TEXT, 1, 40, slots);
	move_all(log);
	next = successor_with(log, slots, 40);
	check_each_way(next, TEXT, 40, slots);
	log_destroy(next);
	log_destroy(log);
}

TEST(a_successor_gives_back_what_open_segments_had_not_used)
{
	struct log_config one = config(NULL);
	static uint64_t slots[10];
	struct log *log, *next;

	one.disk_max_bytes = 0;
	log = make(&one);
	put(log, TEXT, 1, 10, slots);
	CHECK_EQ(account(log).ram_bytes, SEGMENT_BYTES);
	next = successor(log);
	for (size_t i = 0; i < 10; i++)
		CHECK_OK(log_mark_used(next, slots[i]));
	log_recovered(next);
	CHECK(account(next).ram_bytes <= 12 * PAGE_BYTES);
	check(next, TEXT, 1, 10, slots);
	log_destroy(next);
	log_destroy(log);
}

/* What a successor made besides, nobody keeps for its own successor. */
TEST(a_successor_makes_no_disk_tier_of_its_own)
{
	struct log_config one = config(NULL), two;
	struct log *log, *next;
	static uint64_t slots[N];
	struct error err = { 0 };

	one.disk_max_bytes = 0;
	log = make(&one);
	put(log, TEXT, 1, N, slots);
	two = config(test_dir());
	two.segments_fd = log->segments.fd;
	two.ram_fd = log->ram.fd;
	next = make(&two);
	for (size_t i = 0; i < N; i++)
		CHECK_OK(log_mark_used(next, slots[i]));
	log_recovered(next);
	CHECK(!next->disk);
	CHECK(!next->seal);
	CHECK_EQ(log_move_oldest(next, UINT32_MAX, &err), -ENOSPC);
	check(next, TEXT, 1, N, slots);
	log_destroy(next);
	log_destroy(log);
}

/* Bits of the records that a segment had before would cut those that follow short: they could not be read
 * from disk. The monitor locks its memory, where MADV_DONTNEED fails. */
TEST(a_segment_that_is_used_again_in_locked_memory_has_no_records_of_before)
{
	struct log_config one = config(test_dir());
	static uint64_t slots[N];
	struct log *log;

	CHECK_SYS(mlockall(MCL_FUTURE | MCL_ONFAULT));
	log = make(&one);
	for (uint64_t use = 0; use < 3; use++) {
		for (size_t i = 0; i < N; i++) {
			char page[PAGE_BYTES] = { 0 };
			struct page_to_put put = { .page = page, .owner = i };
			struct error err = { 0 };

			test_fill_page(page, i);
			memset(page + 200 + 300 * use, 0, PAGE_BYTES - 200 - 300 * use);
			CHECK_EQ(log_put(log, 0, &put, 1, &err), 1);
			slots[i] = put.slot_idx;
		}
		move_all(log);
		for (size_t i = 0; i < N; i++) {
			char page[PAGE_BYTES];

			CHECK_OK(log_get(log, slots[i], page));
		}
		drop(log, slots, N);
	}
	log_destroy(log);
	munlockall();
}

/* In a long run of pages that do not compress, only every fourth is tried. */
TEST(a_long_run_of_pages_that_do_not_compress_ends_soon_after_the_first_that_does)
{
	struct log_config one = config(test_dir());
	struct log *log = make(&one);
	static uint64_t slots[300];

	put(log, NOISE, 1, 33, slots);
	put(log, TEXT, 34, 100, slots + 33);
	CHECK_EQ(account(log).raw_records, 33 + 3);
	put(log, MIXED, 134, 166, slots + 133); /* no long run */
	CHECK_EQ(account(log).raw_records, 33 + 3 + 166 / 3);
	check(log, NOISE, 1, 33, slots);
	check(log, TEXT, 34, 100, slots + 33);
	check(log, MIXED, 134, 166, slots + 133);
	log_destroy(log);
}

/* While segments move to disk as they are filled, a few places in RAM are used again and again, and no more
 * than RamTierMax= allows. The rest of their memory is released at the end of the job. */
TEST(places_in_ram_are_used_again)
{
	struct log_config one = config(test_dir());
	struct log *log, *next;
	static uint64_t slots[16 * N];

	one.ram_max_bytes = 8 * MIB;
	log = make(&one);
	put(log, MIXED, 1, 16 * N, slots);
	CHECK(log->segments.known_n > 8);
	CHECK(log->ram.free_from_idx <= 4);
	CHECK(account(log).ram_bytes <= 8 * MIB);
	check(log, MIXED, 1, 16 * N, slots);
	next = successor(log);
	for (size_t i = 0; i < 16 * N; i++)
		CHECK_OK(log_mark_used(next, slots[i]));
	log_recovered(next);
	check(next, MIXED, 1, 16 * N, slots);
	move_all(next);
	CHECK_EQ(account(next).ram_bytes, 0);
	CHECK_EQ(ram_tier_has_spare(&next->ram), false);
	check(next, MIXED, 1, 16 * N, slots);
	log_destroy(next);
	log_destroy(log);
}

TEST(the_end_of_a_job_releases_places_that_were_kept)
{
	struct log_config one = config(test_dir());
	struct log *log;
	static uint64_t slots[8 * N];
	struct error err = { 0 };

	log = make(&one);
	put(log, NOISE, 1, 8 * N, slots);
	CHECK_OK(log_move_oldest(log, UINT32_MAX, &err));
	CHECK(ram_tier_has_spare(&log->ram));
	CHECK_EQ(log->images.kept_n, 1);
	log_seal_open(log);
	CHECK(!ram_tier_has_spare(&log->ram));
	CHECK_EQ(log->images.kept_n, 0);
	CHECK_OK(log_move_oldest(log, UINT32_MAX, &err)); /* no job runs: nothing is kept */
	CHECK(!ram_tier_has_spare(&log->ram));
	CHECK_EQ(log->images.kept_n, 0);
	CHECK(account(log).ram_bytes <= log->segments.ram_n * SEGMENT_BYTES);
	log_destroy(log);
}

/* The kernel needs longer to clear and unmap 2 MiB than to read them. */
TEST(reads_of_a_long_job_use_their_buffers_again)
{
	struct log_config one = config(test_dir());
	struct log *log = make(&one);
	uint64_t slots[N];
	char *buffer;

	put(log, NOISE, 1, N, slots);
	move_all(log);
	images_keep(&log->images, true);
	check_many(log, NOISE, 1, N, slots);
	CHECK_EQ(log->images.kept_n, 1);
	buffer = log->images.kept[0];
	check_many(log, NOISE, 1, N, slots);
	CHECK_EQ(log->images.kept_n, 1);
	CHECK(log->images.kept[0] == buffer);
	images_keep(&log->images, false);
	check_many(log, NOISE, 1, N, slots);
	CHECK_EQ(log->images.kept_n, 0);
	log_destroy(log);
}

/* A place that was trimmed lacks memory, and writing there could end in SIGBUS: it is no spare. */
TEST(a_trimmed_place_is_not_used_again_as_it_is)
{
	struct log_config one = config(test_dir());
	struct log *log = make(&one);
	static uint64_t slots[2 * N];
	struct error err = { 0 };

	put(log, TEXT, 1, 100, slots);
	log_seal_open(log);
	put(log, TEXT, 1, 1, slots + 100); /* a job runs */
	CHECK_OK(log_move_oldest(log, UINT32_MAX, &err));
	CHECK(!ram_tier_has_spare(&log->ram));
	log_destroy(log);
}

static bool disk_has(struct log *log, const char *bytes, size_t n)
{
	static _Alignas(4096) char image[SEGMENT_BYTES]; /* O_DIRECT */
	bool found = false;

	for (off_t at = 0; !found && pread(disk_tier_fd(log->disk), image, sizeof image, at) > 0;
	     at += (off_t)sizeof image)
		found = memmem(image, sizeof image, bytes, n) != NULL;
	return found;
}

/* The image that one segment was written from is used for the next: nothing of the first must be in it. */
TEST(what_was_dropped_is_not_written_with_another_segment)
{
	struct log_config one = config(test_dir());
	static uint64_t slots[N];
	char page[PAGE_BYTES];
	struct error err = { 0 };
	struct log *log;

	one.encrypt = false;
	log = make(&one);
	put(log, NOISE, 1, N, slots);
	CHECK_OK(log_move_oldest(log, UINT32_MAX, &err));
	CHECK_EQ(log->images.kept_n, 1);
	make_page(page, NOISE, 101);
	CHECK(disk_has(log, page, 64));
	drop(log, slots, N);
	put(log, NOISE, 10001, N, slots);
	for (size_t i = 0; i < N; i += 2)
		log_drop(log, slots[i]);
	while (!log_move_oldest(log, UINT32_MAX, &err))
		;
	for (uint64_t seed = 1; seed < 500; seed += 7) {
		make_page(page, NOISE, seed);
		CHECK(!disk_has(log, page, 64));
	}
	make_page(page, NOISE, 10001 + 100); /* dropped before it moved */
	CHECK(!disk_has(log, page, 64));
	check(log, NOISE, 10002, 1, slots + 1);
	log_destroy(log);
}

/* In the first version of the table a segment's place in RAM was its own number, and 0 was written there. */
TEST(a_table_of_the_first_version_is_taken_over_with_its_memory)
{
	struct log_config one = config(test_dir());
	struct log *log = make(&one), *next;
	static uint64_t slots[3 * N];

	put(log, MIXED, 1, N, slots);
	move_all(log);
	drop(log, slots, N);
	put(log, MIXED, 1, 3 * N, slots);
	for (uint32_t idx = 0; idx < log->segments.known_n; idx++) {
		_Atomic uint64_t *place = &log->segments.entries[idx].place;

		if (place_tier(*place) != TIER_RAM)
			continue;
		CHECK_EQ((uint32_t)*place, idx);
		*place = place_of(TIER_RAM, 0);
	}
	memcpy(log->segments.table->magic, "vmmsseg1", 8);
	next = successor(log);
	for (size_t i = 0; i < 3 * N; i++)
		CHECK_OK(log_mark_used(next, slots[i]));
	log_recovered(next);
	CHECK(memcmp(next->segments.table->magic, "vmmsseg2", 8) == 0);
	check(next, MIXED, 1, 3 * N, slots);
	move_all(next);
	check(next, MIXED, 1, 3 * N, slots);
	log_destroy(next);
	log_destroy(log);
}

TEST(two_segments_at_one_place_in_ram_are_not_both_believed)
{
	struct log_config one = config(test_dir());
	struct log *log = make(&one), *next;
	static uint64_t slots[3 * N];
	char page[PAGE_BYTES];
	uint32_t second;

	put(log, NOISE, 1, 3 * N, slots);
	second = slot_segment(slots[3 * N - 1]);
	CHECK(second > 0);
	log->segments.entries[second].place = log->segments.entries[0].place;
	next = successor(log);
	for (size_t i = 0; i < 3 * N; i++)
		CHECK_OK(log_mark_used(next, slots[i]));
	log_recovered(next);
	for (size_t i = 0; i < 3 * N; i++)
		if (slot_segment(slots[i]) == second)
			CHECK_EQ(log_get(next, slots[i], page), -EIO);
		else
			check(next, NOISE, 1 + i, 1, &slots[i]);
	log_destroy(next);
	log_destroy(log);
}

static bool relocate(void *context, uint64_t owner, uint64_t from_idx, uint64_t to_idx)
{
	uint64_t *slots = context;

	if (slots[owner - 1] != from_idx)
		return false;
	slots[owner - 1] = to_idx;
	return true;
}

TEST(compaction_gives_memory_back_and_tells_where_the_pages_are)
{
	struct log_config one = config(NULL);
	static uint64_t slots[4 * N], left[N];
	struct log *log;
	uint64_t before;
	size_t left_n = 0;

	one.disk_max_bytes = 0;
	log = make(&one);
	put(log, TEXT, 1, 4 * N, slots);
	for (size_t i = 0; i < 4 * N; i++) {
		if (i % 8)
			log_drop(log, slots[i]);
		else
			left[left_n++] = i;
	}
	log_seal_open(log);
	before = account(log).ram_bytes;
	while (log_compact_step(log, relocate, slots))
		while (log_tidy_step(log))
			;
	CHECK(account(log).ram_bytes < before / 2);
	CHECK(log->compacted_segments > 0);
	for (size_t i = 0; i < left_n; i++)
		check(log, TEXT, 1 + left[i], 1, &slots[left[i]]);
	log_destroy(log);
}

static bool refuse(void *context, uint64_t owner, uint64_t from_idx, uint64_t to_idx)
{
	(void)context, (void)owner, (void)from_idx, (void)to_idx;
	return false;
}

TEST(a_page_that_cannot_be_told_stays_where_it_is)
{
	struct log_config one = config(NULL);
	static uint64_t slots[N];
	struct log *log;
	struct log_account before;

	one.disk_max_bytes = 0;
	log = make(&one);
	put(log, TEXT, 1, N, slots);
	log_seal_open(log);
	for (size_t i = 1; i < N; i++)
		log_drop(log, slots[i]);
	before = account(log);
	log_compact_step(log, refuse, NULL);
	CHECK_EQ(account(log).records, before.records);
	check(log, TEXT, 1, 1, slots);
	log_destroy(log);
}

TEST(a_slot_that_is_dropped_twice_ends_the_process)
{
	struct log_config one = config(NULL);
	struct log *log;
	uint64_t slot;
	int status;
	pid_t pid;

	one.disk_max_bytes = 0;
	log = make(&one);
	put(log, TEXT, 1, 1, &slot);
	log_drop(log, slot);
	pid = fork();
	if (pid == 0) {
		signal(SIGABRT, SIG_DFL);
		log_drop(log, slot);
		_exit(0);
	}
	waitpid(pid, &status, 0);
	CHECK(!(WIFEXITED(status) && WEXITSTATUS(status) == 0));
	log_destroy(log);
}

/* --- bits that flip in the table of segments */

#define FLIP_PAGES 700

/* A process dies with pages in RAM and on disk, and a bit of the table flips: its successor refuses, or each
 * page is right or an error. */
static void flip_and_recover(const char *dir, size_t byte, unsigned bit)
{
	struct log_config one = config(dir);
	uint64_t slots[FLIP_PAGES];
	char page[PAGE_BYTES], want[PAGE_BYTES], flipped;
	struct log *log = make(&one), *next;
	bool refused = false;
	struct log_config two;
	struct error err;

	put(log, TEXT, 1, FLIP_PAGES / 2, slots);
	move_all(log);
	put(log, TEXT, 1 + FLIP_PAGES / 2, FLIP_PAGES - FLIP_PAGES / 2, slots + FLIP_PAGES / 2);
	CHECK_EQ(pread(log->segments.fd, &flipped, 1, (off_t)byte), 1);
	flipped ^= (char)(1 << bit);
	CHECK_EQ(pwrite(log->segments.fd, &flipped, 1, (off_t)byte), 1);
	two = (struct log_config){ .segments_fd = log->segments.fd,
				   .ram_fd = log->ram.fd,
				   .disk_fd = disk_tier_fd(log->disk),
				   .key_fd = seal_fd(log->seal),
				   .compress = true,
				   .ram_max_bytes = 1024 * MIB,
				   .disk_max_bytes = 1024 * MIB };
	if (log_create(&two, &next, &err)) {
		CHECK(err.message[0]);
		log_destroy(log);
		return;
	}
	for (size_t i = 0; i < FLIP_PAGES && !refused; i++)
		refused = log_mark_used(next, slots[i]) != 0;
	if (!refused) {
		log_recovered(next);
		for (size_t i = 0; i < FLIP_PAGES; i++) {
			int rc = log_get(next, slots[i], page);

			make_page(want, TEXT, 1 + i);
			CHECK(rc < 0 || memcmp(page, want, PAGE_BYTES) == 0);
		}
		put(next, TEXT, 1, 300, slots); /* and it goes on */
		check(next, TEXT, 1, 300, slots);
		log_seal_open(next);
		while (!log_move_oldest(next, UINT32_MAX, &err))
			;
		check(next, TEXT, 1, 300, slots);
	}
	log_destroy(next);
	log_destroy(log);
}

TEST(a_flipped_bit_of_the_segment_table_is_an_error_or_a_refusal)
{
	const char *dir = test_dir();
	size_t entries = offsetof(struct segments_table, entries);

	for (unsigned bit = 0; bit < 12 * 8; bit++) /* the magic, and how many segments there are */
		flip_and_recover(dir, bit / 8, bit % 8);
	for (size_t segment = 0; segment < 2; segment++)
		for (size_t byte = 0; byte < sizeof(struct segment_entry); byte++)
			flip_and_recover(dir, entries + segment * sizeof(struct segment_entry) + byte,
					 (unsigned)byte * 3 % 8);
	for (unsigned bit = 0; bit < 8; bit++) /* where each segment is */
		for (size_t byte = 0; byte < 8; byte += 7) {
			flip_and_recover(dir, entries + byte, bit);
			flip_and_recover(dir, entries + sizeof(struct segment_entry) + byte, bit);
		}
}

/* While it runs, too: the length of what is written to disk is not taken from the table. */
TEST(a_flipped_bit_of_a_length_reaches_no_other_segment_on_disk)
{
	for (unsigned bit = 0; bit < 32; bit++) {
		struct log_config one = config(test_dir());
		struct log *log = make(&one);
		static uint64_t slots[2 * N];

		put(log, TEXT, 1, 2 * N, slots);
		log_seal_open(log);
		log->segments.entries[0].used_granules ^= 1u << bit;
		move_all(log);
		for (size_t i = 0; i < 2 * N; i++) {
			char page[PAGE_BYTES], want[PAGE_BYTES];
			int rc = log_get(log, slots[i], page);

			make_page(want, TEXT, 1 + i);
			CHECK(slot_segment(slots[i]) == 0 && rc ? rc < 0 : !rc);
			CHECK(rc || memcmp(page, want, PAGE_BYTES) == 0);
		}
		log_destroy(log);
	}
}

/* --- memory and disks that are too small */

static int small_tmpfs(const char *size)
{
	char dir[] = "/tmp/vmmswap-tmpfs-XXXXXX", options[64];
	int fd;

	if (unshare(CLONE_NEWNS) || mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL))
		test_skip("no mount namespace: %s", strerror(errno));
	snprintf(options, sizeof options, "size=%s", size);
	CHECK(mkdtemp(dir) != NULL);
	CHECK_OK(mount("none", dir, "tmpfs", 0, options));
	fd = (int)CHECK_SYS(open(dir, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600));
	CHECK_OK(umount2(dir, MNT_DETACH));
	CHECK_OK(rmdir(dir));
	return fd;
}

/* The file that holds the RAM tier is full: older segments go to disk, and every page is put. */
TEST(a_full_ram_tier_goes_to_disk)
{
	struct log_config one = config(test_dir());
	static uint64_t slots[4 * N];
	struct log *log;

	one.ram_fd = small_tmpfs("7m");
	CHECK_OK(ftruncate(one.ram_fd, (off_t)(SEGMENTS_MAX * SEGMENT_BYTES)));
	log = make(&one);
	put(log, MIXED, 1, 4 * N, slots);
	CHECK(account(log).disk_bytes > 0);
	CHECK(account(log).ram_bytes <= 7 * MIB);
	check(log, MIXED, 1, 4 * N, slots);
	log_destroy(log);
	close(one.ram_fd);
}

/* Without a disk a put fails, with nothing changed, and works again once there is room. */
TEST(a_full_ram_tier_without_a_disk_stops)
{
	struct log_config one = config(NULL);
	static uint64_t slots[8 * N];
	struct error err = { 0 };
	struct log *log;
	size_t n;

	one.disk_max_bytes = 0;
	one.ram_fd = small_tmpfs("7m");
	CHECK_OK(ftruncate(one.ram_fd, (off_t)(SEGMENTS_MAX * SEGMENT_BYTES)));
	log = make(&one);
	n = try_put(log, 0, TEXT, 1, 8 * N, slots, &err);
	CHECK(n > 0 && n < 8 * N);
	CHECK_EQ(err.code, ENOMEM);
	CHECK_EQ(log->limited_by, LIMITED_BY_RAM_TIER);
	CHECK_CONTAINS(err.message, "RamTierMax=");
	check(log, TEXT, 1, n, slots);
	drop(log, slots, n);
	log_seal_open(log);
	drop(log, slots, 0);
	put(log, TEXT, 1, N, slots);
	check(log, TEXT, 1, N, slots);
	log_destroy(log);
	close(one.ram_fd);
}

/* Neither RAM nor disk has room: it stops, all that was put is served, and no place on disk is lost. */
TEST(a_full_disk_behind_a_full_ram_tier_stops)
{
	struct log_config one = config(NULL);
	static uint64_t slots[8 * N];
	struct error err = { 0 };
	struct log *log;
	size_t n;

	one.ram_max_bytes = 8 * MIB;
	one.disk_fd = small_tmpfs("9m");
	log = make(&one);
	n = try_put(log, 0, NOISE, 1, 8 * N, slots, &err);
	CHECK(n > 2 * N && n < 8 * N);
	CHECK_EQ(err.code, ENOSPC);
	CHECK_EQ(log->limited_by, LIMITED_BY_NO_SPACE);
	check(log, NOISE, 1, n, slots);
	drop(log, slots, n);
	log_seal_open(log);
	drop(log, slots, 0);
	CHECK_EQ(account(log).ram_bytes, 0);
	CHECK_EQ(account(log).disk_bytes, 0);
	log_destroy(log);
	close(one.disk_fd);
}

/* On RAM alone, pages that do not compress would take more there than they free: it stops early, and goes on
 * with pages that do. */
TEST(what_frees_too_little_stops_where_there_is_no_disk)
{
	struct log_config one = config(NULL);
	static uint64_t slots[12 * N];
	struct error err = { 0 };
	struct log *log;
	size_t n;

	one.disk_max_bytes = 0;
	log = make(&one);
	n = try_put(log, 0, NOISE, 1, 10 * N, slots, &err);
	CHECK(n < 10 * N);
	CHECK_EQ(err.code, ENOSPC);
	CHECK_CONTAINS(err.message, "do not compress");
	CHECK_EQ(log->limited_by, LIMITED_BY_RAM_TIER);
	CHECK(account(log).ram_bytes <= 18 * MIB);
	put(log, TEXT, 1, N, slots + n);
	check(log, NOISE, 1, n, slots);
	check(log, TEXT, 1, N, slots + n);
	log_destroy(log);
}

/* Each writer has opened a segment of each kind, and there is little in them yet. */
TEST(segments_just_opened_are_no_sign_of_pages_that_do_not_compress)
{
	struct log_config one = config(NULL);
	struct error err = { 0 };
	uint64_t slots[2];
	struct log *log;

	one.disk_max_bytes = 0;
	log = make(&one);
	for (size_t writer = 0; writer < LOG_COMPACTOR; writer++) {
		CHECK_EQ(try_put(log, writer, TEXT, 1, 1, &slots[0], &err), 1);
		CHECK_EQ(try_put(log, writer, NOISE, 1, 1, &slots[1], &err), 1);
	}
	CHECK_EQ(log->limited_by, LIMITED_BY_NOTHING);
	log_destroy(log);
}

/* Little memory is left: what is in RAM goes to disk first, and nothing is taken where that does not help. */
TEST(where_little_memory_is_left_none_is_taken)
{
	struct log_config one = config(test_dir());
	static uint64_t slots[N];
	struct error err = { 0 };
	struct log *log = make(&one);

	put(log, TEXT, 1, N, slots);
	log_seal_open(log);
	CHECK_OK(failpoint_arm("store.headroom=ENOMEM"));
	log->allowed_segments = 0;
	CHECK(try_put(log, 1, TEXT, 1, 1, slots, &err) == 0);
	CHECK_EQ(err.code, ENOMEM);
	CHECK_CONTAINS(err.message, "MemoryMax=");
	CHECK_EQ(log->limited_by, LIMITED_BY_NO_SPACE);
	CHECK(account(log).disk_bytes > 0); /* it tried that */
	CHECK_OK(failpoint_arm("store.headroom=off"));
	put(log, TEXT, 1, 1, slots);
	log_destroy(log);
}

/* ThreadSanitizer's own memory, several times ours, counts in the cgroup, too. */
#if defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define MEMORY_IS_NOT_OURS
#endif
#endif

#ifndef MEMORY_IS_NOT_OURS
/* Runs in a cgroup with so much memory. 0; else what went wrong, or 128 if it was killed. */
static int in_cgroup(uint64_t limit_bytes, int (*run)(void))
{
	char dir[128], path[192], text[32];
	bool is_v1 = access("/sys/fs/cgroup/memory/cgroup.procs", W_OK) == 0;
	int status = -1, fd;
	pid_t pid;

	snprintf(dir, sizeof dir, "/sys/fs/cgroup/%svmmswap-test-%d", is_v1 ? "memory/" : "", getpid());
	if (mkdir(dir, 0755))
		test_skip("no cgroup can be made: %s", strerror(errno));
	snprintf(path, sizeof path, "%s/%s", dir, is_v1 ? "memory.limit_in_bytes" : "memory.max");
	snprintf(text, sizeof text, "%llu", (unsigned long long)limit_bytes);
	fd = open(path, O_WRONLY | O_CLOEXEC);
	if (fd < 0 || write(fd, text, strlen(text)) < 0) {
		rmdir(dir);
		test_skip("no limit can be set in a cgroup: %s", strerror(errno));
	}
	close(fd);
	snprintf(path, sizeof path, "%s/cgroup.procs", dir);
	pid = fork();
	if (pid == 0) {
		fd = open(path, O_WRONLY | O_CLOEXEC);
		_exit(fd < 0 || write(fd, "0", 1) != 1 ? 127 : run());
	}
	waitpid(pid, &status, 0);
	for (int tries = 0; rmdir(dir) && tries < 1000; tries++)
		usleep(1000);
	return WIFEXITED(status) ? WEXITSTATUS(status) : 128;
}

#define GUEST_BYTES (32 * MIB)
#define CGROUP_PAGES (16 * N)

/* A guest that does not compress, whose memory counts in the same cgroup as the RAM tier. */
static int put_beside_guest(void)
{
	struct log_config one = config(test_dir());
	static uint64_t slots[CGROUP_PAGES];
	char *guest = mmap(NULL, GUEST_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	char page[PAGE_BYTES], want[PAGE_BYTES];
	struct error err = { 0 };
	struct log *log = make(&one);
	size_t n;

	memset(guest, 1, GUEST_BYTES);
	n = try_put(log, 0, NOISE, 1, CGROUP_PAGES, slots, &err);
	if (n < CGROUP_PAGES && err.code != ENOMEM)
		return 2;
	for (size_t i = 0; i < n; i++) {
		make_page(want, NOISE, 1 + i);
		if (log_get(log, slots[i], page) || memcmp(page, want, PAGE_BYTES))
			return 3;
	}
	return n == CGROUP_PAGES ? 0 : log->limited_by == LIMITED_BY_NO_SPACE ? 4 : 5;
}

/* 94 MiB of pages through a cgroup that has 28 MiB beside the guest: what there is room for goes through RAM
 * to disk. */
TEST(a_cgroup_too_small_for_guest_and_ram_tier_gets_no_worse)
{
	struct statfs fs;

	CHECK_SYS(statfs(test_dir(), &fs));
	if (fs.f_type == TMPFS_MAGIC)
		test_skip("%s is on tmpfs, whose files count in the same cgroup", test_dir());
	CHECK_EQ(in_cgroup(GUEST_BYTES + 28 * MIB, put_beside_guest), 0);
}

/* Not even enough for one segment on its way: it stops before the kernel kills. */
TEST(a_cgroup_without_room_for_a_segment_stops_the_swap_out)
{
	CHECK_EQ(in_cgroup(GUEST_BYTES + 12 * MIB, put_beside_guest), 4);
}
#endif

/* A thread that was about to release the memory of a segment on disk stopped for long enough that the segment
 * was emptied and taken again: then it released 426 pages of the next swap-out. */
TEST(memory_that_is_being_released_belongs_to_nobody_else)
{
	struct log_config one = config(test_dir());
	static uint64_t slots[300];
	struct log *log = make(&one);
	uint32_t stale_idx, empty_idx;

	put(log, TEXT, 1, 300, slots);
	segments_enter(&log->segments, 0);
	move_all(log);
	CHECK_EQ(log->segments.ram_n, 1); /* somebody is reading it */
	segments_leave(&log->segments, 0);
	CHECK(segments_take_stale(&log->segments, &stale_idx));
	CHECK_EQ(stale_idx, 0);
	for (size_t i = 0; i < 300; i++)
		log_drop(log, slots[i]);
	CHECK(!segments_take_empty(&log->segments, &empty_idx));
	log_release_memory(log, stale_idx);
	segments_unclaim(&log->segments, stale_idx);
	drop(log, slots, 0);
	CHECK_EQ(log->segments.ram_n, 0);
	CHECK_EQ(account(log).ram_bytes, 0);
	CHECK_EQ(account(log).disk_bytes, 0);
	log_destroy(log);
}

/* --- when the tender has to come back */

static void tend(struct log *log)
{
	while (log_tend_step(log, nobody, NULL))
		;
}

TEST(nobody_wakes_up_while_nothing_is_pending)
{
	struct log_config one = config(test_dir());
	static uint64_t slots[N];
	struct log *log;

	one.ram_age_s = 600;
	log = make(&one);
	tend(log);
	CHECK_EQ(log_tend_wait_ms(log), -1); /* nothing is stored */
	put(log, TEXT, 1, N, slots);
	log_seal_open(log);
	tend(log);
	CHECK(log_tend_wait_ms(log) > 300000 && log_tend_wait_ms(log) <= 600000);
	CHECK_EQ(account(log).disk_bytes, 0);
	log->ram_age_s = 0; /* never */
	CHECK_EQ(log_tend_wait_ms(log), -1);
	log_host_is_short(log, true);
	CHECK(log_tend_wait_ms(log) < 1000);
	tend(log);
	CHECK_EQ(account(log).ram_bytes, 0);
	CHECK_EQ(log_tend_wait_ms(log), -1); /* all is on disk */
	check(log, TEXT, 1, N, slots);
	drop(log, slots, N);
	log_destroy(log);
}

TEST(a_move_that_fails_is_tried_again_later)
{
	struct log_config one = config(test_dir());
	static uint64_t slots[N];
	struct log *log;

	log = make(&one);
	put(log, TEXT, 1, N, slots);
	log_seal_open(log);
	log_host_is_short(log, true);
	CHECK_OK(failpoint_arm("store.write=ENOSPC"));
	tend(log);
	CHECK(log_tend_wait_ms(log) > 30000 && log_tend_wait_ms(log) <= 60000);
	CHECK_EQ(log->limited_by, LIMITED_BY_NO_SPACE);
	check(log, TEXT, 1, N, slots);
	CHECK_OK(failpoint_arm("store.write=off"));
	log->move_again_s = 0;
	tend(log);
	CHECK_EQ(account(log).ram_bytes, 0);
	check(log, TEXT, 1, N, slots);
	log_destroy(log);
}

TEST(pages_that_do_not_compress_go_to_disk_at_once)
{
	struct log_config one = config(test_dir());
	static uint64_t slots[2 * N];
	struct log *log;

	log = make(&one);
	put(log, TEXT, 1, N, slots);
	put(log, NOISE, 1, N, slots + N);
	log_seal_open(log);
	CHECK(log_tend_wait_ms(log) < 1000);
	tend(log);
	CHECK_EQ(log_tend_wait_ms(log), -1);
	CHECK(account(log).disk_bytes >= N * PAGE_BYTES);
	CHECK(account(log).ram_bytes > 0);
	check(log, TEXT, 1, N, slots);
	check(log, NOISE, 1, N, slots + N);
	log_destroy(log);
}

/* Without a compactor's bound, a small segment would be copied into another one for ever. */
TEST(small_segments_are_merged_once)
{
	struct log_config one = config(NULL);
	static uint64_t slots[400];
	struct log *log;

	one.disk_max_bytes = 0;
	log = make(&one);
	for (size_t i = 0; i < 400; i += 50) {
		put(log, TEXT, 1 + i, 50, slots + i);
		log_seal_open(log);
	}
	for (size_t steps = 0; log_tend_step(log, relocate, slots); steps++)
		CHECK(steps < 100);
	CHECK_EQ(log->segments.ram_n, 1);
	CHECK(!log_tend_step(log, relocate, slots));
	check(log, TEXT, 1, 400, slots);
	log_destroy(log);
}

/* A page that is poisoned, or whose record names another page since a bit of it flipped, cannot be moved. */
TEST(what_cannot_be_moved_is_not_copied_again_and_again)
{
	struct log_config one = config(NULL);
	static uint64_t slots[N];
	struct log *log;

	one.disk_max_bytes = 0;
	log = make(&one);
	put(log, TEXT, 1, N, slots);
	log_seal_open(log);
	for (size_t i = 0; i < N; i++)
		if (i % 8)
			log_drop(log, slots[i]);
	for (size_t rounds = 0; rounds < 10; rounds++)
		tend(log);
	CHECK_EQ(log_tend_wait_ms(log), -1);
	for (size_t i = 0; i < N; i += 8)
		check(log, TEXT, 1 + i, 1, &slots[i]);
	log_drop(log, slots[0]); /* now it may be possible */
	while (log_tend_step(log, relocate, slots))
		;
	CHECK_EQ(log->segments.ram_n, 1);
	for (size_t i = 8; i < N; i += 8)
		check(log, TEXT, 1 + i, 1, &slots[i]);
	log_destroy(log);
}

TEST(a_full_ram_tier_is_compacted_all_the_same)
{
	struct log_config one = config(NULL);
	static uint64_t slots[8 * N];
	struct error err = { 0 };
	struct log *log;
	size_t n;

	one.disk_max_bytes = 0;
	one.ram_max_bytes = 8 * MIB;
	log = make(&one);
	n = try_put(log, 0, TEXT, 1, 8 * N, slots, &err);
	CHECK(n < 8 * N);
	CHECK_EQ(log->segments.ram_n, 4);
	log_seal_open(log);
	log->limited_by = LIMITED_BY_NOTHING;
	for (size_t i = 0; i < n; i++)
		if (i % 8)
			log_drop(log, slots[i]);
	while (log_tend_step(log, relocate, slots))
		;
	CHECK_EQ(log->segments.ram_n, 1);
	CHECK_EQ(log->limited_by, LIMITED_BY_NOTHING); /* no swap-out was stopped */
	for (size_t i = 0; i < n; i += 8)
		check(log, TEXT, 1 + i, 1, &slots[i]);
	log_destroy(log);
}

/* --- lives: a log and its successors, each of which knows no more than the page map and the tiers' files */

#define LIVES_PAGES 3000
#define LIVES_STEPS 120

struct lives {
	struct log *log;
	uint64_t random;
	uint64_t slots[LIVES_PAGES + 1];    /* of page i; 0: it is not stored */
	uint32_t versions[LIVES_PAGES + 1]; /* of its bytes */
};

static uint64_t lives_random(struct lives *lives, uint64_t below)
{
	lives->random = lives->random * 6364136223846793005u + 1442695040888963407u;
	return (lives->random >> 33) % below;
}

/* Pages that compress to any length, or not at all. */
static void lives_page(const struct lives *lives, uint64_t i, char *page)
{
	uint64_t seed = i + ((uint64_t)lives->versions[i] << 32);
	size_t noise_bytes = (i * 37 + lives->versions[i] * 411) % 5000;

	test_fill_page(page, seed);
	if (noise_bytes < PAGE_BYTES)
		memset(page + noise_bytes, (int)i, PAGE_BYTES - noise_bytes);
}

static void lives_put(struct lives *lives, uint64_t i)
{
	char page[PAGE_BYTES];
	struct page_to_put put = { .page = page, .owner = i };
	struct error err = { 0 };

	if (lives->slots[i])
		return;
	lives->versions[i]++;
	lives_page(lives, i, page);
	if (log_put(lives->log, lives_random(lives, 2), &put, 1, &err) != 1)
		test_fail(__FILE__, __LINE__, "%s", err.message);
	lives->slots[i] = put.slot_idx;
}

static void lives_drop(struct lives *lives, uint64_t i)
{
	if (lives->slots[i])
		log_drop(lives->log, lives->slots[i]);
	lives->slots[i] = 0;
}

static bool lives_relocate(void *context, uint64_t owner, uint64_t from_idx, uint64_t to_idx)
{
	struct lives *lives = context;

	if (lives->slots[owner] != from_idx)
		return false;
	lives->slots[owner] = to_idx;
	return true;
}

static void lives_check(struct lives *lives)
{
	char *pages = test_pages(LIVES_PAGES), want[PAGE_BYTES], one[PAGE_BYTES];
	static uint64_t slots[LIVES_PAGES], owners[LIVES_PAGES];
	static int rc[LIVES_PAGES];
	size_t n = 0;

	for (uint64_t i = 1; i <= LIVES_PAGES; i++) {
		if (!lives->slots[i])
			continue;
		owners[n] = i;
		slots[n++] = lives->slots[i];
	}
	log_get_many(lives->log, slots, n, pages, rc);
	for (size_t k = 0; k < n; k++) {
		CHECK_OK(rc[k]);
		lives_page(lives, owners[k], want);
		CHECK(memcmp(pages + bytes_of_pages(k), want, PAGE_BYTES) == 0);
		CHECK_OK(log_get(lives->log, slots[k], one));
		CHECK(memcmp(one, want, PAGE_BYTES) == 0);
	}
	munmap(pages, bytes_of_pages(LIVES_PAGES));
}

static void lives_succeed(struct lives *lives)
{
	struct log *next = successor(lives->log);

	next->ram_max_bytes = lives->log->ram_max_bytes;
	for (uint64_t i = 1; i <= LIVES_PAGES; i++)
		if (lives->slots[i])
			CHECK_OK(log_mark_used(next, lives->slots[i]));
	log_recovered(next);
	log_destroy(lives->log);
	lives->log = next;
	lives_check(lives);
}

static void lives_step(struct lives *lives)
{
	uint64_t from = 1 + lives_random(lives, LIVES_PAGES), n = 1 + lives_random(lives, 400);
	struct error err = { 0 };

	switch (lives_random(lives, 10)) {
	case 0:
	case 1:
	case 2:
		for (uint64_t i = from; i < from + n && i <= LIVES_PAGES; i++)
			lives_put(lives, i);
		break;
	case 3:
	case 4:
		for (uint64_t i = from; i < from + n && i <= LIVES_PAGES; i++)
			lives_drop(lives, i);
		break;
	case 5: /* here and there */
		for (uint64_t i = 1; i <= LIVES_PAGES; i++)
			if (!lives_random(lives, 3))
				lives_drop(lives, i);
		break;
	case 6:
		log_move_oldest(lives->log, UINT32_MAX, &err);
		break;
	case 7:
		log_compact_step(lives->log, lives_relocate, lives);
		log_thin_step(lives->log);
		break;
	case 8:
		log_seal_open(lives->log);
		while (lives_random(lives, 2) && log_tidy_step(lives->log))
			;
		break;
	case 9:
		lives_succeed(lives);
		break;
	}
}

TEST(whatever_was_done_before_a_successor_reads_every_page)
{
	static struct lives lives;

	for (uint64_t seed = 1; seed <= 4; seed++) {
		struct log_config one = config(test_dir());

		one.ram_max_bytes = seed % 2 ? 2 * MIB : 64 * MIB;
		one.encrypt = seed % 4;
		memset(&lives, 0, sizeof lives);
		lives.random = seed;
		lives.log = make(&one);
		for (size_t step = 0; step < LIVES_STEPS; step++)
			lives_step(&lives);
		lives_succeed(&lives);
		for (uint64_t i = 1; i <= LIVES_PAGES; i++)
			lives_drop(&lives, i);
		log_seal_open(lives.log);
		drop(lives.log, NULL, 0);
		CHECK_EQ(account(lives.log).records, 0);
		CHECK_EQ(account(lives.log).record_bytes, 0);
		CHECK_EQ(account(lives.log).ram_bytes, 0);
		CHECK_EQ(account(lives.log).disk_bytes, 0);
		log_destroy(lives.log);
	}
}

/* --- threads: pages are put, read, dropped, moved and compacted at the same time */

#define SHARED_PAGES 4096

struct world {
	struct log *log;
	_Atomic uint64_t words[SHARED_PAGES]; /* 0: not stored; else slot << 1 | busy */
	_Atomic bool stop;
	_Atomic uint64_t reads, moves, stale;
};

static bool world_relocate(void *context, uint64_t owner, uint64_t from_idx, uint64_t to_idx)
{
	struct world *world = context;
	uint64_t from = from_idx << 1;

	return atomic_compare_exchange_strong(&world->words[owner], &from, to_idx << 1);
}

/* Page `owner` has always the same bytes: whatever slot its word names gives these. */
static void *reader(void *argument)
{
	struct world *world = argument;
	char page[PAGE_BYTES], want[PAGE_BYTES];
	uint64_t x = (uint64_t)(uintptr_t)&page;

	while (!atomic_load(&world->stop)) {
		uint64_t owner = (x = x * 6364136223846793005u + 1442695040888963407u) >> 52, word;
		int rc;

		word = atomic_load(&world->words[owner]);
		if (!word || word & 1)
			continue;
		rc = log_get(world->log, word >> 1, page);
		if (atomic_load(&world->words[owner]) !=
		    word) { /* dropped or moved meanwhile: anything may come */
			atomic_fetch_add(&world->stale, 1);
			continue;
		}
		CHECK_OK(rc);
		make_page(want, MIXED, owner);
		CHECK(memcmp(page, want, PAGE_BYTES) == 0);
		atomic_fetch_add(&world->reads, 1);
	}
	return NULL;
}

struct writer {
	struct world *world;
	size_t idx;
};

static void *writer(void *argument)
{
	struct writer *self = argument;
	struct world *world = self->world;
	char page[PAGE_BYTES];

	for (uint64_t round = 0; !atomic_load(&world->stop); round++) {
		uint64_t owner = (round * 2 + self->idx) % SHARED_PAGES;
		uint64_t word = atomic_load(&world->words[owner]);
		struct page_to_put put = { .page = page, .owner = owner };
		struct error err = { 0 };

		if (word && round % 3) {
			if (atomic_compare_exchange_strong(&world->words[owner], &word, 0))
				log_drop(world->log, word >> 1);
			continue;
		}
		if (word)
			continue;
		make_page(page, MIXED, owner);
		if (log_put(world->log, self->idx, &put, 1, &err) != 1)
			test_fail(__FILE__, __LINE__, "%s", err.message);
		atomic_store(&world->words[owner], put.slot_idx << 1);
	}
	return NULL;
}

static void *tidier(void *argument)
{
	struct world *world = argument;
	struct error err;

	while (!atomic_load(&world->stop)) {
		if (!log_move_oldest(world->log, UINT32_MAX, &err))
			atomic_fetch_add(&world->moves, 1);
		log_compact_step(world->log, world_relocate, world);
		log_thin_step(world->log);
		while (log_tidy_step(world->log))
			;
		sched_yield();
	}
	return NULL;
}

TEST(all_at_once_every_page_is_right)
{
	struct log_config one = config(test_dir());
	static struct world world;
	struct writer writers[2];
	pthread_t threads[6];

	one.ram_max_bytes = 6 * MIB;
	world.log = make(&one);
	for (size_t i = 0; i < 2; i++) {
		writers[i] = (struct writer){ &world, i };
		CHECK_OK(pthread_create(&threads[i], NULL, writer, &writers[i]));
		CHECK_OK(pthread_create(&threads[2 + i], NULL, reader, &world));
		CHECK_OK(pthread_create(&threads[4 + i], NULL, tidier, &world));
	}
	while (atomic_load(&world.reads) < 4000 || atomic_load(&world.moves) < 6)
		usleep(1000);
	atomic_store(&world.stop, true);
	for (size_t i = 0; i < 6; i++)
		CHECK_OK(pthread_join(threads[i], NULL));
	for (size_t i = 0; i < SHARED_PAGES; i++)
		if (world.words[i])
			log_drop(world.log, world.words[i] >> 1);
	log_seal_open(world.log);
	drop(world.log, NULL, 0);
	CHECK_EQ(account(world.log).record_bytes, 0);
	CHECK_EQ(account(world.log).records, 0);
	CHECK_EQ(account(world.log).ram_bytes, 0);
	CHECK_EQ(account(world.log).disk_bytes, 0);
	log_destroy(world.log);
}

struct followed {
	struct log *log;
	_Atomic uint64_t slot; /* the last one that was put; 0: it was dropped */
};

static void *follower(void *argument)
{
	struct followed *followed = argument;

	for (uint64_t dropped = 0; dropped < 20 * N;) {
		uint64_t slot = atomic_exchange(&followed->slot, 0);

		if (!slot) {
			sched_yield();
			continue;
		}
		log_drop(followed->log, slot);
		dropped++;
	}
	return NULL;
}

/* The record of a page that comes back while the next one is packed ends where the next one begins, whatever
 * of that one can be seen. */
TEST(a_record_dropped_while_the_next_is_written_is_counted_once)
{
	struct log_config one = config(NULL);
	struct followed followed = { 0 };
	struct error err = { 0 };
	char page[PAGE_BYTES];
	struct page_to_put put = { .page = page };
	pthread_t thread;

	one.disk_max_bytes = 0;
	followed.log = make(&one);
	make_page(page, TEXT, 7);
	memset(page + 64, 0, PAGE_BYTES - 64);
	CHECK_OK(pthread_create(&thread, NULL, follower, &followed));
	for (size_t i = 0; i < 20 * N; i++) {
		CHECK_EQ(log_put(followed.log, 0, &put, 1, &err), 1);
		while (atomic_load(&followed.slot))
			sched_yield();
		atomic_store(&followed.slot, put.slot_idx);
	}
	CHECK_OK(pthread_join(thread, NULL));
	CHECK_EQ(account(followed.log).records, 0);
	CHECK_EQ(account(followed.log).record_bytes, 0);
	log_destroy(followed.log);
}

/* --- death */

#define DEATH_PAGES (6 * N)

/* A process puts, moves and compacts until it dies at the failpoint; what its page map names then is right
 * for a successor. */
static void die_and_recover(const char *failpoint)
{
	struct log_config one = config(test_dir());
	struct log *log, *next;
	uint64_t *slots = mmap(NULL, DEATH_PAGES * sizeof *slots, PROT_READ | PROT_WRITE,
			       MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	int status;
	pid_t pid;

	one.ram_max_bytes = 4 * MIB;
	log = make(&one);
	pid = fork();
	if (pid == 0) {
		struct error err;

		CHECK_OK(failpoint_arm(failpoint));
		for (size_t i = 0; i < DEATH_PAGES; i++) {
			put(log, MIXED, 1 + i, 1, &slots[i]);
			if (i % 5 == 4) {
				log_drop(log, slots[i]);
				slots[i] = 0;
			}
		}
		log_seal_open(log);
		for (size_t i = 0; i < DEATH_PAGES; i++) {
			if (slots[i] && i % 7) {
				uint64_t slot = slots[i];

				slots[i] = 0;
				log_drop(log, slot);
			}
		}
		while (log_tidy_step(log))
			;
		while (log_compact_step(log, relocate, slots))
			while (log_tidy_step(log))
				;
		log_seal_open(log);
		while (!log_move_oldest(log, UINT32_MAX, &err))
			;
		_exit(7);
	}
	waitpid(pid, &status, 0);
	if (WIFEXITED(status))
		test_fail(__FILE__, __LINE__, "%s was not reached (status %d)", failpoint,
			  WEXITSTATUS(status));
	next = successor(log);
	for (size_t i = 0; i < DEATH_PAGES; i++)
		if (slots[i])
			CHECK_OK(log_mark_used(next, slots[i]));
	log_recovered(next);
	for (size_t i = 0; i < DEATH_PAGES; i++)
		if (slots[i])
			check(next, MIXED, 1 + i, 1, &slots[i]);
	for (size_t i = 0; i < DEATH_PAGES; i++)
		if (slots[i])
			log_drop(next, slots[i]);
	while (log_tidy_step(next))
		;
	CHECK_EQ(account(next).ram_bytes, 0);
	CHECK_EQ(account(next).disk_bytes, 0);
	log_destroy(next);
	log_destroy(log);
}

#define DEATH(name, failpoint)                        \
	TEST(killed_##name)                           \
	{                                             \
		die_and_recover(failpoint "=kill");   \
	}                                             \
	TEST(killed_later_##name)                     \
	{                                             \
		die_and_recover(failpoint "=kill@2"); \
	}

DEATH(when_a_page_is_packed, "store.written")
DEATH(when_a_segment_is_sealed, "store.sealed")
DEATH(when_a_segment_is_written, "store.move.written")
DEATH(when_a_segment_is_placed, "store.move.placed")
DEATH(when_a_record_is_copied, "store.compact.copied")
DEATH(when_a_record_is_relocated, "store.compact.relocated")
DEATH(when_a_segment_is_freed, "store.freed")
