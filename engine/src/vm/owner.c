/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "vm/owner.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "linux/procfs.h"

/* Field 22 of /proc/PID/stat, in clock ticks since the host started; 0 if there is no such process. A pid is
 * used again, but never with the same start time. */
static uint64_t started(pid_t pid)
{
	unsigned long long ticks = 0;
	char path[32], text[1024];
	const char *at;
	ssize_t got;
	int fd;

	snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return 0;
	got = read(fd, text, sizeof text - 1);
	close(fd);
	text[got > 0 ? got : 0] = '\0';
	at = strrchr(text, ')'); /* the name may hold anything; fields from the third on follow */
	for (int field = 2; at && field < 22; field++)
		at = strchr(at + 1, ' ');
	return at && sscanf(at, " %llu", &ticks) == 1 ? ticks : 0;
}

void owner_take(struct page_map_header *header)
{
	atomic_store(&header->owner_pid, (uint32_t)getpid());
	atomic_store(&header->owner_started, started(getpid()));
}

bool owner_runs(const struct page_map_header *header)
{
	pid_t pid = (pid_t)atomic_load(&header->owner_pid);
	struct pid_list threads = { 0 };
	bool runs = false;
	char path[32];

	if (!pid || pid == getpid() || started(pid) != atomic_load(&header->owner_started))
		return false;
	snprintf(path, sizeof path, "/proc/%d/task", (int)pid);
	procfs_list(path, &threads);
	for (size_t i = 0; i < threads.pids_n && !runs; i++) {
		struct procfs_task task;

		runs = procfs_task(pid, threads.pids[i], &task) == 0 && task.state != 'Z' &&
		       task.state != 'X';
	}
	pid_list_free(&threads);
	return runs;
}
