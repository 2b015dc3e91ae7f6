/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "base/failpoint.h"
#include "base/units.h"
#include "harness.h"
#include "page_cache.h"
#include "store/page_read.h"
#include "store/store.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/resource.h>
#include <sys/vfs.h>

#define N CHUNK_PAGES

static void skip_on_tmpfs(const char *whose)
{
	struct statfs fs;

	CHECK_SYS(statfs(test_dir(), &fs));
	if (fs.f_type == TMPFS_MAGIC)
		test_skip("%s is on tmpfs, %s; set TMPDIR to a directory on a disk", test_dir(), whose);
}

static struct store *open_store(const char *dir)
{
	struct store *store;
	struct error err = { 0 };

	if (store_create(dir, &store, &err))
		test_fail(__FILE__, __LINE__, "%s", err.message);
	return store;
}

static void fill(char *pages, size_t n, uint64_t first_seed)
{
	for (size_t i = 0; i < n; i++)
		test_fill_page(pages + bytes_of_pages(i), first_seed + i);
}

/* store_put() of n adjacent pages. */
static int put_adjacent(struct store *store, const char *pages, size_t n, uint64_t *slot_idx,
			struct error *err)
{
	const void *page[2 * N];

	CHECK(n <= 2 * N);
	for (size_t i = 0; i < n; i++)
		page[i] = pages + bytes_of_pages(i);
	return store_put(store, page, NULL, n, slot_idx, err);
}

/* n pages, with the seeds from first_seed on. */
static void put(struct store *store, size_t n, uint64_t first_seed, uint64_t *slot_idx)
{
	char *pages = test_pages(n);
	struct error err = { 0 };

	fill(pages, n, first_seed);
	if (put_adjacent(store, pages, n, slot_idx, &err))
		test_fail(__FILE__, __LINE__, "%s", err.message);
	munmap(pages, bytes_of_pages(n));
}

static int try_put(struct store *store, size_t n, uint64_t *slot_idx, struct error *err)
{
	char *pages = test_pages(n);
	int rc = put_adjacent(store, pages, n, slot_idx, err);

	munmap(pages, bytes_of_pages(n));
	return rc;
}

static void check_get(struct store *store, size_t n, uint64_t first_seed, const uint64_t *slot_idx)
{
	char *pages = test_pages(n);

	CHECK_OK(store_get(store, slot_idx, n, pages));
	for (size_t i = 0; i < n; i++)
		CHECK(test_page_is(pages + bytes_of_pages(i), first_seed + i));
	munmap(pages, bytes_of_pages(n));
}

static struct store_account account(const struct store *store)
{
	struct store_account account;

	store_account(store, &account);
	return account;
}

static void drop_odd(struct store *store, const uint64_t *slot_idx, size_t n)
{
	for (size_t i = 1; i < n; i += 2)
		store_drop(store, &slot_idx[i], 1);
}

static void limit_file_size(uint64_t bytes)
{
	struct rlimit limit = { bytes, RLIM_INFINITY };

	signal(SIGXFSZ, SIG_IGN);
	CHECK_SYS(setrlimit(RLIMIT_FSIZE, &limit));
}

static void mount_tmpfs(const char *options)
{
	test_private_mounts();
	CHECK_SYS(mount("tmpfs", test_dir(), "tmpfs", 0, options));
}

TEST(what_was_put_comes_back)
{
	struct store *store = open_store(test_dir());
	uint64_t a[N], b[3], scattered[3];

	put(store, N, 1000, a);
	put(store, 3, 5000, b);
	for (size_t i = 1; i < N; i++)
		CHECK_EQ(a[i], a[0] + i);
	check_get(store, N, 1000, a);
	check_get(store, 3, 5000, b);
	check_get(store, 1, 1007, &a[7]);
	scattered[0] = a[9];
	scattered[1] = b[1];
	scattered[2] = a[10];
	char *pages = test_pages(3);
	CHECK_OK(store_get(store, scattered, 3, pages));
	CHECK(test_page_is(pages, 1009) && test_page_is(pages + PAGE_BYTES, 5001));
	CHECK(test_page_is(pages + 2 * PAGE_BYTES, 1010));
	CHECK_OK(store_get(store, scattered, 0, pages));
	CHECK_OK(store_put(store, NULL, NULL, 0, scattered, NULL));
	store_destroy(store);
	store_destroy(NULL);
}

