/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A program for the tests of attach: threads that each do one thing again and again and notice if it was
 * disturbed.
 *
 *     attach_target STATS-FD SIZE-MIB KIND[,KIND...] [OPTION...]
 *
 * The first kind is the main thread's. Each thread counts in the shared page STATS-FD what it has done, what
 * was wrong, and system calls that ended with EINTR. Options: anonymous, private, readonly, locked, hugetlb
 * (not touched), not-forked (kept from children), working (4 MiB of private memory besides, which are kept
 * from children and are no guest's: the kinds working and working-futex use them), no-fd, twice, fork,
 * seccomp-errno, seccomp-trap, seccomp-kill (of userfaultfd), seccomp-few (all but what it needs itself is
 * killed), seccomp-back-end (the same, and what a vhost-user back-end needs is allowed).
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/futex.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define THREADS_MAX 16
#define PAGE_BYTES 4096
#define ms(n) ((n) * 1000000L)

struct counters {
	_Atomic uint64_t done, wrong, interrupted;
};

struct stats {
	_Atomic uint64_t ready, addr, size_bytes, signals, working_addr;
	struct counters threads[THREADS_MAX];
};

static struct stats *stats;
static uint64_t *memory;
static size_t memory_pages;
static _Thread_local struct counters *mine;

static void check(bool right)
{
	if (!right)
		mine->wrong++;
}

/* ---- the kinds ---- */

static uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

static void do_nanosleep(void)
{
	struct timespec wanted = { .tv_nsec = ms(20) };
	uint64_t start_ns = now_ns();

	check(nanosleep(&wanted, NULL) == 0);
	check(now_ns() - start_ns >= (uint64_t)ms(20));
}

static void do_futex(void)
{
	static uint32_t word;
	struct timespec timeout = { .tv_nsec = ms(20) };

	check(syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 0, &timeout, NULL, 0) == -1 &&
	      errno == ETIMEDOUT);
}

/* A timer's signal wakes nobody: the futex is woken by a thread of its own. */
static void *wake(void *word)
{
	for (;;) {
		usleep(5000);
		__atomic_add_fetch((uint32_t *)word, 1, __ATOMIC_SEQ_CST);
		syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
	}
	return NULL;
}

static void do_futex_untimed(void)
{
	static _Thread_local uint32_t *word;
	pthread_t waker;
	uint32_t seen;

	if (!word) {
		word = calloc(1, sizeof *word);
		pthread_create(&waker, NULL, wake, word);
	}
	seen = __atomic_load_n(word, __ATOMIC_SEQ_CST);
	check(syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, seen, NULL, NULL, 0) == 0 || errno == EAGAIN);
}

static void *feed(void *fd)
{
	uint32_t number = 0;

	for (;;) {
		usleep(5000);
		if (write((int)(intptr_t)fd, &number, sizeof number) != sizeof number)
			return NULL;
		number++;
	}
}

static void do_read(void)
{
	static _Thread_local int ends[2];
	static _Thread_local uint32_t expected;
	pthread_t feeder;
	uint32_t number = ~0u;

	if (!ends[1] && !pipe(ends))
		pthread_create(&feeder, NULL, feed, (void *)(intptr_t)ends[1]);
	check(read(ends[0], &number, sizeof number) == sizeof number && number == expected);
	expected++;
}

static void do_poll(void)
{
	check(poll(NULL, 0, 20) == 0);
}

static void do_ppoll(void)
{
	struct timespec timeout = { .tv_nsec = ms(20) };
	sigset_t during, before, after;

	sigfillset(&during);
	sigdelset(&during, SIGRTMIN);
	pthread_sigmask(SIG_SETMASK, NULL, &before);
	if (ppoll(NULL, 0, &timeout, &during) != 0) {
		if (errno == EINTR)
			mine->interrupted++;
		else
			check(false);
	}
	pthread_sigmask(SIG_SETMASK, NULL, &after);
	check(!memcmp(&before, &after, 8));
}

