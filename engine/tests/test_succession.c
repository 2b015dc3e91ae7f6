/* SPDX-License-Identifier: GPL-2.0-or-later */
/* An engine that is killed while it waits for the lock of a memfd's inode punches all the same, once it has
 * that. */
#include "inode_lock.h"
#include <sys/socket.h>

#include "linux/procfs.h"

static const struct layout layout = { .memfd_pages = { 513 }, .regions = { { 0, 0, 512 } }, .full = 1 };

static void create_engine(struct rig *rig, int page_map_fd, int store_fd)
{
	struct engine_config config = { .swap_dir = "/tmp",
					.workers = 1,
					.fault_threads = 2,
					.page_map_fd = page_map_fd,
					.store_fd = store_fd };
	struct error err = { 0 };

	if (engine_create(&config, &rig->engine, &err))
		FAIL("engine_create: %s", err.message);
	CHECK_OK(engine_add_region(rig->engine, rig->memfds[0], 0, bytes_of_pages(512), &rig->first_idx[0],
				   &err));
	CHECK_OK(rig_add_process(rig, 0, &err));
}

/* Tells its page map and store, is held with pages marked, and goes on when it is told. */
static void be_predecessor(struct rig *rig, int told)
{
	struct error err = { 0 };
	int fds[2];
	char go;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	create_engine(rig, -1, -1);
	CHECK_OK(engine_start(rig->engine, &err));
	rig_start_job_until(rig, JOB_SWAP_OUT, "evict.marked");
	fds[0] = engine_page_map_fd(rig->engine);
	fds[1] = engine_store_fd(rig->engine);
	CHECK_EQ(write(told, fds, sizeof fds), sizeof fds);
	CHECK_EQ(read(told, &go, 1), 1);
	rig_disarm("evict.marked");
	pause();
}

/* Until one of its threads waits for the lock of the inode; the kernel may show the semaphore, or who wants
 * it. */
static void await_punch(pid_t pid)
{
	for (int tries = 0; tries < 30000; tries++) {
		char path[64], where[64];
		struct dirent *entry;
		DIR *tasks;

		snprintf(path, sizeof path, "/proc/%d/task", pid);
		tasks = opendir(path);
		CHECK(tasks != NULL);
		while ((entry = readdir(tasks))) {
			procfs_wait_channel(pid, atoi(entry->d_name), where, sizeof where);
			if (strstr(where, "rwsem") || strstr(where, "fallocate")) {
				closedir(tasks);
				return;
			}
		}
		closedir(tasks);
		poll(NULL, 0, 1);
	}
	test_skip("no thread is shown to wait for the lock of the inode");
}

TEST(killed_while_its_punch_waits)
{
	int told[2], fds[2], pidfd;
	uint64_t out_pages;
	struct inode_lock lock;
	struct error err = { 0 };
	uint32_t last_job;
	struct rig rig;
	pid_t pid;

	rig_start_guest(&rig, &layout);
	CHECK_SYS(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, told));
	pid = (pid_t)CHECK_SYS(fork());
	if (pid == 0)
		be_predecessor(&rig, told[1]);
	CHECK_EQ(read(told[0], fds, sizeof fds), sizeof fds);
	pidfd = (int)CHECK_SYS(syscall(SYS_pidfd_open, pid, 0));
	for (int i = 0; i < 2; i++)
		fds[i] = (int)CHECK_SYS(syscall(SYS_pidfd_getfd, pidfd, fds[i], 0));
	inode_lock_take(&lock, rig.memfds[0], 512);
	CHECK_EQ(write(told[0], "", 1), 1);
	await_punch(pid);
	CHECK_SYS(kill(pid, SIGKILL));

	create_engine(&rig, fds[0], fds[1]);
	CHECK_EQ(engine_recover(rig.engine, &out_pages, &last_job, &err), -EBUSY);
	inode_lock_release(&lock);
	CHECK_EQ(waitpid(pid, NULL, 0), pid);
	CHECK_OK(engine_recover(rig.engine, &out_pages, &last_job, &err));
	CHECK_EQ(out_pages, 512);
	CHECK_EQ(rig_resident_pages(&rig, 0, 512), 0);
	CHECK_OK(engine_start(rig.engine, &err));
	puppet_check_all(&rig, 0);
	rig_stop(&rig);
}