/* Every second page of the memory is put, the last one first. */
TEST(pages_from_anywhere_are_written_at_once)
{
	struct store *store = open_store(test_dir());
	char *pages = test_pages(2 * N);
	struct error err = { 0 };
	const void *page[N];
	uint64_t slot_idx[N];

	for (size_t i = 0; i < N; i++) {
		page[i] = pages + bytes_of_pages(2 * (N - 1 - i));
		test_fill_page((char *)page[i], 100 + i);
	}
	CHECK_OK(failpoint_arm("store.write=count"));
	CHECK_OK(store_put(store, page, NULL, N, slot_idx, &err));
	CHECK_EQ(failpoint_hits("store.write"), 1);
	check_get(store, N, 100, slot_idx);
	munmap(pages, bytes_of_pages(2 * N));
	store_destroy(store);
}

static uint64_t reads_of(struct store *store, const uint64_t *slot_idx, size_t n, char *pages)
{
	uint64_t before;

	CHECK_OK(failpoint_arm("store.read=count"));
	before = failpoint_hits("store.read");
	CHECK_OK(store_get(store, slot_idx, n, pages));
	return failpoint_hits("store.read") - before;
}

/* As after a second swap-out that found half the pages unchanged: slots in two places, in turns. */
TEST(scattered_slots_are_read_in_their_order_in_the_file)
{
	struct store *store = open_store(test_dir());
	uint64_t far[N], near[N], between[N], wanted[N];
	char *pages = test_pages(N);

	put(store, N, 1, far);
	put(store, N, 10000, between);
	put(store, N, 3000, near);
	for (size_t i = 0; i < N; i++) /* backwards, of each every second page */
		wanted[i] = i % 2 ? far[N - i] : near[N - 1 - i];
	CHECK_EQ(reads_of(store, wanted, N, pages), 2);
	for (size_t i = 0; i < N; i++)
		CHECK(test_page_is(pages + bytes_of_pages(i), i % 2 ? 1 + N - i : 3000 + N - 1 - i));
	for (size_t i = 0; i < 4; i++)
		wanted[i] = far[i * N / 4];
	CHECK_EQ(reads_of(store, wanted, 4, pages), 4); /* what lies between would take longer */
	for (size_t i = 0; i < 4; i++)
		CHECK(test_page_is(pages + bytes_of_pages(i), 1 + i * N / 4));
	munmap(pages, bytes_of_pages(N));
	store_destroy(store);
}

TEST(account_counts)
{
	struct store *store = open_store(test_dir());
	uint64_t a[N];

	CHECK_EQ(account(store).used_slots, 0);
	CHECK_EQ(account(store).disk_bytes, 0);
	put(store, N, 1, a);
	CHECK_EQ(account(store).used_slots, N);
	CHECK_EQ(account(store).written_bytes, CHUNK_BYTES);
	CHECK(account(store).disk_bytes >= CHUNK_BYTES);
	CHECK_EQ(account(store).ram_bytes, 0);
	store_drop(store, a, 12);
	CHECK_EQ(account(store).used_slots, N - 12);
	CHECK_EQ(account(store).written_bytes, CHUNK_BYTES);
	store_destroy(store);
}

TEST(slots_are_reused_and_the_file_does_not_grow)
{
	struct store *store = open_store(test_dir());
	uint64_t a[N], b[N];
	struct stat st;

	put(store, N, 1, a);
	put(store, N, 2000, b);
	for (int round = 0; round < 5; round++) {
		store_drop(store, a, N);
		put(store, N, 1 + (uint64_t)round, a);
		CHECK_EQ(a[N - 1], a[0] + N - 1);
		check_get(store, N, 1 + (uint64_t)round, a);
	}
	check_get(store, N, 2000, b);
	CHECK_SYS(fstat(store_fd(store), &st));
	CHECK_EQ(st.st_size, 2 * CHUNK_BYTES);
	store_destroy(store);
}

