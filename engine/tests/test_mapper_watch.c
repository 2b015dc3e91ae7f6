/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "base/failpoint.h"
#include "harness.h"
#include "linux/map_read.h"
#include "linux/mapper_watch.h"

#include <fcntl.h>
#include <stdatomic.h>

#define PAGES 512

/* What the processes of these tests share with the test. */
struct orders {
	_Atomic int go, done;
};

static struct orders *orders;
static int memfd;
static struct mapped_file file;

static void prepare(void)
{
	memfd = (int)CHECK_SYS(memfd_create("guest", MFD_CLOEXEC));
	CHECK_SYS(ftruncate(memfd, PAGES << 12));
	CHECK_OK(mappers_file_of(memfd, &file));
	orders = mmap(NULL, sizeof *orders, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	CHECK(orders != MAP_FAILED);
}

static void map(int flags)
{
	CHECK(mmap(NULL, PAGES << 12, PROT_READ, flags, memfd, 0) != MAP_FAILED);
}

static void map_shared(void)
{
	map(MAP_SHARED);
}

static void map_private(void)
{
	map(MAP_PRIVATE);
}

static void idle(void)
{
}

/* A process that does something once it is told to. */
static pid_t start(void (*body)(void))
{
	pid_t pid = (pid_t)CHECK_SYS(fork());

	if (pid == 0) {
		while (!atomic_load(&orders->go))
			usleep(100);
		body();
		atomic_fetch_add(&orders->done, 1);
		for (;;)
			pause();
	}
	return pid;
}

static void let_go(int processes)
{
	atomic_store(&orders->go, 1);
	while (atomic_load(&orders->done) < processes)
		usleep(100);
}

static void end(pid_t pid)
{
	kill(pid, SIGKILL);
	CHECK_SYS(waitpid(pid, NULL, 0));
}

static size_t mappings_seen(struct mapper_watch *watch, pid_t pid, bool is_private)
{
	struct mapper_list list;
	size_t n = 0;

	CHECK_OK(mapper_watch_look(watch, &file, 1, &list));
	for (size_t i = 0; i < list.mappings_n; i++)
		n += list.mappings[i].pid == pid && list.mappings[i].is_private == is_private;
	CHECK_EQ(list.mappings_n, n);
	mappers_free(&list);
	return n;
}

static void check_found(void (*body)(void), bool is_private)
{
	struct mapper_watch *watch;
	pid_t pid;

	prepare();
	pid = start(body);
	CHECK_OK(mapper_watch_create(&watch));
	CHECK_EQ(mappings_seen(watch, pid, is_private), 0);
	let_go(1);
	/* A change rests while its process's last look is paid for. */
	while (!mappings_seen(watch, pid, is_private))
		usleep(1000);
	CHECK_EQ(mappings_seen(watch, pid, is_private), 1);
	end(pid);
	CHECK_EQ(mappings_seen(watch, pid, is_private), 0);
	mapper_watch_destroy(watch);
}

TEST(who_begins_to_map_it_is_found)
{
	check_found(map_shared, false);
}

TEST(who_begins_to_map_it_privately_is_found)
{
	check_found(map_private, true);
}

#define OTHERS_N 20

/* Of processes that change nothing no maps are read: else a host of 1000 processes cost 90 ms a look. */
TEST(idle_processes_cost_no_look_at_their_maps)
{
	struct mapper_watch *watch;
	uint64_t before, first, later;
	pid_t others[OTHERS_N], pid;

	prepare();
	for (int i = 0; i < OTHERS_N; i++)
		others[i] = start(idle);
	pid = start(map_shared);
	let_go(OTHERS_N + 1);
	CHECK_OK(failpoint_arm("mappers.read=count"));
	CHECK_OK(mapper_watch_create(&watch));
	before = failpoint_hits("mappers.read");
	CHECK_EQ(mappings_seen(watch, pid, false), 1);
	first = failpoint_hits("mappers.read") - before;
	CHECK(first > OTHERS_N);
	for (int i = 0; i < OTHERS_N; i++)
		CHECK_SYS(kill(others[i], SIGSTOP));
	/* They may have grown since, by what they did last. */
	for (int look = 0; look < 3; look++) {
		before = failpoint_hits("mappers.read");
		CHECK_EQ(mappings_seen(watch, pid, false), 1);
		later = failpoint_hits("mappers.read") - before;
	}
	CHECK(later <= first - OTHERS_N);
	for (int i = 0; i < OTHERS_N; i++)
		end(others[i]);
	end(pid);
	mapper_watch_destroy(watch);
}

/* Looks that are a minute apart: of processes that change nothing only some are read each time. */
TEST(idle_processes_take_turns_where_looks_are_rare)
{
	uint64_t before, first, reads = 0;
	struct mapper_watch *watch;
	pid_t others[OTHERS_N];
	struct mapper_list list;

	prepare();
	for (int i = 0; i < OTHERS_N; i++)
		others[i] = start(idle);
	let_go(OTHERS_N);
	CHECK_OK(failpoint_arm("mappers.read=count;map_read.minute=ETIME"));
	CHECK_OK(mapper_watch_create(&watch));
	before = failpoint_hits("mappers.read");
	for (int i = 0; i < OTHERS_N; i++)
		CHECK_SYS(kill(others[i], SIGSTOP));
	for (int look = 0; look < 3; look++) { /* they may have grown since, by what they did last */
		CHECK_OK(mapper_watch_look(watch, &file, 1, &list));
		mappers_free(&list);
		first = look ? first : failpoint_hits("mappers.read") - before;
	}
	before = failpoint_hits("mappers.read");
	for (int look = 0; look < MAP_READ_TURN_LOOKS / 2 - 4; look++) {
		CHECK_OK(mapper_watch_look(watch, &file, 1, &list));
		mappers_free(&list);
		reads = failpoint_hits("mappers.read") - before;
		before += reads;
		CHECK(reads <= first - OTHERS_N);
	}
	for (int i = 0; i < OTHERS_N; i++)
		end(others[i]);
	mapper_watch_destroy(watch);
}

static void *other_memory;

static void map_over(void)
{
	CHECK(mmap(other_memory, PAGES << 12, PROT_READ, MAP_SHARED | MAP_FIXED, memfd, 0) == other_memory);
}

/* Neither the size of the process nor its shared pages change. */
TEST(who_maps_it_over_other_memory_is_found_in_its_turn)
{
	struct mapper_watch *watch;
	bool found = false;
	pid_t pid;

	prepare();
	other_memory = mmap(NULL, PAGES << 12, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(other_memory != MAP_FAILED);
	CHECK_OK(failpoint_arm("map_read.minute=ETIME"));
	pid = start(map_over);
	CHECK_OK(mapper_watch_create(&watch));
	CHECK_EQ(mappings_seen(watch, pid, false), 0);
	let_go(1);
	for (int look = 0; look < MAP_READ_TURN_LOOKS && !found; look++)
		found = mappings_seen(watch, pid, false) == 1;
	CHECK(found);
	end(pid);
	mapper_watch_destroy(watch);
}

TEST(other_files_are_looked_for_anew)
{
	struct mapper_watch *watch;
	struct mapped_file other;
	struct mapper_list list;
	pid_t pid;

	prepare();
	CHECK_OK(mappers_file_of((int)CHECK_SYS(memfd_create("other", MFD_CLOEXEC)), &other));
	pid = start(map_shared);
	let_go(1);
	CHECK_OK(mapper_watch_create(&watch));
	CHECK_OK(mapper_watch_look(watch, &other, 1, &list));
	CHECK_EQ(list.mappings_n, 0);
	mappers_free(&list);
	CHECK_EQ(mappings_seen(watch, pid, false), 1);
	end(pid);
	mapper_watch_destroy(watch);
}
