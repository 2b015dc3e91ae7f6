/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A log whose process is killed at random instants, with all of its threads in the middle of something: pages
 * are put, read, dropped, moved to disk and compacted. Its successor has the files of the tiers and the words
 * of the pages, as after a crash of a monitor, and must read every page.
 *
 * A failpoint kills one thread at a place that we thought of; this kills all of them, wherever they are.
 * CHAOS_KILLS in the environment: how often. CHAOS_SEED: other pages, in another order. */
#include "base/units.h"
#include "harness.h"
#include "store/compact.h"
#include "store/log.h"
#include "store/move.h"
#include "store/tend.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <time.h>

#define PAGES 3000
#define MIB ((uint64_t)1 << 20)
#define WRITERS 2
#define KILLS 12
#define LIFE_PUTS 400 /* at most, from when all of its pages were read */

/* Of a page: 0, or the slot that has it, below the version of its bytes. */
#define VERSION_SHIFT 36
#define SLOT_MASK (((uint64_t)1 << VERSION_SHIFT) - 1)

struct shared {
	_Atomic uint64_t words[PAGES];
	_Atomic uint64_t puts, drops, reads;
	_Atomic bool ready; /* it has read what its predecessor left */
};

struct world {
	struct log *log;
	struct shared *shared;
	uint64_t seed;
};

struct worker {
	struct world *world;
	size_t idx;
};

static uint64_t next_random(uint64_t *state)
{
	*state = *state * 6364136223846793005u + 1442695040888963407u;
	return *state >> 33;
}

static uint64_t number_of(const char *name, uint64_t otherwise)
{
	const char *text = getenv(name);

	return text ? strtoull(text, NULL, 10) : otherwise;
}

/* Pages that compress to any length, or not at all, or repeat one word. */
static void make_page(uint64_t owner, uint64_t version, char *page)
{
	size_t noise_bytes = (owner * 37 + version * 411) % 5000;

	test_fill_page(page, owner + (version << 32));
	if (noise_bytes < PAGE_BYTES)
		memset(page + noise_bytes, (int)(owner + version), PAGE_BYTES - noise_bytes);
	if (noise_bytes < 100)
		memset(page, (int)(owner + version), PAGE_BYTES);
}

static bool relocate(void *context, uint64_t owner, uint64_t from_idx, uint64_t to_idx)
{
	struct world *world = context;
	uint64_t word = atomic_load(&world->shared->words[owner]);

	return word && (word & SLOT_MASK) == from_idx &&
	       atomic_compare_exchange_strong(&world->shared->words[owner], &word,
					      (word & ~SLOT_MASK) | to_idx);
}

static void put(struct world *world, size_t writer_idx, uint64_t owner, uint64_t version)
{
	char page[PAGE_BYTES];
	struct page_to_put put = { .page = page, .owner = owner };
	struct error err = { 0 };

	make_page(owner, version, page);
	if (log_put(world->log, writer_idx, &put, 1, &err) != 1)
		test_fail(__FILE__, __LINE__, "%s", err.message);
	atomic_store(&world->shared->words[owner], version << VERSION_SHIFT | put.slot_idx);
	atomic_fetch_add(&world->shared->puts, 1);
}

/* Each writer has pages of its own, and puts or drops runs of them. */
static _Noreturn void *write_pages(void *argument)
{
	struct worker *self = argument;
	struct shared *shared = self->world->shared;
	uint64_t random = self->world->seed * WRITERS + self->idx;

	for (;;) {
		uint64_t from = next_random(&random) % PAGES, n = next_random(&random) % 200;
		uint64_t one_of = 1 + next_random(&random) % 3;
		bool puts = next_random(&random) % 2;

		for (uint64_t owner = from; owner < from + n && owner < PAGES; owner++) {
			uint64_t word = atomic_load(&shared->words[owner]);

			if (owner % WRITERS != self->idx || next_random(&random) % one_of)
				continue;
			if (puts && !(word & SLOT_MASK)) {
				put(self->world, self->idx, owner, 1 + (word >> VERSION_SHIFT));
			} else if (!puts && (word & SLOT_MASK)) {
				while (!atomic_compare_exchange_weak(&shared->words[owner], &word,
								     word & ~SLOT_MASK))
					;
				log_drop(self->world->log, word & SLOT_MASK);
				atomic_fetch_add(&shared->drops, 1);
			}
		}
		if (next_random(&random) % 8 == 0)
			log_seal_writer(self->world->log, self->idx);
	}
}

static _Noreturn void *tend(void *argument)
{
	struct worker *self = argument;
	struct log *log = self->world->log;
	uint64_t random = self->world->seed;
	struct error why;

	for (;;) {
		if (next_random(&random) % 4 == 0)
			log_flush_step(log, &why);
		log_tend_step(log, relocate, self->world);
		sched_yield();
	}
}

static _Noreturn void *read_pages(void *argument)
{
	struct worker *self = argument;
	struct shared *shared = self->world->shared;
	uint64_t random = self->world->seed + 99;
	char page[PAGE_BYTES], wanted[PAGE_BYTES];

	for (;;) {
		uint64_t owner = next_random(&random) % PAGES, word = atomic_load(&shared->words[owner]);
		int rc = word & SLOT_MASK ? log_get(self->world->log, word & SLOT_MASK, page) : 1;

		if (rc == 1 || atomic_load(&shared->words[owner]) != word)
			continue;
		CHECK_OK(rc);
		make_page(owner, word >> VERSION_SHIFT, wanted);
		CHECK(memcmp(page, wanted, PAGE_BYTES) == 0);
		atomic_fetch_add(&shared->reads, 1);
	}
}