TEST(a_chunk_stays_one_run_in_a_file_full_of_gaps)
{
	struct store *store = open_store(test_dir());
	uint64_t a[N], b[N];

	put(store, N, 1, a);
	drop_odd(store, a, N);
	put(store, N, 3000, b);
	CHECK_EQ(b[N - 1], b[0] + N - 1);
	check_get(store, N, 3000, b);
	for (size_t i = 0; i < N; i += 2)
		check_get(store, 1, 1 + i, &a[i]);
	store_destroy(store);
}

TEST(gaps_are_used_when_the_file_cannot_grow)
{
	struct store *store = open_store(test_dir());
	uint64_t a[N], b[N];
	struct error err = { 0 };

	put(store, N, 1, a);
	drop_odd(store, a, N);
	limit_file_size(CHUNK_BYTES);
	put(store, N / 2, 3000, b);
	check_get(store, N / 2, 3000, b);
	CHECK_EQ(try_put(store, 1, b, &err), -EFBIG);
	CHECK_CONTAINS(err.message, test_dir());
	for (size_t i = 0; i < N; i += 2)
		check_get(store, 1, 1 + i, &a[i]);
	CHECK_EQ(account(store).used_slots, N);
	store_destroy(store);
}

/* The limit cuts the write of a chunk short after 100 pages. */
TEST(a_put_cut_short_leaves_nothing_behind)
{
	struct store *store = open_store(test_dir());
	uint64_t a[N];
	struct error err = { 0 };

	limit_file_size(bytes_of_pages(100));
	CHECK_EQ(try_put(store, N, a, &err), -EFBIG);
	CHECK_EQ(err.code, EFBIG);
	CHECK_EQ(account(store).used_slots, 0);
	CHECK_EQ(account(store).disk_bytes, 0);
	put(store, 100, 1, a);
	check_get(store, 100, 1, a);
	store_destroy(store);
}

TEST(no_space_on_a_small_tmpfs)
{
	uint64_t slot_idx[5][N];
	struct error err = { 0 };
	struct store *store;
	size_t puts = 0;

	mount_tmpfs("size=7m");
	store = open_store(test_dir());
	for (; puts < 3; puts++)
		put(store, N, puts * N, slot_idx[puts]);
	CHECK_EQ(try_put(store, N, slot_idx[3], &err), -ENOSPC);
	CHECK_EQ(err.code, ENOSPC);
	CHECK_CONTAINS(err.message, test_dir());
	CHECK_CONTAINS(err.message, "2048 KiB");
	CHECK_EQ(account(store).used_slots, 3 * N);
	for (size_t i = 0; i < 3; i++)
		check_get(store, N, i * N, slot_idx[i]);
	store_drop(store, slot_idx[1], N);
	put(store, N, 77, slot_idx[1]);
	check_get(store, N, 77, slot_idx[1]);
	for (size_t i = 0; i < 3; i++)
		store_drop(store, slot_idx[i], N);
	store_trim(store);
	CHECK_EQ(account(store).disk_bytes, 0);
	store_destroy(store);
}

/* Put until it is refused; how often that went well. */
static size_t put_all(struct store *store, uint64_t slot_idx[][N], size_t most, struct error *err)
{
	for (size_t i = 0; i < most; i++) {
		char *pages = test_pages(N);
		int rc;

		fill(pages, N, i * N);
		rc = put_adjacent(store, pages, N, slot_idx[i], err);
		munmap(pages, bytes_of_pages(N));
		if (rc) {
			CHECK_EQ(rc, -ENOSPC);
			return i;
		}
	}
	return most;
}

/* What is refused costs nothing of what is stored, and slots that have blocks are used again. */
static void check_refused_store(struct store *store, uint64_t slot_idx[][N], size_t puts)
{
	uint64_t disk_bytes = account(store).disk_bytes;

	CHECK(puts > 1);
	CHECK_EQ(account(store).used_slots, puts * N);
	for (size_t i = 0; i < puts; i++)
		check_get(store, N, i * N, slot_idx[i]);
	store_drop(store, slot_idx[0], N);
	put(store, N, 77, slot_idx[0]);
	check_get(store, N, 77, slot_idx[0]);
	CHECK(account(store).disk_bytes <= disk_bytes);
}

