/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "freeze_target.h"

#include <fcntl.h>
#include <sys/sysmacros.h>

static void body_waits(struct memory *memory)
{
	atomic_store(&memory->ready, 1);
	for (;;)
		pause();
}

static const struct mapping *mapping_of(const struct mapper_list *list, pid_t pid, size_t n)
{
	for (size_t i = 0; i < list->mappings_n; i++)
		if (list->mappings[i].pid == pid && n-- == 0)
			return &list->mappings[i];
	return NULL;
}

static bool has_pid(const struct pid_list *list, pid_t pid)
{
	for (size_t i = 0; i < list->pids_n; i++)
		if (list->pids[i] == pid)
			return true;
	return false;
}

TEST(one_process_not_ourselves)
{
	struct target target = target_start(body_waits);
	struct mapper_list list;

	wait_for(&target.memory->ready);
	CHECK_OK(mappers_find(&target.file, 1, &list));
	CHECK_EQ(list.pids.pids_n, 1);
	CHECK_EQ(list.pids.pids[0], target.pid);
	CHECK_EQ(list.mappings_n, 1);
	CHECK_EQ(list.mappings[0].pid, target.pid);
	CHECK_EQ(list.mappings[0].addr, (uintptr_t)target.memory); /* a fork has it where we have it */
	CHECK_EQ(list.mappings[0].size_bytes, 4096);
	CHECK_EQ(list.mappings[0].offset_bytes, 0);
	CHECK_EQ(list.mappings[0].file_idx, 0);
	mappers_free(&list);
	target_end(&target);
	CHECK_OK(mappers_find(&target.file, 1, &list));
	CHECK_EQ(list.pids.pids_n + list.mappings_n, 0);
	mappers_free(&list);
	CHECK_OK(mappers_find(NULL, 0, &list));
	CHECK_EQ(list.pids.pids_n + list.mappings_n, 0);
	mappers_free(&list);
}

static int memfds[2];
static char *pieces; /* 64 pages of address space, reserved before the fork */

static void map_piece(size_t at_page, size_t pages, int fd, long offset_pages, int flags)
{
	char *addr = pieces + (at_page << 12);

	CHECK(mmap(addr, pages << 12, PROT_READ, flags | MAP_FIXED, fd, offset_pages << 12) == addr);
}

/* Pieces of two files, out of order, one of them private; and a name that would be a line of its own, were
 * it not escaped. */
static void body_pieces(struct memory *memory)
{
	int named = memfd_create("x\n10000-20000 rw-s 00000000 00:01 1 y", MFD_CLOEXEC);

	map_piece(0, 1, named, 0, MAP_SHARED);
	map_piece(1, 2, memfds[1], 5, MAP_SHARED);
	map_piece(8, 1, memfds[0], 3, MAP_SHARED);
	map_piece(16, 4, memfds[0], 0, MAP_PRIVATE);
	map_piece(32, 4, memfds[0], 0, MAP_SHARED);
	body_waits(memory);
}

