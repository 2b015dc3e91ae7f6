/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Which settings make a swap-out treat 2 MiB of guest memory as one, where its way of seeing pins does not
 * see folios. */
#include <glob.h>

#include "large_folios.h"
#include "puppet.h"

static const struct layout plain = { .memfd_pages = { 1024 }, .regions = { { 0, 0, 1024 } }, .full = 1 };
static const struct layout on_tmpfs = {
	.memfd_pages = { 1024 }, .regions = { { 0, 0, 1024 } }, .full = 1, .huge = 1
};

#define HOT 3

/* The switches of the single sizes are the machine's own, and say nothing here. */
static void need_sizes_off(void)
{
	glob_t found;

	if (glob("/sys/kernel/mm/transparent_hugepage/hugepages-*/shmem_enabled", 0, NULL, &found) != 0)
		return;
	for (size_t i = 0; i < found.gl_pathc; i++) {
		char text[128] = "";
		FILE *file = fopen(found.gl_pathv[i], "re");

		CHECK(file && fgets(text, sizeof text, file));
		fclose(file);
		if (!strstr(text, "[never]") && !strstr(text, "[inherit]"))
			test_skip("%s is neither never nor inherit", found.gl_pathv[i]);
	}
	globfree(&found);
}

/* What the engine reads of the general setting from now on, in our own mount namespace. */
static void show_setting(const char *setting)
{
	static char path[300];
	bool is_first = !path[0];
	int fd;

	snprintf(path, sizeof path, "%s/shmem_enabled", test_dir());
	fd = (int)CHECK_SYS(open(path, O_CREAT | O_WRONLY | O_TRUNC | O_CLOEXEC, 0600));
	CHECK_EQ(dprintf(fd, "always [%s] other\n", setting), (int)strlen(setting) + 16);
	close(fd);
	if (is_first)
		CHECK_SYS(mount(path, SHMEM_SETTING, NULL, MS_BIND, NULL));
}

static void start(struct rig *rig, const struct layout *layout, const char *setting)
{
	test_private_mounts();
	if (access(SHMEM_SETTING, F_OK))
		test_skip("this kernel has no large folios in shared memory");
	need_sizes_off();
	show_setting(setting);
	rig_start(rig, layout);
}

/* How many pages of the first window stay, where the guest writes to one of them. */
static uint64_t pages_that_stay(struct rig *rig)
{
	uint64_t stay;

	rig_start_job_until(rig, JOB_SWAP_OUT, "evict.read");
	puppet_do(rig, 0, 0, (struct puppet_order){ .kind = ORDER_WRITE, .page = HOT });
	rig_disarm("evict.read");
	rig_end_job(rig);
	stay = rig_resident_pages(rig, 0, 512);
	rig_run_job(rig, JOB_SWAP_IN);
	puppet_check_all(rig, 0);
	CHECK_EQ(rig->odd, 0);
	return stay;
}

static void memfd_with(const char *setting, uint64_t stay)
{
	struct rig rig;

	start(&rig, &plain, setting);
	CHECK_EQ(pages_that_stay(&rig), stay);
	rig_stop(&rig);
}

TEST(memfd_never)
{
	memfd_with("never", 1);
}

TEST(memfd_deny)
{
	memfd_with("deny", 1);
}

TEST(memfd_always)
{
	memfd_with("always", 512);
}

TEST(memfd_within_size)
{
	memfd_with("within_size", 512);
}

TEST(memfd_advise)
{
	memfd_with("advise", 512);
}

TEST(memfd_force)
{
	memfd_with("force", 512);
}

static void tmpfs_with(const char *policy, const char *setting, uint64_t stay)
{
	char options[64];
	struct rig rig;

	test_private_mounts();
	snprintf(options, sizeof options, "huge=%s", policy);
	if (mount("vmmswap-test", test_dir(), "tmpfs", 0, options))
		test_skip("this kernel has no tmpfs with %s (%s)", options, strerror(errno));
	start(&rig, &on_tmpfs, setting);
	CHECK_EQ(pages_that_stay(&rig), stay);
	rig_stop(&rig);
}

TEST(tmpfs_never)
{
	tmpfs_with("never", "never", 1);
}

TEST(tmpfs_always)
{
	tmpfs_with("always", "never", 512);
}

TEST(tmpfs_within_size)
{
	tmpfs_with("within_size", "never", 512);
}

TEST(tmpfs_advise)
{
	tmpfs_with("advise", "never", 512);
}

/* The general setting is that of memfds, not of what somebody has mounted. */
TEST(tmpfs_never_where_memfds_always)
{
	tmpfs_with("never", "always", 1);
}

/* Switched on, and off again, while the VM lives: folios that were made meanwhile are still there. */
TEST(a_setting_that_is_switched)
{
	struct rig rig;

	start(&rig, &plain, "never");
	CHECK_EQ(pages_that_stay(&rig), 1);
	show_setting("always");
	CHECK_EQ(pages_that_stay(&rig), 512);
	show_setting("never");
	CHECK_EQ(pages_that_stay(&rig), 512);
	rig_stop(&rig);
}