TEST(a_store_stops_at_its_maximum)
{
	const uint64_t max_bytes = 3 * bytes_of_pages(N) + PAGE_BYTES;
	uint64_t slot_idx[5][N];
	struct error err = { 0 };
	struct store *store;
	size_t puts;

	mount_tmpfs("size=64m");
	store = open_store(test_dir());
	store_limit(store, max_bytes, 0);
	puts = put_all(store, slot_idx, 5, &err);
	CHECK_EQ(puts, 3);
	CHECK_CONTAINS(err.message, "DiskTierMax=");
	CHECK(account(store).disk_bytes <= max_bytes);
	check_refused_store(store, slot_idx, puts);
	store_destroy(store);
}

TEST(a_store_leaves_the_reserve_free)
{
	const uint64_t keep_free_bytes = 10 << 20;
	uint64_t slot_idx[8][N];
	struct error err = { 0 };
	struct store *store;
	struct statfs fs;
	size_t puts;

	mount_tmpfs("size=16m");
	store = open_store(test_dir());
	store_limit(store, 0, keep_free_bytes);
	puts = put_all(store, slot_idx, 8, &err);
	CHECK(puts < 4);
	CHECK_CONTAINS(err.message, "DiskKeepFree=");
	CHECK_SYS(statfs(test_dir(), &fs));
	CHECK((uint64_t)fs.f_bavail * (uint64_t)fs.f_bsize >= keep_free_bytes);
	check_refused_store(store, slot_idx, puts);
	store_destroy(store);
}

/* What is counted is what was written; what does not fit into the budget is refused whole, and no slot is
 * taken. */
TEST(a_write_budget_is_never_exceeded)
{
	struct store *store = open_store(test_dir());
	uint64_t a[N], b[N];
	struct error err = { 0 };

	put(store, N, 1, a);
	CHECK_EQ(account(store).written_bytes, N * PAGE_BYTES);
	store_limit_writes(store, 2 * N * PAGE_BYTES);
	CHECK_OK(failpoint_arm("store.write=EIO"));
	CHECK_EQ(try_put(store, N, b, &err), -EIO);
	CHECK_OK(failpoint_arm("store.write=off"));
	CHECK_EQ(account(store).written_bytes, N * PAGE_BYTES);
	put(store, N, 2, b);
	CHECK_EQ(account(store).written_bytes, 2 * N * PAGE_BYTES);
	CHECK_EQ(account(store).limited_by, LIMITED_BY_NOTHING);
	CHECK_EQ(try_put(store, 1, a, &err), -ENOSPC);
	CHECK_EQ(account(store).limited_by, LIMITED_BY_WRITE_BUDGET);
	CHECK_CONTAINS(err.message, "WriteBudgetPerDay=");
	CHECK_EQ(account(store).used_slots, 2 * N);
	store_forget_limit(store);
	CHECK_EQ(account(store).limited_by, LIMITED_BY_NOTHING);
	check_get(store, N, 2, b);
	store_destroy(store);
}

TEST(write_errors_are_told_apart)
{
	static const struct {
		const char *armed;
		int rc;
		const char *says;
	} cases[] = {
		{ "store.write=ENOSPC", -ENOSPC, "no space" },
		{ "store.write=EDQUOT", -EDQUOT, "quota" },
		{ "store.write=EIO", -EIO, "write error" },
		{ "store.write=EFBIG", -EFBIG, "LimitFSIZE" },
		{ "store.write=EROFS", -EROFS, "Read-only" },
		{ "store.alloc=ENOMEM", -ENOMEM, "Cannot allocate memory" },
	};
	struct store *store = open_store(test_dir());
	uint64_t a[N], b[N];

	put(store, N, 1, a);
	for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
		struct error err = { 0 };

		CHECK_OK(failpoint_arm(cases[i].armed));
		CHECK_EQ(try_put(store, N, b, &err), cases[i].rc);
		CHECK_OK(failpoint_arm("store.write=off;store.alloc=off"));
		CHECK_EQ(err.code, -cases[i].rc);
		CHECK_CONTAINS(err.message, cases[i].says);
		CHECK_CONTAINS(err.message, test_dir());
		CHECK_EQ(account(store).used_slots, N);
		check_get(store, N, 1, a);
	}
	CHECK_OK(failpoint_arm("store.write=once:EINTR"));
	put(store, N, 2000, b);
	check_get(store, N, 2000, b);
	store_destroy(store);
}