static void do_epoll(void)
{
	static _Thread_local int set;
	struct epoll_event event;

	if (!set)
		set = epoll_create1(EPOLL_CLOEXEC);
	if (epoll_wait(set, &event, 1, 20) != 0) {
		if (errno == EINTR)
			mine->interrupted++;
		else
			check(false);
	}
}

#ifdef __x86_64__
#define EACH(op) \
	op(0) op(1) op(2) op(3) op(4) op(5) op(6) op(7) op(8) op(9) op(10) op(11) op(12) op(13) op(14) op(15)
#define LOAD(n) "vmovdqu " #n "*32(%[from]), %%ymm" #n "\n"
#define STORE(n) "vmovdqu %%ymm" #n ", " #n "*32(%[to])\n"
#define CLOBBER                                                                                           \
	"xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", \
		"xmm12", "xmm13", "xmm14", "xmm15"

/* Vector and general registers full of values, kept while no memory is touched. */
__attribute__((target("avx"))) static void do_compute(void)
{
	static _Thread_local uint8_t from[16 * 32], to[16 * 32];
	static _Thread_local uint64_t round = 1;
	uint64_t a = round * 3, b = round * 5, c = round * 7, count = 3000000;
	uint32_t rounding = 0x5f80, after = 0; /* not the default */

	for (size_t i = 0; i < sizeof from; i++)
		from[i] = (uint8_t)(round * 31 + i);
	asm volatile("ldmxcsr %0" : : "m"(rounding));
	asm volatile(EACH(LOAD) "1: dec %[count]\n jnz 1b\n" EACH(STORE)
		     : [count] "+r"(count), "+r"(a), "+r"(b), "+r"(c)
		     : [from] "r"(from), [to] "r"(to)
		     : "memory", "cc", CLOBBER);
	asm volatile("stmxcsr %0" : "=m"(after));
	check(!memcmp(from, to, sizeof to) && a == round * 3 && b == round * 5 && c == round * 7 &&
	      count == 0);
	check((after & 0x6000) == 0x4000);
	round++;
}
#else
static void do_compute(void)
{
	volatile uint64_t count = 3000000;

	while (count)
		count--;
}
#endif

/* Each page has a number in every word; a round adds one to all words of a page, after a look at all. */
static void do_memory(void)
{
	static _Thread_local uint64_t random = 0x9e3779b97f4a7c15;
	uint64_t *page;

	random ^= random << 13, random ^= random >> 7, random ^= random << 17;
	page = memory + random % memory_pages * (PAGE_BYTES / 8);
	for (size_t i = 0; i < PAGE_BYTES / 8; i++) {
		check(page[i] == page[0] && page[i] >= 1);
	}
	for (size_t i = 0; i < PAGE_BYTES / 8; i++)
		page[i]++;
}

/* ---- memory that the program works with, as with its heap ---- */

#define WORKING_PAGES 1024 /* the last one has nothing but a word to wait for */
#define WORDS (PAGE_BYTES / 8)

static uint64_t *working;

static uint64_t working_word(uint64_t page_idx, uint64_t round, uint64_t i)
{
	return (page_idx << 40 | round << 10 | i) ^ 0x5a5a5a5a00000000;
}

/* Of each page the first who touches it is read(2), a futex, write(2), or the program itself. Then all of it
 * is compared, and written anew. */
