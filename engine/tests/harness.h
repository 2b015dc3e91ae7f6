/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A small test harness: TEST(name) { ... CHECK(...) }, and no main().
 *
 * Each case runs in a process of its own, so that it may crash, kill itself, change limits or mount things in
 * a mount namespace (test_private_mounts) without touching the others. A case that does not end in 120 s is
 * killed; VMMSWAP_TEST_PATIENCE=N gives it N times as long. Exit status: 0 all passed, 1 something failed, 77
 * every case was skipped. Arguments are the names of the cases to run; none: all of them, in the order of the
 * file. */
#ifndef VMMSWAP_TESTS_HARNESS_H
#define VMMSWAP_TESTS_HARNESS_H

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define TEST_CASES_MAX 128
#define TEST_TIMEOUT_S 120
#define TEST_SKIPPED 77

struct test_case {
	const char *name;
	void (*run)(void);
};

static struct test_case test_cases[TEST_CASES_MAX];
static size_t test_cases_n;
static const char *test_name;	/* the running case's */
static char test_dir_path[256]; /* the running case's */

#define TEST(name)                                                          \
	static void test_##name(void);                                      \
	__attribute__((constructor)) static void test_register_##name(void) \
	{                                                                   \
		test_register(#name, test_##name);                          \
	}                                                                   \
	static void test_##name(void)

/* All of these end the case. Values are printed. */
#define CHECK(cond) ((cond) ? (void)0 : test_fail(__FILE__, __LINE__, "%s", #cond))
#define CHECK_EQ(got, want) \
	test_check_eq(__FILE__, __LINE__, #got, #want, (long long)(got), (long long)(want))
/* A call that returns 0 or -errno, respectively -1 with errno. */
#define CHECK_OK(call) test_check_ok(__FILE__, __LINE__, #call, (call))
#define CHECK_SYS(call) test_check_sys(__FILE__, __LINE__, #call, (long)(call))
/* CHECK(strstr(text, part)), with the text shown. */
#define CHECK_CONTAINS(text, part) test_check_contains(__FILE__, __LINE__, text, part)

static inline void test_register(const char *name, void (*run)(void))
{
	if (test_cases_n == TEST_CASES_MAX)
		abort();
	test_cases[test_cases_n++] = (struct test_case){ name, run };
}

__attribute__((format(printf, 3, 4), noreturn)) static inline void test_fail(const char *file, int line,
									     const char *format, ...)
{
	va_list args;

	fprintf(stderr, "%s:%d: failed: ", file, line);
	va_start(args, format);
	vfprintf(stderr, format, args);
	va_end(args);
	fputc('\n', stderr);
	fflush(NULL);
	_exit(1);
}

/* The case cannot run on this machine; say which privilege or feature is missing. */
__attribute__((format(printf, 1, 2), noreturn)) static inline void test_skip(const char *format, ...)
{
	va_list args;

	printf("skip: %s: ", test_name);
	va_start(args, format);
	vprintf(format, args);
	va_end(args);
	putchar('\n');
	exit(TEST_SKIPPED);
}

static inline void test_check_eq(const char *file, int line, const char *got_text, const char *want_text,
				 long long got, long long want)
{
	if (got != want)
		test_fail(file, line, "%s is %lld, not %s (%lld)", got_text, got, want_text, want);
}

static inline void test_check_ok(const char *file, int line, const char *text, int rc)
{
	if (rc)
		test_fail(file, line, "%s: %d %s", text, rc, strerror(-rc));
}

static inline long test_check_sys(const char *file, int line, const char *text, long rc)
{
	if (rc == -1)
		test_fail(file, line, "%s: %s", text, strerror(errno));
	return rc;
}

static inline void test_check_contains(const char *file, int line, const char *text, const char *part)
{
	if (!strstr(text, part))
		test_fail(file, line, "\"%s\" does not contain \"%s\"", text, part);
}

/* An empty directory for this case alone, on a disk or not as TMPDIR says; removed with all its files when
 * the case ends. */
static inline const char *test_dir(void)
{
	return test_dir_path;
}

/* From here on mounts of this case are invisible outside and vanish with it, however it ends. Skips
 * without CAP_SYS_ADMIN. */
static inline void test_private_mounts(void)
{
	if (unshare(CLONE_NEWNS))
		test_skip("needs CAP_SYS_ADMIN for a mount namespace (%s)", strerror(errno));
	CHECK_SYS(mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL));
}

/* n zeroed pages of 4 KiB, page aligned; to be given back with munmap. */
static inline void *test_pages(size_t n)
{
	void *pages = mmap(NULL, n << 12, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	CHECK(pages != MAP_FAILED);
	return pages;
}

/* Incompressible and reproducible: the page's bytes follow from the seed. */
static inline void test_fill_page(void *page, uint64_t seed)
{
	uint64_t x = seed * 0x9e3779b97f4a7c15u + 0x632be59bd9b4e019u;
	uint64_t *words = page;

	for (size_t i = 0; i < 512; i++) {
		x ^= x << 13;
		x ^= x >> 7;
		x ^= x << 17;
		words[i] = x;
	}
}

static inline bool test_page_is(const void *page, uint64_t seed)
{
	uint64_t want[512];

	test_fill_page(want, seed);
	return memcmp(page, want, sizeof want) == 0;
}

/* Use up all fds. Whoever closes fds[0], fds[1], ... can open as many. */
static inline void test_use_up_fds(int *fds, size_t n)
{
	struct rlimit limit;
	int fd;

	CHECK_SYS(getrlimit(RLIMIT_NOFILE, &limit));
	limit.rlim_cur = 64;
	CHECK_SYS(setrlimit(RLIMIT_NOFILE, &limit));
	for (size_t i = 0; (fd = eventfd(0, EFD_CLOEXEC)) >= 0; i++)
		fds[i < n ? i : n - 1] = fd;
	CHECK_EQ(errno, EMFILE);
}

static inline int test_remove_entry(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
	(void)st;
	(void)type;
	(void)ftw;
	return remove(path);
}

static inline void test_print_file(const char *path)
{
	char text[4096];
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t got = fd < 0 ? -1 : read(fd, text, sizeof text - 1);

	if (fd >= 0)
		close(fd);
	if (got > 0)
		fprintf(stderr, "%s: %.*s%s", path, (int)got, text, text[got - 1] == '\n' ? "" : "\n");
}

static inline void test_print_tasks(int pid)
{
	char path[300];
	struct dirent *entry;
	DIR *tasks;

	snprintf(path, sizeof path, "/proc/%d/task", pid);
	tasks = opendir(path);
	while (tasks && (entry = readdir(tasks))) {
		static const char *const files[] = { "comm", "syscall", "stack" };

		for (size_t i = 0; i < sizeof files / sizeof *files && entry->d_name[0] != '.'; i++) {
			snprintf(path, sizeof path, "/proc/%d/task/%s/%s", pid, entry->d_name, files[i]);
			test_print_file(path);
		}
	}
	if (tasks)
		closedir(tasks);
}

/* Where every thread of the group stands in the kernel. By the runner: a case that hangs cannot say so
 * itself. */
static inline void test_print_group(pid_t group)
{
	DIR *processes = opendir("/proc");
	struct dirent *entry;

	while (processes && (entry = readdir(processes))) {
		int pid = atoi(entry->d_name);

		if (pid > 0 && getpgid(pid) == group)
			test_print_tasks(pid);
	}
	if (processes)
		closedir(processes);
}

/* How many times slower than an ordinary machine this one may be: under emulation, more than once. */
static inline unsigned test_patience(void)
{
	const char *patience = getenv("VMMSWAP_TEST_PATIENCE");

	return patience && atoi(patience) > 0 ? (unsigned)atoi(patience) : 1;
}

static inline unsigned test_timeout_s(void)
{
	return TEST_TIMEOUT_S * test_patience();
}

/* For a test that says that something happened earlier than it did: times before the machine came up are
 * none. */
static inline void test_await_uptime_s(time_t uptime_s)
{
	struct timespec now;

	while (clock_gettime(CLOCK_MONOTONIC, &now) == 0 && now.tv_sec < uptime_s)
		poll(NULL, 0, 100);
}

/* A case that takes nearly all of its time hangs, as a rule. */
static inline void test_watch(const struct test_case *test, pid_t pid)
{
	struct pollfd ended = { .fd = (int)syscall(SYS_pidfd_open, pid, 0), .events = POLLIN };

	if (ended.fd < 0)
		return;
	if (poll(&ended, 1, (int)(test_timeout_s() - 10) * 1000) == 0) {
		fprintf(stderr, "%s takes long; its threads:\n", test->name);
		test_print_group(pid);
	}
	close(ended.fd);
}

static inline int test_run_case(const struct test_case *test)
{
	const char *tmp = getenv("TMPDIR");
	siginfo_t info;
	pid_t pid;

	snprintf(test_dir_path, sizeof test_dir_path, "%s/vmmswap-test-XXXXXX", tmp && *tmp ? tmp : "/tmp");
	if (!mkdtemp(test_dir_path)) {
		fprintf(stderr, "%s: %s\n", test_dir_path, strerror(errno));
		return 1;
	}
	test_name = test->name;
	fflush(NULL);
	pid = fork();
	if (pid == 0) {
		/* The runner's own death takes the case with it; the case's end takes its children, by the
		 * group. */
		setpgid(0, 0);
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		alarm(test_timeout_s());
		test->run();
		exit(0);
	}
	if (pid > 0)
		test_watch(test, pid);
	if (pid < 0 || waitid(P_PID, (id_t)pid, &info, WEXITED | WNOWAIT)) {
		perror("fork");
		return 1;
	}
	kill(-pid, SIGKILL);
	waitpid(pid, NULL, 0);
	nftw(test_dir_path, test_remove_entry, 16, FTW_DEPTH | FTW_PHYS);
	if (info.si_code == CLD_EXITED)
		return info.si_status;
	fprintf(stderr, "%s: killed by signal %d (%s)\n", test->name, info.si_status,
		strsignal(info.si_status));
	return 1;
}

static inline bool test_wanted(const char *name, char **names)
{
	if (!*names)
		return true;
	for (; *names; names++)
		if (!strcmp(*names, name))
			return true;
	return false;
}

int main(int argc, char **argv)
{
	size_t passed = 0, skipped = 0, failed = 0;

	(void)argc;
	for (size_t i = 0; i < test_cases_n; i++) {
		if (!test_wanted(test_cases[i].name, argv + 1))
			continue;
		switch (test_run_case(&test_cases[i])) {
		case 0:
			passed++;
			break;
		case TEST_SKIPPED:
			skipped++;
			break;
		default:
			failed++;
			fprintf(stderr, "%s: FAILED\n", test_cases[i].name);
		}
	}
	if (failed)
		printf("%zu failed, %zu passed, %zu skipped\n", failed, passed, skipped);
	else
		printf("%zu passed%s\n", passed, skipped ? ", some skipped" : "");
	if (failed || passed + skipped == 0)
		return 1;
	return passed ? 0 : TEST_SKIPPED;
}

#endif