TEST(read_errors_and_short_reads)
{
	struct store *store = open_store(test_dir());
	char *page = test_pages(1);
	uint64_t a[2], beyond = 100000;

	put(store, 2, 1, a);
	CHECK_OK(failpoint_arm("store.read=once:EIO"));
	CHECK_EQ(store_get(store, a, 1, page), -EIO);
	CHECK_OK(failpoint_arm("store.read=once:EINTR"));
	check_get(store, 2, 1, a);
	CHECK_OK(failpoint_arm("store.read.corrupt=once:EIO"));
	CHECK_OK(store_get(store, a, 1, page));
	CHECK(!test_page_is(page, 1));
	check_get(store, 2, 1, a);
	CHECK_EQ(store_get(store, &beyond, 1, page), -EIO);
	store_destroy(store);
}

/* As a caller does that reads by itself. */
static void *read_apart(struct store *store, uint64_t slot_idx, char *bytes, char *room, int result)
{
	struct page_read read;
	void *page = room;
	int rc = store_begin_read(store, slot_idx, room, &read);

	CHECK(rc == 0 || rc == 1);
	if (rc == 1) {
		CHECK(read.size_bytes <= PAGE_READ_BYTES_MAX);
		CHECK_EQ(pread(read.fd, bytes, read.size_bytes, (off_t)read.offset_bytes), read.size_bytes);
		CHECK_EQ(store_end_read(store, &read, result, bytes, room, &page), result);
	}
	return page;
}

static void check_read_apart(const char *dir, int begun)
{
	struct store *store = open_store(dir);
	char *buffers = test_pages(PAGE_READ_BYTES_MAX / PAGE_BYTES + 1),
	     *room = buffers + PAGE_READ_BYTES_MAX;
	struct page_read read;
	uint64_t a[N];

	put(store, N, 1, a);
	CHECK_EQ(store_begin_read(store, a[2], room, &read), begun);
	for (size_t i = 0; i < N; i++)
		CHECK(test_page_is(read_apart(store, a[i], buffers, room, 0), 1 + i));
	if (begun)
		read_apart(store, a[0], buffers, room, -EIO);
	CHECK_OK(failpoint_arm("store.read.corrupt=once:EIO"));
	CHECK(!test_page_is(read_apart(store, a[0], buffers, room, 0), 1));
	store_destroy(store);
}

TEST(a_read_is_begun_and_ended_apart)
{
	skip_on_tmpfs("whose files are read at once");
	check_read_apart(test_dir(), 1);
}

TEST(a_read_of_tmpfs_ends_where_it_begins)
{
	mount_tmpfs("size=64m");
	check_read_apart(test_dir(), 0);
}

TEST(trim_punches_whole_extents_only)
{
	struct store *store = open_store(test_dir());
	uint64_t a[4][N];
	uint64_t before;

	for (size_t i = 0; i < 4; i++)
		put(store, N, i * N, a[i]);
	CHECK(!store_trim_step(store));
	before = account(store).disk_bytes;
	store_drop(store, a[1], N);
	store_drop(store, a[2], N - 1);
	CHECK_EQ(account(store).disk_bytes, before); /* dropping does no I/O */
	CHECK(store_trim_step(store));
	CHECK(!store_trim_step(store));
	CHECK(account(store).disk_bytes <= before - CHUNK_BYTES);
	CHECK(account(store).disk_bytes >= before - 2 * CHUNK_BYTES + PAGE_BYTES);
	check_get(store, N, 0, a[0]);
	check_get(store, 1, 2 * N + N - 1, &a[2][N - 1]);
	check_get(store, N, 3 * N, a[3]);
	put(store, N, 9000, a[1]); /* into the hole, or elsewhere */
	check_get(store, N, 9000, a[1]);
	store_drop(store, a[0], N);
	store_drop(store, a[1], N);
	store_drop(store, &a[2][N - 1], 1);
	store_drop(store, a[3], N);
	store_trim(store);
	CHECK_EQ(account(store).disk_bytes, 0);
	put(store, N, 1, a[0]);
	check_get(store, N, 1, a[0]);
	store_destroy(store);
}