static void do_working(void)
{
	static uint64_t round = 1;
	static int ends[2];
	struct timespec at_once = { .tv_nsec = 1 };

	if (!ends[1] && pipe(ends))
		check(false);
	for (uint64_t page_idx = 0; page_idx < WORKING_PAGES - 1; page_idx++) {
		uint64_t *page = working + page_idx * WORDS, seen = 0, read_word = 0;
		uint32_t low = (uint32_t)working_word(page_idx, round, 0);

		if (page_idx % 4 == 0) { /* the middle word comes by read(2) */
			seen = ~working_word(page_idx, round, WORDS / 2);
			check(write(ends[1], &seen, 8) == 8 && read(ends[0], page + WORDS / 2, 8) == 8);
			check(page[WORDS / 2] == seen);
			page[WORDS / 2] = ~seen;
		} else if (page_idx % 4 == 1) { /* the kernel compares: EAGAIN if another word is there */
			check(syscall(SYS_futex, page, FUTEX_WAIT_PRIVATE, low, &at_once, NULL, 0) == -1 &&
			      errno == ETIMEDOUT);
		} else if (page_idx % 4 == 2) {
			check(write(ends[1], page + WORDS - 1, 8) == 8 && read(ends[0], &read_word, 8) == 8);
			check(read_word == working_word(page_idx, round, WORDS - 1));
		}
		for (uint64_t i = 0; i < WORDS; i++)
			check(page[i] == working_word(page_idx, round, i));
		for (uint64_t i = 0; i < WORDS; i++)
			page[i] = working_word(page_idx, round + 1, i);
	}
	round++;
}

/* Sleeps on a word in it until another thread, which writes it, wakes this one. */
static void do_working_futex(void)
{
	static uint32_t *word;
	pthread_t waker;
	uint32_t seen;

	if (!word) {
		word = (uint32_t *)(working + (WORKING_PAGES - 1) * WORDS);
		pthread_create(&waker, NULL, wake, word);
	}
	seen = __atomic_load_n(word, __ATOMIC_SEQ_CST);
	check(syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, seen, NULL, NULL, 0) == 0 || errno == EAGAIN);
}

static const struct {
	const char *name;
	void (*once)(void);
} kinds[] = {
	{ "nanosleep", do_nanosleep },
	{ "futex", do_futex },
	{ "futex-untimed", do_futex_untimed },
	{ "read", do_read },
	{ "poll", do_poll },
	{ "ppoll", do_ppoll },
	{ "epoll", do_epoll },
	{ "compute", do_compute },
	{ "memory", do_memory },
	{ "working", do_working },
	{ "working-futex", do_working_futex },
};

struct job {
	void (*once)(void);
	struct counters *counters;
};

static void *work(void *job_ptr)
{
	const struct job *job = job_ptr;

	mine = job->counters;
	for (;;) {
		job->once();
		mine->done++;
	}
	return NULL;
}

static void on_signal(int number)
{
	(void)number;
	stats->signals++;
}

/* ---- setting up ---- */

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static bool has(char **options, const char *name)
{
	for (; *options; options++)
		if (!strcmp(*options, name))
			return true;
	return false;
}

static void deny_userfaultfd(uint32_t action)
{
	struct sock_filter filter[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_userfaultfd, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, action),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog program = { sizeof filter / sizeof *filter, filter };

	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program))
		die("seccomp");
}

#define ALLOW(name) \
	BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_##name, 0, 1), BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)

static void allow_few(bool as_back_end)
{
	struct sock_filter filter[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		ALLOW(nanosleep),
		ALLOW(clock_nanosleep),
		ALLOW(rt_sigreturn),
		ALLOW(restart_syscall),
		ALLOW(exit_group),
		ALLOW(clock_gettime),
		ALLOW(write),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
	};
	struct sock_filter back_end_filter[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		ALLOW(nanosleep),
		ALLOW(clock_nanosleep),
		ALLOW(rt_sigreturn),
		ALLOW(restart_syscall),
		ALLOW(exit_group),
		ALLOW(clock_gettime),
		ALLOW(write),
		ALLOW(close),
		ALLOW(mmap),
		ALLOW(munmap),
		ALLOW(recvmsg),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
	};
	struct sock_fprog program = { sizeof filter / sizeof *filter, filter };

	if (as_back_end)
		program = (struct sock_fprog){ sizeof back_end_filter / sizeof *back_end_filter,
					       back_end_filter };

	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program))
		die("seccomp");
}

