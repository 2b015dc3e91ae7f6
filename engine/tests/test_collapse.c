// SPDX-License-Identifier: GPL-2.0-or-later
#include "linux/collapse.h"

#include <linux/userfaultfd.h>
#include <sys/ioctl.h>

#include "base/units.h"
#include "harness.h"

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

/* Guest memory as the engine has it: watched, a few pages resident, the rest out. */
struct guest {
	int memfd;
	uint8_t *map;
};

static struct guest open_guest(void)
{
	struct uffdio_api api = { .api = UFFD_API };
	struct uffdio_register reg = { .mode = UFFDIO_REGISTER_MODE_MISSING };
	struct guest g = { .memfd = memfd_create("guest", MFD_CLOEXEC) };
	int uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	uint8_t *reserve;

	if (uffd < 0)
		test_skip("needs userfaultfd (%s)", strerror(errno));
	CHECK_SYS(g.memfd);
	CHECK_SYS(ftruncate(g.memfd, CHUNK_BYTES));
	reserve = mmap(NULL, 2 * CHUNK_BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(reserve != MAP_FAILED);
	g.map = (uint8_t *)(((uintptr_t)reserve + CHUNK_BYTES - 1) & ~(uintptr_t)(CHUNK_BYTES - 1));
	CHECK(mmap(g.map, CHUNK_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, g.memfd, 0) == g.map);
	if (madvise(g.map, CHUNK_BYTES, MADV_NOHUGEPAGE))
		test_skip("needs a kernel with huge pages");
	for (int i = 0; i < 16; i++)
		g.map[3 * i * PAGE_BYTES] = 1;
	CHECK_SYS(ioctl(uffd, UFFDIO_API, &api));
	reg.range.start = (uintptr_t)g.map;
	reg.range.len = CHUNK_BYTES;
	CHECK_SYS(ioctl(uffd, UFFDIO_REGISTER, &reg));
	return g;
}

static uint64_t pages_after_collapse(const struct guest *g)
{
	struct stat status;

	madvise(g->map, CHUNK_BYTES, MADV_COLLAPSE);
	CHECK_SYS(fstat(g->memfd, &status));
	return (uint64_t)status.st_blocks / 8;
}

/* The answer is about memory of other shape than the one that was tried. */
TEST(the_answer_is_true_of_guest_memory)
{
	struct guest g = open_guest();
	struct error err = { 0 };
	int answer = collapse_try_holes(&err);

	CHECK(answer >= 0);
	if (answer == COLLAPSE_UNKNOWN)
		test_skip("nothing can be collapsed here now");
	CHECK_SYS(madvise(g.map, CHUNK_BYTES, MADV_HUGEPAGE));
	CHECK_EQ(pages_after_collapse(&g), answer == COLLAPSE_FILLS_HOLES ? CHUNK_PAGES : 16);
}

/* What vmmswap asks for where the kernel fills holes: it must suffice on every kernel. */
TEST(memory_without_huge_pages_is_not_collapsed)
{
	struct guest g = open_guest();

	CHECK_EQ(pages_after_collapse(&g), 16);
}

TEST(a_process_without_huge_pages_collapses_nothing)
{
	struct guest g = open_guest();

	CHECK_SYS(madvise(g.map, CHUNK_BYTES, MADV_HUGEPAGE));
	CHECK_SYS(prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0));
	CHECK_EQ(pages_after_collapse(&g), 16);
}

static void write_setting(const char *name, const char *value)
{
	char path[200];
	int fd;

	snprintf(path, sizeof path, "/sys/kernel/mm/transparent_hugepage/%s", name);
	fd = (int)CHECK_SYS(open(path, O_WRONLY | O_CLOEXEC));
	CHECK_EQ(write(fd, value, strlen(value)), (ssize_t)strlen(value));
	close(fd);
}

/* A number, or the word in brackets, such as `never`. */
static void read_setting(const char *name, char value[128])
{
	char path[200], text[128], *bracket;
	FILE *file;

	snprintf(path, sizeof path, "/sys/kernel/mm/transparent_hugepage/%s", name);
	file = fopen(path, "re");
	CHECK(file && fgets(text, sizeof text, file));
	fclose(file);
	bracket = strchr(text, '[');
	strcpy(value, bracket ? bracket + 1 : text);
	value[strcspn(value, "]\n")] = '\0';
}

static uint64_t khugepaged_scans(void)
{
	FILE *file = fopen("/sys/kernel/mm/transparent_hugepage/khugepaged/full_scans", "re");
	unsigned long long scans;

	CHECK(file && fscanf(file, "%llu", &scans) == 1);
	fclose(file);
	return scans;
}

static uint64_t pages_of(const struct guest *g)
{
	struct stat status;

	CHECK_SYS(fstat(g->memfd, &status));
	return (uint64_t)status.st_blocks / 8;
}

/* The kernel by itself, asked by nobody. The settings are the machine's: on a kernel of our own only. */
TEST(khugepaged_collapses_nothing_without_huge_pages)
{
	struct guest forbidden, allowed;
	struct error err = { 0 };
	char setting[128], sleep_ms[128], none_max[128];
	uint64_t scans;
	bool fills;

	if (!getenv("VMMSWAP_OWN_KERNEL"))
		test_skip("needs a kernel of its own (tests/kernels)");
	read_setting("shmem_enabled", setting);
	read_setting("khugepaged/scan_sleep_millisecs", sleep_ms);
	read_setting("khugepaged/max_ptes_none", none_max);
	write_setting("shmem_enabled", "always");
	write_setting("khugepaged/scan_sleep_millisecs", "10");
	write_setting("khugepaged/max_ptes_none", "511");
	fills = collapse_try_holes(&err) == COLLAPSE_FILLS_HOLES;
	forbidden = open_guest();
	allowed = open_guest();
	CHECK_SYS(madvise(allowed.map, CHUNK_BYTES, MADV_HUGEPAGE));
	if (fills) /* the case's own time limit ends a wait in vain */
		while (pages_of(&allowed) != CHUNK_PAGES)
			usleep(10000);
	scans = khugepaged_scans();
	while (khugepaged_scans() < scans + 2)
		usleep(10000);
	CHECK_EQ(pages_of(&forbidden), 16);
	CHECK_EQ(pages_of(&allowed), fills ? CHUNK_PAGES : 16);
	write_setting("shmem_enabled", setting);
	write_setting("khugepaged/scan_sleep_millisecs", sleep_ms);
	write_setting("khugepaged/max_ptes_none", none_max);
}

/* Whoever boots a kernel of their own sets it: this setting is the whole machine's. */
TEST(deny_is_for_all)
{
	static const char setting[] = "/sys/kernel/mm/transparent_hugepage/shmem_enabled";
	FILE *file = fopen(setting, "re");
	struct error err = { 0 };
	struct guest g = open_guest();
	char text[128];

	if (!file || !fgets(text, sizeof text, file) || !strstr(text, "[deny]"))
		test_skip("needs a machine whose shmem_enabled is deny");
	CHECK_EQ(collapse_try_holes(&err), COLLAPSE_UNKNOWN);
	CHECK_SYS(madvise(g.map, CHUNK_BYTES, MADV_HUGEPAGE));
	CHECK_EQ(pages_after_collapse(&g), 16);
}