TEST(a_file_system_that_cannot_punch_is_cut_when_empty)
{
	struct store *store = open_store(test_dir());
	uint64_t a[N], b[N];

	put(store, N, 1, a);
	put(store, N, 2000, b);
	store_drop(store, b, N);
	CHECK_OK(failpoint_arm("store.punch=EOPNOTSUPP"));
	store_trim(store);
	store_trim(store);
	CHECK_EQ(failpoint_hits("store.punch"), 1); /* asked once, believed */
	CHECK(account(store).disk_bytes >= 2 * CHUNK_BYTES);
	check_get(store, N, 1, a);
	store_drop(store, a, N);
	store_trim(store);
	CHECK_EQ(account(store).disk_bytes, 0);
	store_destroy(store);
}

/* Of a large store, in one go, that would hold up whoever asks for it by a second a GiB. */
TEST(an_unused_file_is_given_back_in_pieces)
{
	struct store *store = open_store(test_dir());
	uint64_t a[3][N], b[N];

	for (size_t i = 0; i < 3; i++)
		put(store, N, i * N, a[i]);
	for (size_t i = 0; i < 3; i++)
		store_drop(store, a[i], N);
	CHECK(store_trim_step(store));
	CHECK(account(store).disk_bytes >= 2 * CHUNK_BYTES);
	put(store, N, 7000, b); /* in between */
	store_trim(store);
	check_get(store, N, 7000, b);
	store_drop(store, b, N);
	store_trim(store);
	CHECK_EQ(account(store).disk_bytes, 0);
	put(store, N, 1, a[0]);
	check_get(store, N, 1, a[0]);
	store_destroy(store);
}

TEST(an_unused_file_that_cannot_be_punched_is_cut_in_pieces)
{
	enum { EXTENTS = 40 };
	static uint64_t a[EXTENTS][N];
	struct store *store = open_store(test_dir());

	for (size_t i = 0; i < EXTENTS; i++)
		put(store, N, i * N, a[i]);
	for (size_t i = 0; i < EXTENTS; i++)
		store_drop(store, a[i], N);
	CHECK_OK(failpoint_arm("store.punch=EOPNOTSUPP"));
	CHECK(!store_trim_step(store));
	CHECK(store_trim_step(store));
	CHECK(account(store).disk_bytes > 0);
	put(store, N, 5000, a[0]); /* in between: it stays, and with it the rest */
	CHECK(!store_trim_step(store));
	check_get(store, N, 5000, a[0]);
	store_drop(store, a[0], N);
	store_trim(store);
	CHECK_EQ(account(store).disk_bytes, 0);
	store_destroy(store);
}

TEST(a_failed_punch_is_tried_again)
{
	struct store *store = open_store(test_dir());
	uint64_t a[N], b[N];

	put(store, N, 1, a);
	put(store, N, 2000, b);
	store_drop(store, b, N);
	CHECK_OK(failpoint_arm("store.punch=once:EIO"));
	CHECK(!store_trim_step(store));
	CHECK(store_trim_step(store));
	CHECK(!store_trim_step(store));
	check_get(store, N, 1, a);
	store_destroy(store);
}

TEST(dropping_twice_aborts)
{
	struct store *store = open_store(test_dir());
	uint64_t a[2];
	int status;
	pid_t pid;

	put(store, 2, 1, a);
	pid = fork();
	if (pid == 0) {
		signal(SIGABRT, SIG_DFL);
		store_drop(store, a, 1);
		store_drop(store, a, 1);
		_exit(0);
	}
	CHECK_SYS(waitpid(pid, &status, 0));
	CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT);
	store_destroy(store);
}

