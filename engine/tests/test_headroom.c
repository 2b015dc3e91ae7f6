/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "linux/headroom.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "harness.h"

#define MIB ((uint64_t)1 << 20)

static char root[4096];

static void write_file(const char *name, const char *text)
{
	char path[4200];
	FILE *file;

	snprintf(path, sizeof path, "%s/%s", root, name);
	for (char *at = path + strlen(root) + 1; (at = strchr(at, '/')); *at++ = '/') {
		*at = 0;
		mkdir(path, 0755);
	}
	file = fopen(path, "w");
	CHECK(file != NULL);
	fputs(text, file);
	fclose(file);
}

/* A process in group /a/b of a hierarchy that is mounted at ROOT/cg. */
static struct headroom *make(const char *kind, const char *options, const char *cgroups)
{
	char mounts[8600], proc[4200];

	snprintf(root, sizeof root, "%s/headroom-XXXXXX", test_dir());
	CHECK(mkdtemp(root) != NULL);
	snprintf(mounts, sizeof mounts, "proc /proc proc rw 0 0\nnone %s/cg %s %s 0 0\n", root, kind,
		 options);
	write_file("proc/meminfo", "MemTotal:  8388608 kB\nMemFree: 10 kB\nMemAvailable:   1048576 kB\n");
	write_file("proc/self/mounts", mounts);
	write_file("proc/self/cgroup", cgroups);
	snprintf(proc, sizeof proc, "%s/proc", root);
	return headroom_create(proc);
}

TEST(without_a_limit_it_is_what_the_host_has)
{
	struct headroom *headroom = make("cgroup2", "rw", "0::/a/b\n");

	CHECK_EQ(headroom_bytes(headroom), 1024 * MIB);
	write_file("cg/a/memory.max", "max\n");
	write_file("cg/a/memory.current", "1000\n");
	CHECK_EQ(headroom_bytes(headroom), 1024 * MIB);
	headroom_destroy(headroom);
}

TEST(the_tightest_limit_of_version_2_counts)
{
	struct headroom *headroom = make("cgroup2", "rw", "0::/a/b\n");

	write_file("cg/a/memory.max", "104857600\n");
	write_file("cg/a/memory.current", "52428800\n");
	CHECK_EQ(headroom_bytes(headroom), 50 * MIB);
	write_file("cg/a/memory.high", "62914560\n");
	CHECK_EQ(headroom_bytes(headroom), 10 * MIB);
	write_file("cg/a/b/memory.max", "4194304\n");
	write_file("cg/a/b/memory.current", "3145728\n");
	CHECK_EQ(headroom_bytes(headroom), 1 * MIB);
	write_file("cg/a/b/memory.current", "5242880\n"); /* above it */
	CHECK_EQ(headroom_bytes(headroom), 0);
	write_file("cg/a/b/memory.stat", "anon 1\ninactive_file 2097152\nactive_file 9\n");
	CHECK_EQ(headroom_bytes(headroom), 1 * MIB);
	headroom_destroy(headroom);
}

TEST(version_1_says_no_limit_by_a_huge_number)
{
	struct headroom *headroom =
		make("cgroup", "rw,memory", "7:cpu,cpuacct:/other\n4:memory:/a/b\n0::/unified\n");

	write_file("cg/a/b/memory.limit_in_bytes", "9223372036854771712\n");
	write_file("cg/a/b/memory.usage_in_bytes", "1048576\n");
	CHECK_EQ(headroom_bytes(headroom), 1024 * MIB);
	write_file("cg/memory.limit_in_bytes", "4194304\n");
	write_file("cg/memory.usage_in_bytes", "1048576\n");
	CHECK_EQ(headroom_bytes(headroom), 3 * MIB);
	write_file("cg/other/memory.limit_in_bytes", "1\n");
	write_file("cg/other/memory.usage_in_bytes", "1\n");
	CHECK_EQ(headroom_bytes(headroom), 3 * MIB);
	headroom_destroy(headroom);
}

TEST(a_process_without_proc_has_no_limit)
{
	struct headroom *headroom = headroom_create("/nowhere");

	CHECK_EQ(headroom_bytes(headroom), UINT64_MAX);
	headroom_destroy(headroom);
}

TEST(this_process_has_some)
{
	struct headroom *headroom = headroom_create("/proc");

	CHECK(headroom_bytes(headroom) > 0);
	headroom_destroy(headroom);
}
