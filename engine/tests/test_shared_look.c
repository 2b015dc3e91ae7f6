/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "base/failpoint.h"
#include "harness.h"
#include "linux/map_read.h"
#include "linux/shared_look.h"

#include <fcntl.h>
#include <sys/file.h>

#define ANY_AGE UINT64_MAX
#define PICTURE "fds-1"

#define MEMFDS_N 64

static int dir_fd, memfd;
static _Atomic int *go; /* that children share */

static void prepare(void)
{
	dir_fd = (int)CHECK_SYS(open(test_dir(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
	memfd = (int)CHECK_SYS(memfd_create("guest", MFD_CLOEXEC));
	CHECK_SYS(ftruncate(memfd, 4096));
	CHECK_OK(failpoint_arm("shared_look.making=count;shared_look.fdinfo=count;mappers.read=count"));
}

/* A child that does as it is told, and has done so when this returns. */
static pid_t start(void (*body)(void))
{
	int ends[2];
	char byte;
	pid_t pid;

	CHECK_SYS(pipe(ends));
	pid = (pid_t)CHECK_SYS(fork());
	if (pid == 0) {
		body();
		CHECK_EQ(write(ends[1], "", 1), 1);
		for (;;)
			pause();
	}
	CHECK_EQ(read(ends[0], &byte, 1), 1);
	close(ends[0]);
	close(ends[1]);
	return pid;
}

static void end(pid_t pid)
{
	kill(pid, SIGKILL);
	CHECK_SYS(waitpid(pid, NULL, 0));
}

static void hold(void)
{
	CHECK_EQ(dup2(memfd, 0), 0);
	close(memfd);
}

static void hold_as_nobody(void)
{
	hold();
	CHECK_SYS(setresuid(65534, 65534, 65534));
}

static void map_only(void)
{
	CHECK(mmap(NULL, 4096, PROT_READ, MAP_SHARED, memfd, 0) != MAP_FAILED);
	close(memfd);
}

static void hold_another_of_that_name(void)
{
	close(memfd);
	CHECK_SYS(memfd_create("guest", MFD_CLOEXEC));
}

static struct shared_look look(enum look_kind kind, uint64_t max_age_ns)
{
	struct shared_look found;

	CHECK_OK(shared_look(dir_fd, kind, &memfd, 1, max_age_ns, &found));
	return found;
}

/* 0: nobody */
static void check_holder(uint64_t max_age_ns, pid_t pid)
{
	struct shared_look found = look(LOOK_FDS, max_age_ns);

	CHECK_EQ(found.holders.holders_n, pid ? 1 : 0);
	if (pid) {
		CHECK_EQ(found.holders.holders[0].pid, pid);
		CHECK_EQ(found.holders.holders[0].fd, 0);
		CHECK_EQ(found.holders.holders[0].file_idx, 0);
	}
	CHECK_EQ(found.mappers.pids_n, 0);
	shared_look_free(&found);
}

static void check_mapper(uint64_t max_age_ns, pid_t pid)
{
	struct shared_look found = look(LOOK_MAPS, max_age_ns);

	CHECK_EQ(found.mappers.pids_n, pid ? 1 : 0);
	if (pid)
		CHECK_EQ(found.mappers.pids[0], pid);
	CHECK_EQ(found.holders.holders_n, 0);
	shared_look_free(&found);
}

static uint64_t made(void)
{
	return failpoint_hits("shared_look.making");
}

TEST(who_has_it_open)
{
	pid_t pid, other;

	prepare();
	other = start(hold_another_of_that_name);
	check_holder(0, 0);
	pid = start(hold);
	check_holder(0, pid);
	end(pid);
	if (geteuid() == 0) {
		pid = start(hold_as_nobody);
		check_holder(0, pid);
		end(pid);
	}
	end(other);
}

TEST(who_maps_it)
{
	pid_t pid;

	prepare();
	check_mapper(0, 0);
	pid = start(map_only);
	check_mapper(0, pid);
	check_mapper(0, pid); /* its maps are not read again */
	end(pid);
	check_mapper(0, 0);
}

/* Else each VM's monitor would look through all processes: the square of the number of VMs. */
TEST(one_look_is_enough_for_all_until_it_is_too_old)
{
	uint64_t before;
	pid_t pid;

	prepare();
	check_holder(ANY_AGE, 0);
	before = made();
	for (int i = 0; i < 100; i++)
		check_holder(ANY_AGE, 0);
	CHECK_EQ(made(), before);
	pid = start(hold);
	check_holder(ANY_AGE, 0); /* that look was before */
	CHECK_EQ(made(), before);
	check_holder(0, pid);
	CHECK_EQ(made(), before + 1);
	end(pid);
	check_holder(ANY_AGE, 0); /* whoever has gone since is not reported */
	CHECK_EQ(made(), before + 1);
}

static int wait_for_ever(void *argument)
{
	while (!argument)
		pause();
	return 0;
}

static uint64_t fdinfos_of_a_look(size_t wanted_n)
{
	uint64_t before = failpoint_hits("shared_look.fdinfo");
	struct shared_look found = look(LOOK_FDS, 0);

	CHECK_EQ(found.holders.holders_n, wanted_n);
	shared_look_free(&found);
	return failpoint_hits("shared_look.fdinfo") - before;
}

static void hold_more(void)
{
	hold();
	for (int fd = 0; fd < MEMFDS_N - 1; fd++)
		CHECK_SYS(dup(0));
}

static void hold_more_and_share(void)
{
	static char stack[65536] __attribute__((aligned(16)));

	hold_more();
	*go = (int)CHECK_SYS(clone(wait_for_ever, stack + sizeof stack, CLONE_FILES, NULL));
}

/* So a monitor and its keeper have the same fds, and there are as many of them as VMs. */
TEST(a_table_of_fds_that_two_share_is_read_once_and_reported_of_both)
{
	uint64_t alone, shared;
	pid_t first, second;

	prepare();
	go = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	CHECK(go != MAP_FAILED);
	first = start(hold_more);
	alone = fdinfos_of_a_look(MEMFDS_N);
	end(first);
	first = start(hold_more_and_share);
	second = *go;
	shared = fdinfos_of_a_look(2 * MEMFDS_N);
	CHECK(shared < alone + MEMFDS_N); /* others may have some more by now */
	kill(second, SIGKILL);
	end(first);
}

/* A look at maps waits for whoever holds a process's mmap lock, and one at fds must not wait for it. */
TEST(a_look_at_fds_reads_no_maps)
{
	uint64_t before;

	prepare();
	before = failpoint_hits("mappers.read");
	check_holder(0, 0);
	CHECK_EQ(failpoint_hits("mappers.read"), before);
	check_mapper(0, 0);
	CHECK(failpoint_hits("mappers.read") > before);
}

TEST(a_look_serves_a_process_that_asks_for_other_files)
{
	uint64_t before;
	pid_t pid;
	int own;

	prepare();
	own = memfd;
	pid = start(hold);
	memfd = (int)CHECK_SYS(memfd_create("other", MFD_CLOEXEC));
	check_holder(ANY_AGE, 0);
	before = made();
	memfd = own;
	check_holder(ANY_AGE, pid);
	CHECK_EQ(made(), before);
	end(pid);
}

static void look_as_nobody(void)
{
	struct shared_look found;

	CHECK_SYS(setresuid(65534, 65534, 65534));
	CHECK_OK(shared_look(dir_fd, LOOK_FDS, &memfd, 1, ANY_AGE, &found));
	shared_look_free(&found);
}

TEST(what_somebody_with_fewer_rights_has_seen_does_not_count)
{
	uint64_t before;
	pid_t pid;

	if (geteuid() != 0)
		test_skip("needs root, to have more rights than another");
	prepare();
	CHECK_SYS(fchmod(dir_fd, 0777));
	end(start(look_as_nobody));
	CHECK_SYS(faccessat(dir_fd, PICTURE, F_OK, 0));
	CHECK_SYS(fchmodat(dir_fd, PICTURE, 0644, 0));
	before = made();
	pid = start(hold);
	check_holder(ANY_AGE, pid);
	CHECK_EQ(made(), before + 1);
	end(pid);
}

static void look_and_wait(void)
{
	CHECK_OK(failpoint_arm("shared_look.waiting=stop"));
	check_holder(ANY_AGE, 0);
	exit(made() ? 1 : 0);
}

/* Else those that have their beat at the same moment would all look through all processes. */
TEST(who_comes_while_another_looks_takes_what_it_has_seen)
{
	int lock_fd, status;
	pid_t pid;

	prepare();
	lock_fd = (int)CHECK_SYS(openat(dir_fd, PICTURE ".lock", O_RDONLY | O_CREAT | O_CLOEXEC, 0600));
	CHECK_SYS(flock(lock_fd, LOCK_EX));
	pid = (pid_t)CHECK_SYS(fork());
	if (pid == 0) {
		close(memfd); /* so that it is no holder for us */
		memfd = (int)CHECK_SYS(memfd_create("another", MFD_CLOEXEC));
		look_and_wait();
	}
	CHECK_SYS(waitpid(pid, &status, WUNTRACED));
	CHECK(WIFSTOPPED(status));
	CHECK_SYS(flock(lock_fd, LOCK_UN));
	check_holder(ANY_AGE, 0);
	CHECK_SYS(kill(pid, SIGCONT));
	CHECK_SYS(waitpid(pid, &status, 0));
	CHECK_EQ(status, 0);
}

TEST(while_another_looks_nobody_waits_for_it_for_long)
{
	int lock_fd = -1;
	struct shared_look found;

	prepare();
	lock_fd = (int)CHECK_SYS(openat(dir_fd, PICTURE ".lock", O_RDONLY | O_CREAT | O_CLOEXEC, 0600));
	CHECK_SYS(flock(lock_fd, LOCK_EX));
	CHECK_EQ(shared_look(dir_fd, LOOK_FDS, &memfd, 1, 0, &found), -EBUSY);
	CHECK_EQ(found.holders.holders_n + found.mappers.pids_n, 0);
	close(lock_fd);
	check_holder(0, 0);
}

/* Cut anywhere, or with counts that lead out of it. */
TEST(a_damaged_picture_is_replaced)
{
	char bytes[8192];
	ssize_t whole;
	int fd;

	prepare();
	check_holder(0, 0);
	fd = (int)CHECK_SYS(openat(dir_fd, PICTURE, O_RDONLY));
	whole = CHECK_SYS(read(fd, bytes, sizeof bytes));
	close(fd);
	CHECK(whole > 64);
	for (int kind = 0; kind < 20; kind++) {
		char broken[sizeof bytes];
		ssize_t size = kind < 10 ? whole * kind / 10 : whole;
		uint64_t before = made();

		memcpy(broken, bytes, (size_t)whole);
		if (kind >= 10)
			memset(broken + 48 + 8 * (kind % 2), 0xff, 8); /* so many processes, or sightings */
		CHECK_SYS(unlinkat(dir_fd, PICTURE, 0));
		fd = (int)CHECK_SYS(openat(dir_fd, PICTURE, O_WRONLY | O_CREAT, 0600));
		CHECK_EQ(write(fd, broken, (size_t)size), size);
		close(fd);
		check_holder(ANY_AGE, 0);
		CHECK_EQ(made(), before + 1);
	}
}

TEST(a_picture_that_cannot_be_shown_serves_who_made_it)
{
	struct shared_look found;
	pid_t pid;

	prepare();
	CHECK_SYS(mkdirat(dir_fd, PICTURE, 0700));
	pid = start(hold);
	found = look(LOOK_FDS, ANY_AGE);
	CHECK_EQ(found.unshared, EISDIR);
	CHECK_EQ(found.holders.holders_n, 1);
	shared_look_free(&found);
	CHECK(faccessat(dir_fd, PICTURE ".new", F_OK, 0) != 0);
	end(pid);
}

TEST(other_files_are_not_looked_for)
{
	struct shared_look found;
	int own;

	prepare();
	own = memfd;
	memfd = (int)CHECK_SYS(open(test_dir(), O_TMPFILE | O_RDWR | O_CLOEXEC, 0600));
	CHECK_EQ(shared_look(dir_fd, LOOK_FDS, &memfd, 1, 0, &found), -ENOTSUP);
	close(memfd);
	memfd = own;
	CHECK_EQ(shared_look(-1, LOOK_FDS, &memfd, 1, 0, &found), -EBADF);
	check_holder(0, 0);
}

#define IDLE_N 20

static void idle(void)
{
	close(memfd);
}

TEST(idle_processes_cost_no_look_at_their_maps)
{
	uint64_t before, first, later = 0;
	pid_t others[IDLE_N];

	prepare();
	for (int i = 0; i < IDLE_N; i++)
		others[i] = start(idle);
	for (int i = 0; i < IDLE_N; i++)
		CHECK_SYS(kill(others[i], SIGSTOP));
	before = failpoint_hits("mappers.read");
	check_mapper(0, 0);
	first = failpoint_hits("mappers.read") - before;
	CHECK(first >= IDLE_N);
	for (int i = 0; i < 3; i++) { /* others may have changed */
		before = failpoint_hits("mappers.read");
		check_mapper(0, 0);
		later = failpoint_hits("mappers.read") - before;
	}
	CHECK(later <= first - IDLE_N);
	for (int i = 0; i < IDLE_N; i++)
		end(others[i]);
}

static void *other_memory;

static void map_over(void)
{
	CHECK(mmap(other_memory, 4096, PROT_READ, MAP_SHARED | MAP_FIXED, memfd, 0) == other_memory);
	close(memfd);
}

static void map_over_when_told(void)
{
	pid_t pid = (pid_t)CHECK_SYS(fork());

	if (pid == 0) {
		while (!*go)
			usleep(100);
		map_over();
		*go = 2;
		for (;;)
			pause();
	}
	*(go + 1) = pid;
}

/* Neither the size of the process nor its shared pages change. */
TEST(who_maps_it_over_other_memory_is_found_in_its_turn)
{
	bool found = false;
	pid_t parent, pid;

	prepare();
	other_memory = mmap(NULL, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	go = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	CHECK(other_memory != MAP_FAILED && go != MAP_FAILED);
	CHECK_OK(failpoint_arm("map_read.minute=ETIME"));
	parent = start(map_over_when_told);
	pid = *(go + 1);
	for (int i = 0; i < 2; i++) {
		struct shared_look before = look(LOOK_MAPS, 0);

		CHECK_EQ(before.mappers.pids_n, 0);
		shared_look_free(&before);
	}
	*go = 1;
	while (*go != 2)
		usleep(100);
	for (int i = 0; i < MAP_READ_TURN_LOOKS && !found; i++) {
		struct shared_look now = look(LOOK_MAPS, 0);

		found = now.mappers.pids_n == 1 && now.mappers.pids[0] == pid;
		shared_look_free(&now);
	}
	CHECK(found);
	CHECK_SYS(kill(pid, SIGKILL));
	end(parent);
}

TEST(a_look_that_is_short_of_fds_fails_or_finds_all)
{
	struct shared_look found;
	pid_t holder;
	int fds[8], rc = 0;

	prepare();
	holder = start(hold);
	test_use_up_fds(fds, 8);
	for (int i = 0; i < 8; i++) {
		rc = shared_look(dir_fd, LOOK_FDS, &memfd, 1, 0, &found);
		if (rc) {
			CHECK_EQ(rc, -EMFILE);
		} else {
			CHECK_EQ(found.holders.holders_n, 1);
			CHECK_EQ(found.holders.holders[0].pid, holder);
			shared_look_free(&found);
		}
		close(fds[i]);
	}
	CHECK_OK(rc);
	end(holder);
}