TEST(the_file_cannot_be_reached)
{
	struct store *store = open_store(test_dir());
	char path[300], link_path[64];
	struct stat st;

	CHECK_SYS(fstat(store_fd(store), &st));
	CHECK_EQ(st.st_nlink, 0);
	CHECK_EQ(st.st_mode & 07777, 0);
	CHECK(fcntl(store_fd(store), F_GETFD) & FD_CLOEXEC);
	snprintf(link_path, sizeof link_path, "/proc/self/fd/%d", store_fd(store));
	snprintf(path, sizeof path, "%s/name", test_dir());
	CHECK_EQ(linkat(AT_FDCWD, link_path, AT_FDCWD, path, AT_SYMLINK_FOLLOW), -1);
	CHECK_EQ(errno, ENOENT);
	store_destroy(store);
}

static void check_refused(const char *dir, int code, const char *says)
{
	struct store *store;
	struct error err = { 0 };

	CHECK_EQ(store_create(dir, &store, &err), -code);
	CHECK_EQ(err.code, code);
	CHECK_CONTAINS(err.message, dir);
	CHECK_CONTAINS(err.message, says);
}

TEST(directories_that_will_not_do)
{
	char path[300];
	int fd;

	snprintf(path, sizeof path, "%s/missing", test_dir());
	check_refused(path, ENOENT, "does not exist");
	snprintf(path, sizeof path, "%s/file", test_dir());
	fd = (int)CHECK_SYS(open(path, O_CREAT | O_WRONLY, 0600));
	close(fd);
	check_refused(path, ENOTDIR, "not a directory");
	check_refused("/proc", EOPNOTSUPP, "O_TMPFILE");
}

TEST(a_read_only_directory)
{
	mount_tmpfs("size=1m");
	CHECK_SYS(mount(NULL, test_dir(), NULL, MS_REMOUNT | MS_RDONLY, NULL));
	check_refused(test_dir(), EROFS, "no permission");
}

static void check_cache_stays_empty(void)
{
	struct store *store;
	uint64_t a[N], b[N];

	skip_on_tmpfs("whose files are page cache");
	store = open_store(test_dir());
	put(store, N, 1, a);
	put(store, N, 2000, b);
	CHECK_EQ(cached_pages(store_fd(store)), 0);
	check_get(store, N, 2000, b);
	check_get(store, 1, 8, &a[7]);
	CHECK_EQ(cached_pages(store_fd(store)), 0);
	CHECK_EQ(account(store).disk_bytes >> 20, 2 * CHUNK_BYTES >> 20);
	store_destroy(store);
}

TEST(page_cache_stays_empty_with_o_direct)
{
	check_cache_stays_empty();
}

TEST(page_cache_stays_empty_where_o_direct_is_refused)
{
	CHECK_OK(failpoint_arm("store.direct=EINVAL"));
	check_cache_stays_empty();
}

TEST(a_successor_adopts_the_file)
{
	struct store *store = open_store(test_dir()), *next;
	uint64_t a[N], b[N], c[2 * N];
	struct error err = { 0 };
	int fd = (int)CHECK_SYS(fcntl(store_fd(store), F_DUPFD_CLOEXEC, 100));

	put(store, N, 1, a);
	put(store, N, 2000, b);
	store_destroy(store);
	CHECK_OK(store_adopt(fd, &next, &err));
	close(fd);
	for (size_t i = 0; i < N; i += 2)
		CHECK_OK(store_mark_used(next, a[i]));
	CHECK_EQ(store_mark_used(next, a[0]), -EEXIST);
	CHECK_EQ(store_mark_used(next, 2 * N), -ERANGE);
	CHECK_EQ(store_mark_used(next, UINT64_MAX), -ERANGE);
	check_get(next, 1, 1, &a[0]); /* before it is ready */
	CHECK_EQ(try_put(next, 1, c, &err), -EINVAL);
	store_ready(next);
	CHECK_EQ(account(next).used_slots, N / 2);
	store_trim(next); /* b was held by no one */
	CHECK(account(next).disk_bytes < 2 * CHUNK_BYTES);
	put(next, 2 * N, 5000, c);
	check_get(next, 2 * N, 5000, c);
	for (size_t i = 0; i < N; i += 2)
		check_get(next, 1, 1 + i, &a[i]);
	CHECK_OK(failpoint_arm("store.write=ENOSPC"));
	CHECK_EQ(try_put(next, 1, c, &err), -ENOSPC);
	CHECK_CONTAINS(err.message, test_dir()); /* the adopted file's own directory */
	store_destroy(next);
}