TEST(several_mappings_of_several_files)
{
	static const struct mapping want[] = {
		{ .addr = 0x1000, .size_bytes = 0x2000, .offset_bytes = 0x5000, .file_idx = 1 },
		{ .addr = 0x8000, .size_bytes = 0x1000, .offset_bytes = 0x3000, .file_idx = 0 },
		{ .addr = 0x10000,
		  .size_bytes = 0x4000,
		  .offset_bytes = 0,
		  .file_idx = 0,
		  .is_private = true },
		{ .addr = 0x20000, .size_bytes = 0x4000, .offset_bytes = 0, .file_idx = 0 },
	};
	struct mapped_file files[2];
	struct mapper_list list;
	struct target target;

	for (int i = 0; i < 2; i++) {
		memfds[i] = (int)CHECK_SYS(memfd_create("ram", MFD_CLOEXEC));
		CHECK_SYS(ftruncate(memfds[i], 16 << 12));
		CHECK_OK(mappers_file_of(memfds[i], &files[i]));
	}
	pieces = mmap(NULL, 64 << 12, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(pieces != MAP_FAILED);
	target = target_start(body_pieces);
	wait_for(&target.memory->ready);
	CHECK_OK(mappers_find(files, 2, &list));
	CHECK_EQ(list.pids.pids_n, 1);
	CHECK_EQ(list.mappings_n, 4);
	for (size_t i = 0; i < 4; i++) {
		const struct mapping *got = mapping_of(&list, target.pid, i);

		CHECK(got != NULL);
		CHECK_EQ(got->addr - (uintptr_t)pieces, want[i].addr);
		CHECK_EQ(got->size_bytes, want[i].size_bytes);
		CHECK_EQ(got->offset_bytes, want[i].offset_bytes);
		CHECK_EQ(got->file_idx, want[i].file_idx);
		CHECK_EQ(got->is_private, want[i].is_private);
	}
	mappers_free(&list);
	target_end(&target);
}

static void body_private(struct memory *memory)
{
	map_piece(0, 16, memfds[0], 0, MAP_PRIVATE);
	body_waits(memory);
}

/* It cannot write to the file, so nobody has to stop it. */
TEST(who_maps_privately_is_listed_and_not_frozen)
{
	struct mapped_file file;
	struct mapper_list list;
	struct target target;

	memfds[0] = (int)CHECK_SYS(memfd_create("ram", MFD_CLOEXEC));
	CHECK_SYS(ftruncate(memfds[0], 16 << 12));
	CHECK_OK(mappers_file_of(memfds[0], &file));
	pieces = mmap(NULL, 64 << 12, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(pieces != MAP_FAILED);
	target = target_start(body_private);
	wait_for(&target.memory->ready);
	CHECK_OK(mappers_find(&file, 1, &list));
	CHECK_EQ(list.pids.pids_n, 0);
	CHECK_EQ(list.mappings_n, 1);
	CHECK_EQ(list.mappings[0].pid, target.pid);
	CHECK(list.mappings[0].is_private);
	mappers_free(&list);
	target_end(&target);
}

/* fstat() and maps must give a memfd the same device number, for plain and for huge pages. */
static void check_numbers_agree(unsigned flags)
{
	char line[512], name[32];
	unsigned major_number, minor_number;
	struct mapped_file file;
	unsigned long ino;
	bool seen = false;
	void *addr;
	FILE *maps;
	int fd = (int)CHECK_SYS(memfd_create("numbers", flags));

	CHECK_OK(mappers_file_of(fd, &file));
	CHECK_SYS(ftruncate(fd, 2 << 20));
	addr = mmap(NULL, 2 << 20, PROT_NONE, MAP_SHARED | MAP_NORESERVE, fd, 0);
	CHECK(addr != MAP_FAILED);
	snprintf(name, sizeof name, "%lx-", (unsigned long)addr);
	maps = fopen("/proc/self/maps", "re");
	while (fgets(line, sizeof line, maps)) {
		if (strncmp(line, name, strlen(name)))
			continue;
		CHECK_EQ(sscanf(line, "%*s %*s %*s %x:%x %lu", &major_number, &minor_number, &ino), 3);
		CHECK_EQ(file.dev, makedev(major_number, minor_number));
		CHECK_EQ(file.ino, ino);
		seen = true;
	}
	CHECK(seen);
	fclose(maps);
	munmap(addr, 2 << 20);
	close(fd);
}

TEST(device_numbers_agree_with_fstat)
{
	struct mapped_file file;

	check_numbers_agree(0);
	check_numbers_agree(MFD_HUGETLB);
	CHECK_EQ(mappers_file_of(-1, &file), -EBADF);
}

static void body_leader_ends(struct memory *memory)
{
	pthread_t thread;

	CHECK_EQ(pthread_create(&thread, NULL, count_forever, memory), 0);
	wait_for(&memory->go);
	syscall(SYS_exit, 0);
}

TEST(zombie_leader_still_maps_and_zombie_process_does_not)
{
	struct target target = target_start(body_leader_ends);
	struct mapper_list list;

	atomic_store(&target.memory->go, 1);
	wait_for_state(target.pid, target.pid, 'Z');
	CHECK_OK(mappers_find(&target.file, 1, &list));
	CHECK_EQ(list.mappings_n, 1);
	CHECK(has_pid(&list.pids, target.pid));
	mappers_free(&list);
	CHECK_SYS(kill(target.pid, SIGKILL));
	CHECK_SYS(waitid(P_PID, (id_t)target.pid, &(siginfo_t){ 0 }, WEXITED | WNOWAIT));
	CHECK_OK(mappers_find(&target.file, 1, &list));
	CHECK_EQ(list.mappings_n, 0);
	CHECK(!has_pid(&list.unreadable, target.pid));
	mappers_free(&list);
	target_end(&target);
}

static void body_many_maps(struct memory *memory)
{
	/* Alternating protections, so that the kernel cannot merge them: 20000 lines, more than 1 MiB of
	 * text. */
	for (int i = 0; i < 20000; i++)
		CHECK(mmap(NULL, 4096, i % 2 ? PROT_READ : PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) !=
		      MAP_FAILED);
	map_piece(0, 1, memfds[0], 0, MAP_SHARED);
	body_waits(memory);
}

TEST(a_process_with_very_many_mappings)
{
	struct mapper_list list;
	struct mapped_file files[2];
	struct target target;

	memfds[0] = (int)CHECK_SYS(memfd_create("ram", MFD_CLOEXEC));
	CHECK_SYS(ftruncate(memfds[0], 4096));
	CHECK_OK(mappers_file_of(memfds[0], &files[0]));
	pieces = test_pages(1);
	target = target_start(body_many_maps);
	files[1] = target.file;
	wait_for(&target.memory->ready);
	CHECK_OK(mappers_find(files, 2, &list));
	CHECK_EQ(list.mappings_n, 2);
	for (size_t i = 0; i < 2; i++)
		CHECK_EQ(list.mappings[i].addr,
			 list.mappings[i].file_idx == 0 ? (uintptr_t)pieces : (uintptr_t)target.memory);
	mappers_free(&list);
	target_end(&target);
}

TEST(unreadable_is_said)
{
	struct target target = target_start(body_waits);
	struct mapper_list list;
	int status;
	pid_t pid;

	if (geteuid() != 0)
		test_skip("needs root, to become a user who may not read the target's maps");
	wait_for(&target.memory->ready);
	pid = fork();
	if (pid == 0) {
		CHECK_SYS(setresuid(65534, 65534, 65534));
		CHECK_OK(mappers_find(&target.file, 1, &list));
		CHECK(has_pid(&list.unreadable, target.pid));
		CHECK(!has_pid(&list.pids, target.pid));
		mappers_free(&list);
		_exit(0);
	}
	CHECK_SYS(waitpid(pid, &status, 0));
	CHECK_EQ(status, 0);
	target_end(&target);
}

static void body_come_and_go(struct memory *memory)
{
	for (;;) {
		if (fork() == 0)
			_exit(0);
		while (waitpid(-1, NULL, 0) > 0)
			;
		atomic_fetch_add(&memory->counters[0], 1);
	}
}

TEST(processes_that_vanish)
{
	struct target target = target_start(body_come_and_go);
	struct mapper_list list;

	for (int round = 0; round < 30; round++) {
		wait_until_moving(target.memory, 1);
		CHECK_OK(mappers_find(&target.file, 1, &list));
		CHECK(has_pid(&list.pids, target.pid));
		CHECK(!has_pid(&list.unreadable, target.pid));
		mappers_free(&list);
	}
	target_end(&target);
}

TEST(out_of_file_descriptors_is_an_error_not_an_empty_list)
{
	struct target target = target_start(body_waits);
	struct mapper_list list;

	wait_for(&target.memory->ready);
	while (dup(0) >= 0)
		;
	CHECK_EQ(mappers_find(&target.file, 1, &list), -EMFILE);
	CHECK_SYS(close_range(3, ~0U, 0));
	target_end(&target);
}

TEST(task_names_cannot_mislead)
{
	struct procfs_task info;
	char wait_channel[8];

	CHECK_SYS(prctl(PR_SET_NAME, "a) Z (\n"));
	CHECK_OK(procfs_task(getpid(), getpid(), &info));
	CHECK_EQ(info.state, 'R');
	CHECK(!strcmp(info.name, "a) Z (?"));
	CHECK_EQ(procfs_task(getpid(), 1, &info), -ENOENT);
	CHECK_EQ(procfs_tracer(getpid(), 1), 0);
	procfs_wait_channel(getpid(), 1, wait_channel, sizeof wait_channel);
	CHECK(!strcmp(wait_channel, "?"));
}
