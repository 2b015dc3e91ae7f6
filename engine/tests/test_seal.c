/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "base/failpoint.h"
#include "base/units.h"
#include "harness.h"
#include "store/seal.h"

#include <pthread.h>

#define SERIALS 2000
#define THREADS 4

static struct seal *make(void)
{
	struct seal *seal;
	struct error err = { 0 };

	if (seal_create(&seal, &err))
		test_fail(__FILE__, __LINE__, "%s", err.message);
	return seal;
}

static struct seal *adopt(int fd)
{
	struct seal *seal;
	struct error err = { 0 };

	if (seal_adopt(fd, &seal, &err))
		test_fail(__FILE__, __LINE__, "%s", err.message);
	return seal;
}

struct sealed {
	char bytes[PAGE_BYTES];
	char tag[SEAL_TAG_BYTES];
};

static void close_page(struct seal *seal, uint64_t serial, uint32_t granule, const void *page,
		       struct sealed *out)
{
	CHECK_OK(seal_close(seal, serial, granule, "head", 4, page, PAGE_BYTES, out->bytes, out->tag));
}

static int open_page(struct seal *seal, uint64_t serial, uint32_t granule, const struct sealed *sealed,
		     void *page)
{
	return seal_open(seal, serial, granule, "head", 4, sealed->bytes, PAGE_BYTES, sealed->tag, page);
}

TEST(what_is_sealed_opens_and_is_no_clear_text)
{
	struct seal *seal = make();
	char page[PAGE_BYTES], back[PAGE_BYTES];
	struct sealed sealed;

	test_fill_page(page, 1);
	close_page(seal, 7, 3, page, &sealed);
	CHECK(memcmp(sealed.bytes, page, 64) != 0);
	CHECK_OK(open_page(seal, 7, 3, &sealed, back));
	CHECK(test_page_is(back, 1));
	seal_destroy(seal);
}

TEST(any_changed_bit_and_any_other_place_is_refused)
{
	struct seal *seal = make(), *other = make();
	char page[PAGE_BYTES], back[PAGE_BYTES];
	struct sealed sealed;

	test_fill_page(page, 1);
	close_page(seal, 7, 3, page, &sealed);
	for (size_t bit = 0; bit < 8 * sizeof sealed; bit += 97) {
		((char *)&sealed)[bit / 8] ^= (char)(1 << bit % 8);
		CHECK_EQ(open_page(seal, 7, 3, &sealed, back), -EBADMSG);
		((char *)&sealed)[bit / 8] ^= (char)(1 << bit % 8);
	}
	CHECK_EQ(open_page(seal, 8, 3, &sealed, back), -EBADMSG);
	CHECK_EQ(open_page(seal, 7, 4, &sealed, back), -EBADMSG);
	CHECK_EQ(open_page(other, 7, 3, &sealed, back), -EBADMSG);
	CHECK_EQ(seal_open(seal, 7, 3, "hEad", 4, sealed.bytes, PAGE_BYTES, sealed.tag, back), -EBADMSG);
	CHECK_OK(open_page(seal, 7, 3, &sealed, back));
	seal_destroy(seal);
	seal_destroy(other);
}

TEST(a_successor_has_the_key_and_goes_on_counting)
{
	struct seal *seal = make(), *next;
	char page[PAGE_BYTES], back[PAGE_BYTES];
	uint64_t serial = seal_next_serial(seal);
	struct sealed sealed;

	test_fill_page(page, 5);
	close_page(seal, serial, 0, page, &sealed);
	next = adopt(seal_fd(seal));
	CHECK_EQ(seal_is_secret(next), seal_is_secret(seal));
	seal_destroy(seal);
	CHECK_OK(open_page(next, serial, 0, &sealed, back));
	CHECK(test_page_is(back, 5));
	CHECK_EQ(seal_next_serial(next), serial + 1);
	seal_destroy(next);
}

static void take_serials(struct seal *seal, uint64_t *out)
{
	for (size_t i = 0; i < SERIALS; i++)
		out[i] = seal_next_serial(seal);
}

struct taker {
	struct seal *seal;
	uint64_t *out;
};

static void *taker(void *argument)
{
	struct taker *self = argument;

	take_serials(self->seal, self->out);
	return NULL;
}

static int by_value(const void *a, const void *b)
{
	uint64_t left = *(const uint64_t *)a, right = *(const uint64_t *)b;

	return left < right ? -1 : left > right;
}

/* Threads of a process and of the one that died before it, which is killed in the middle. */
TEST(no_serial_is_given_out_twice)
{
	struct seal *seal = make();
	size_t all_n = (THREADS + 1) * SERIALS;
	uint64_t *all =
		mmap(NULL, all_n * sizeof *all, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	struct taker takers[THREADS];
	pthread_t threads[THREADS];
	size_t killed_after;
	pid_t pid;

	CHECK(all != MAP_FAILED);
	pid = fork();
	if (pid == 0) {
		take_serials(adopt(seal_fd(seal)), all);
		pause();
	}
	while (!((volatile uint64_t *)all)[SERIALS / 2])
		sched_yield();
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	for (size_t i = 0; i < THREADS; i++) {
		takers[i] = (struct taker){ seal, all + (i + 1) * SERIALS };
		CHECK_OK(pthread_create(&threads[i], NULL, taker, &takers[i]));
	}
	for (size_t i = 0; i < THREADS; i++)
		CHECK_OK(pthread_join(threads[i], NULL));
	for (killed_after = 1; killed_after < SERIALS && all[killed_after]; killed_after++)
		;
	qsort(all, killed_after, sizeof *all, by_value);
	memmove(all + killed_after, all + SERIALS, THREADS * SERIALS * sizeof *all);
	all_n = killed_after + THREADS * SERIALS;
	qsort(all, all_n, sizeof *all, by_value);
	for (size_t i = 1; i < all_n; i++)
		CHECK(all[i] != all[i - 1]);
	seal_destroy(seal);
}

TEST(without_memfd_secret_the_key_is_in_locked_memory)
{
	struct seal *seal, *next;
	char page[PAGE_BYTES], back[PAGE_BYTES];
	struct sealed sealed;

	CHECK_OK(failpoint_arm("seal.secret=ENOSYS"));
	seal = make();
	CHECK(!seal_is_secret(seal));
	test_fill_page(page, 5);
	close_page(seal, 1, 0, page, &sealed);
	next = adopt(seal_fd(seal));
	CHECK(!seal_is_secret(next));
	CHECK_OK(open_page(next, 1, 0, &sealed, back));
	seal_destroy(seal);
	seal_destroy(next);
}

TEST(what_holds_no_key_is_refused)
{
	struct seal *seal;
	struct error err = { 0 };
	int fd = memfd_create("other", MFD_CLOEXEC);

	CHECK_SYS(ftruncate(fd, (off_t)PAGE_BYTES));
	CHECK_EQ(seal_adopt(fd, &seal, &err), -EPROTO);
	CHECK_CONTAINS(err.message, "holds no key");
	close(fd);
}