static void make_memory(size_t size_bytes, char **options)
{
	bool is_huge = has(options, "hugetlb"); /* hardly any machine has such pages to touch */
	int fd = memfd_create("guest", MFD_CLOEXEC | (is_huge ? MFD_HUGETLB : 0));
	int flags = (has(options, "private") ? MAP_PRIVATE : MAP_SHARED) | (is_huge ? MAP_NORESERVE : 0);
	int fill = has(options, "readonly") ? PROT_READ : PROT_READ | PROT_WRITE;

	if (fd < 0 || ftruncate(fd, (off_t)size_bytes))
		die("memfd");
	if (has(options, "anonymous")) {
		close(fd);
		fd = -1;
		flags = MAP_PRIVATE | MAP_ANONYMOUS;
	}
	memory = mmap(NULL, size_bytes, fill, flags, fd, 0);
	if (memory == MAP_FAILED)
		die("mmap");
	if (has(options, "twice") && mmap(NULL, size_bytes, fill, flags, fd, 0) == MAP_FAILED)
		die("mmap");
	memory_pages = size_bytes / PAGE_BYTES;
	if ((fill & PROT_WRITE) && !is_huge)
		for (size_t i = 0; i < size_bytes / 8; i++)
			memory[i] = 1 + i / (PAGE_BYTES / 8);
	if (has(options, "not-forked") && madvise(memory, size_bytes, MADV_DONTFORK))
		die("madvise");
	if (has(options, "locked") && mlock(memory, size_bytes))
		die("mlock");
	if (has(options, "no-fd"))
		close(fd);
	stats->addr = (uintptr_t)memory;
	stats->size_bytes = size_bytes;
}

static void make_working(void)
{
	size_t size_bytes = WORKING_PAGES * PAGE_BYTES;

	working = mmap(NULL, size_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (working == MAP_FAILED || madvise(working, size_bytes, MADV_DONTFORK))
		die("working memory");
	for (uint64_t i = 0; i < (WORKING_PAGES - 1) * WORDS; i++)
		working[i] = working_word(i / WORDS, 1, i % WORDS);
	stats->working_addr = (uintptr_t)working;
}

static struct job job_of(const char *kind, size_t idx)
{
	for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
		if (!strcmp(kinds[i].name, kind))
			return (struct job){ kinds[i].once, &stats->threads[idx] };
	fprintf(stderr, "no such kind: %s\n", kind);
	exit(1);
}

int main(int argc, char **argv)
{
	static struct job jobs[THREADS_MAX];
	char **options = argv + 4;
	size_t jobs_n = 0;
	pthread_t thread;

	if (argc < 4)
		return 2;
	stats = mmap(NULL, sizeof *stats, PROT_READ | PROT_WRITE, MAP_SHARED, atoi(argv[1]), 0);
	if (stats == MAP_FAILED)
		die("stats");
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	make_memory((size_t)atoi(argv[2]) << 20, options);
	if (has(options, "working"))
		make_working();
	for (char *kind = strtok(argv[3], ","); kind && jobs_n < THREADS_MAX;
	     kind = strtok(NULL, ","), jobs_n++)
		jobs[jobs_n] = job_of(kind, jobs_n);
	sigaction(SIGRTMIN, &(struct sigaction){ .sa_handler = on_signal, .sa_flags = SA_RESTART }, NULL);
	if (has(options, "seccomp-errno"))
		deny_userfaultfd(SECCOMP_RET_ERRNO | EPERM);
	if (has(options, "seccomp-trap"))
		deny_userfaultfd(SECCOMP_RET_TRAP);
	if (has(options, "seccomp-kill"))
		deny_userfaultfd(SECCOMP_RET_KILL_PROCESS);
	if (has(options, "fork") && fork() == 0)
		prctl(PR_SET_PDEATHSIG, SIGKILL);
	for (size_t i = 1; i < jobs_n; i++)
		pthread_create(&thread, NULL, work, &jobs[i]);
	if (has(options, "seccomp-few"))
		allow_few(false);
	if (has(options, "seccomp-back-end"))
		allow_few(true);
	stats->ready++;
	work(&jobs[0]);
	return 0;
}