static void check_all(struct world *world)
{
	static uint64_t slots[PAGES], owners[PAGES];
	static int rc[PAGES];
	char *pages = test_pages(PAGES), wanted[PAGE_BYTES];
	size_t n = 0;

	for (uint64_t owner = 0; owner < PAGES; owner++) {
		uint64_t word = atomic_load(&world->shared->words[owner]);

		owners[n] = owner;
		slots[n] = word & SLOT_MASK;
		n += slots[n] != 0;
	}
	log_get_many(world->log, slots, n, pages, rc);
	for (size_t i = 0; i < n; i++) {
		uint64_t word = atomic_load(&world->shared->words[owners[i]]);

		if (rc[i])
			test_fail(__FILE__, __LINE__, "page %llu at %#llx cannot be read: %s",
				  (unsigned long long)owners[i], (unsigned long long)slots[i],
				  strerror(-rc[i]));
		make_page(owners[i], word >> VERSION_SHIFT, wanted);
		CHECK(memcmp(pages + bytes_of_pages(i), wanted, PAGE_BYTES) == 0);
	}
	munmap(pages, bytes_of_pages(PAGES));
}

static struct log *take_over(const struct log *dead, struct shared *shared)
{
	struct log_config config = { .segments_fd = dead->segments.fd,
				     .ram_fd = dead->ram.fd,
				     .disk_fd = disk_tier_fd(dead->disk),
				     .key_fd = seal_fd(dead->seal),
				     .compress = true,
				     .ram_max_bytes = dead->ram_max_bytes,
				     .disk_max_bytes = dead->disk_max_bytes };
	struct log *log;
	struct error err = { 0 };

	if (log_create(&config, &log, &err))
		test_fail(__FILE__, __LINE__, "%s", err.message);
	for (uint64_t owner = 0; owner < PAGES; owner++) {
		uint64_t slot_idx = atomic_load(&shared->words[owner]) & SLOT_MASK;

		if (slot_idx)
			CHECK_OK(log_mark_used(log, slot_idx));
	}
	log_recovered(log);
	return log;
}

static void live(const struct log *dead, struct shared *shared, uint64_t seed)
{
	struct world world = { .log = take_over(dead, shared), .shared = shared, .seed = seed };
	void *(*const what[])(void *) = { write_pages, write_pages, tend, read_pages };
	struct worker workers[4];
	pthread_t threads[4];

	check_all(&world);
	for (size_t i = 0; i < 4; i++) {
		workers[i] = (struct worker){ &world, i };
		CHECK_OK(pthread_create(&threads[i], NULL, what[i], &workers[i]));
	}
	atomic_store(&shared->ready, true);
	for (;;)
		pause();
}

/* The rest of a millisecond makes it any instant, and not the end of a put. */
static void kill_after(pid_t pid, struct shared *shared, uint64_t puts_n, uint64_t rest_us)
{
	uint64_t until_n = atomic_load(&shared->puts) + puts_n;
	int status;

	while (!atomic_load(&shared->ready) || atomic_load(&shared->puts) < until_n) {
		if (waitpid(pid, &status, WNOHANG))
			test_fail(__FILE__, __LINE__, "a successor has ended");
		usleep(200);
	}
	usleep((useconds_t)rest_us);
	CHECK_SYS(kill(pid, SIGKILL));
	CHECK_EQ(waitpid(pid, &status, 0), pid);
	if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGKILL)
		test_fail(__FILE__, __LINE__, "a successor has ended");
}

static void kills(uint64_t ram_max_bytes)
{
	struct log_config config = { .dir = test_dir(),
				     .segments_fd = -1,
				     .ram_fd = -1,
				     .disk_fd = -1,
				     .key_fd = -1,
				     .compress = true,
				     .encrypt = true,
				     .ram_max_bytes = ram_max_bytes,
				     .disk_max_bytes = 1024 * MIB };
	uint64_t seed = number_of("CHAOS_SEED", 1), random = seed, kills_n = number_of("CHAOS_KILLS", KILLS);
	struct shared *shared =
		mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	struct error err = { 0 };
	struct log *first, *last;

	CHECK(shared != MAP_FAILED);
	if (log_create(&config, &first, &err))
		test_fail(__FILE__, __LINE__, "%s", err.message);
	for (uint64_t i = 0; i < kills_n; i++) {
		pid_t pid;

		atomic_store(&shared->ready, false);
		pid = (pid_t)CHECK_SYS(fork());
		if (pid == 0) {
			prctl(PR_SET_PDEATHSIG, SIGKILL);
			live(first, shared, seed * 1000 + i);
			_exit(1);
		}
		kill_after(pid, shared, next_random(&random) % LIFE_PUTS, next_random(&random) % 1000);
	}
	last = take_over(first, shared);
	check_all(&(struct world){ .log = last, .shared = shared });
	CHECK(shared->drops && shared->reads);
	log_destroy(last);
	log_destroy(first);
}

TEST(killed_at_random_instants_with_little_ram)
{
	kills(2 * MIB);
}

TEST(killed_at_random_instants_with_much_ram)
{
	kills(64 * MIB);
}
