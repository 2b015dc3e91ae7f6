/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The threads that serve page faults get a processor as soon as they wake up. */
#include "linux/time_slice.h"

#include <dirent.h>

#include "puppet.h"

static const struct layout layout = { .memfd_pages = { 64 }, .regions = { { 0, 0, 64 } }, .six_threads = 1 };

/* Of a thread; 0: the kernel has one for all. */
static uint64_t slice_ns(pid_t thread)
{
	uint32_t attributes[12] = { sizeof attributes };
	uint64_t runtime_ns;

	CHECK_SYS(syscall(SYS_sched_getattr, thread, attributes, sizeof attributes, 0));
	memcpy(&runtime_ns, &attributes[6], sizeof runtime_ns);
	return runtime_ns;
}

static unsigned threads_with(uint64_t wanted_ns)
{
	DIR *tasks = opendir("/proc/self/task");
	struct dirent *entry;
	unsigned n = 0;

	CHECK(tasks);
	while ((entry = readdir(tasks)))
		n += entry->d_name[0] != '.' && slice_ns((pid_t)atoi(entry->d_name)) == wanted_ns;
	closedir(tasks);
	return n;
}

static void *shorten(void *before_ns)
{
	*(uint64_t *)before_ns = slice_ns(0);
	time_slice_shorten();
	return (void *)(uintptr_t)slice_ns(0);
}

TEST(fault_threads_have_the_shortest)
{
	uint64_t before_ns = 0;
	pthread_t thread;
	void *after_ns;
	struct rig rig;

	CHECK_OK(pthread_create(&thread, NULL, shorten, &before_ns));
	CHECK_OK(pthread_join(thread, &after_ns));
	if (!before_ns) { /* before Linux 6.12: no effect, and no harm */
		CHECK_EQ((uintptr_t)after_ns, 0);
		return;
	}
	CHECK((uintptr_t)after_ns < before_ns);
	CHECK_EQ(threads_with((uintptr_t)after_ns), 0);
	rig_start(&rig, &layout);
	while (threads_with((uintptr_t)after_ns) < 6)
		sched_yield();
	puppet_check_all(&rig, 0);
	rig_stop(&rig);
}