TEST(an_empty_file_can_be_adopted)
{
	struct store *store = open_store(test_dir()), *next;
	uint64_t a[N];

	CHECK_OK(store_adopt(store_fd(store), &next, NULL));
	store_destroy(store);
	store_ready(next);
	put(next, N, 1, a);
	check_get(next, N, 1, a);
	store_destroy(next);
}

TEST(only_a_store_is_adopted)
{
	struct store *store;
	struct error err = { 0 };
	int fds[2];

	CHECK_EQ(store_adopt(-1, &store, &err), -EINVAL);
	CHECK_SYS(pipe(fds));
	CHECK_EQ(store_adopt(fds[1], &store, &err), -EINVAL);
	fds[0] = (int)CHECK_SYS(open("/proc/self/exe", O_RDONLY));
	CHECK_EQ(store_adopt(fds[0], &store, &err), -EINVAL);
	fds[0] = (int)CHECK_SYS(open("/dev/zero", O_RDWR));
	CHECK_EQ(store_adopt(fds[0], &store, &err), -EINVAL);
	CHECK_CONTAINS(err.message, "not a store");
}

#define WORKERS 3
#define ROUNDS 60
#define HELD 6

struct worker {
	struct store *store;
	uint64_t seed;
};

/* Puts, gets and drops bundles of its own, of random size; each page's bytes tell who put it when. */
static void *work(void *arg)
{
	struct worker *worker = arg;
	uint64_t slot_idx[HELD][N], first_seed[HELD], x = worker->seed;
	size_t n[HELD] = { 0 };

	for (int round = 0; round < ROUNDS; round++) {
		size_t i;

		x ^= x << 13;
		x ^= x >> 7;
		x ^= x << 17;
		i = x % HELD;
		if (n[i]) {
			check_get(worker->store, n[i], first_seed[i], slot_idx[i]);
			store_drop(worker->store, slot_idx[i], n[i]);
		}
		n[i] = x >> 8 & 1 ? N : 1 + (x >> 16) % N;
		first_seed[i] = (worker->seed << 40) + ((uint64_t)round << 16);
		put(worker->store, n[i], first_seed[i], slot_idx[i]);
	}
	for (size_t i = 0; i < HELD; i++) {
		if (!n[i])
			continue;
		check_get(worker->store, n[i], first_seed[i], slot_idx[i]);
		store_drop(worker->store, slot_idx[i], n[i]);
	}
	return NULL;
}

static atomic_bool work_is_done;

static void *trim(void *arg)
{
	while (!atomic_load(&work_is_done)) {
		CHECK(account(arg).used_slots <= WORKERS * HELD * N);
		if (!store_trim_step(arg))
			sched_yield();
	}
	return NULL;
}

static void work_concurrently(void)
{
	struct store *store = open_store(test_dir());
	struct worker workers[WORKERS];
	pthread_t threads[WORKERS], trimmer;

	CHECK_EQ(pthread_create(&trimmer, NULL, trim, store), 0);
	for (size_t i = 0; i < WORKERS; i++) {
		workers[i] = (struct worker){ store, i + 1 };
		CHECK_EQ(pthread_create(&threads[i], NULL, work, &workers[i]), 0);
	}
	for (size_t i = 0; i < WORKERS; i++)
		CHECK_EQ(pthread_join(threads[i], NULL), 0);
	atomic_store(&work_is_done, true);
	CHECK_EQ(pthread_join(trimmer, NULL), 0);
	CHECK_EQ(account(store).used_slots, 0);
	store_trim(store);
	CHECK_EQ(account(store).disk_bytes, 0);
	store_destroy(store);
}

TEST(threads_put_get_drop_trim_at_once)
{
	work_concurrently();
}

TEST(threads_without_o_direct)
{
	CHECK_OK(failpoint_arm("store.direct=EINVAL"));
	work_concurrently();
	CHECK_EQ(failpoint_hits("store.direct"), 1);
}

TEST(threads_on_tmpfs)
{
	mount_tmpfs("size=128m");
	work_concurrently();
}
