/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Programs that are awkward to attach to. Each has shared guest memory, its first half written, says "ready",
 * and then for each byte on its standard input does one thing and says what came of it.
 *
 *     attach_odd_target KIND [NUMBER]
 *
 * file   its memory is a file on /dev/shm, already unlinked
 * nofd   the same, and it has closed its fd
 * anonymous  its memory is shared and anonymous: no file to be named
 * wait   pause() until SIGUSR1, again and again, without being asked
 * vfork  a thread is in vfork(), its child lives; the main thread computes
 * share  a child shares the address space and is not a thread
 * fork   forks, waits for the child
 * hole   reads a page that was never touched
 * strict strict seccomp: nothing but read, write, exit and sigreturn
 * space  has no address space left
 * files  may open NUMBER files more
 * held   blocks all signals and has SIGSEGV pending, sent by itself; told to, takes it and says who sent it
 * threads NUMBER threads that wait
 * small  a thread waits on a stack of its own making, cut from memory that is used: says where; the main thread computes
 */
#include <errno.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

#define SIZE_BYTES (16u << 20)
#define PAGE_BYTES 4096
#define STACK_BYTES (64 << 10)
#define ARENA_BYTES (64 << 10)
#define SMALL_BYTES 2048
#define IN_USE 0x5a

static unsigned char *memory, *arena;

static void die(const char *what)
{
	perror(what);
	_exit(1);
}

static void on_signal(int number)
{
	(void)number;
}

static void *wait_for_ever(void *unused)
{
	for (;;)
		pause();
	return unused;
}

static int wait_in_child(void *unused)
{
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	wait_for_ever(unused);
	return 0;
}

static void *in_vfork(void *unused)
{
	if (vfork() == 0)
		wait_in_child(NULL);
	return unused;
}

static void on_small_stack(void)
{
	wait_for_ever(NULL);
}

static void *switch_stacks(void *unused)
{
	ucontext_t here, there;

	getcontext(&there);
	there.uc_stack.ss_sp = arena + ARENA_BYTES - SMALL_BYTES;
	there.uc_stack.ss_size = SMALL_BYTES;
	makecontext(&there, on_small_stack, 0);
	swapcontext(&here, &there);
	return unused;
}

/* What is below it may be read only, so that it is no guard, and no neighbour is joined to it. */
static void make_arena(void)
{
	arena = mmap(NULL, PAGE_BYTES + ARENA_BYTES, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (arena == MAP_FAILED || mprotect(arena += PAGE_BYTES, ARENA_BYTES, PROT_READ | PROT_WRITE))
		die("arena");
	memset(arena, IN_USE, ARENA_BYTES);
}

static void start_thread(void *(*run)(void *))
{
	pthread_attr_t attributes;
	pthread_t thread;

	pthread_attr_init(&attributes);
	pthread_attr_setstacksize(&attributes, STACK_BYTES);
	if (pthread_create(&thread, &attributes, run, NULL))
		die("pthread_create");
}

static void limit(int resource, rlim_t value)
{
	struct rlimit both = { value, value };

	if (setrlimit(resource, &both))
		die("setrlimit");
}

static rlim_t address_space_bytes(void)
{
	FILE *file = fopen("/proc/self/statm", "r");
	unsigned long pages;

	if (!file || fscanf(file, "%lu", &pages) != 1)
		die("statm");
	fclose(file);
	return pages * PAGE_BYTES;
}

static void limit_files(int more)
{
	int last = dup(0);

	limit(RLIMIT_NOFILE, (rlim_t)(last + more));
	close(last);
}

static void block_and_raise(void)
{
	sigset_t all;

	sigfillset(&all);
	sigprocmask(SIG_SETMASK, &all, NULL);
	raise(SIGSEGV);
}

static void make_memory(const char *kind)
{
	char path[] = "/dev/shm/vmmswap-test-XXXXXX";
	bool is_file = !strcmp(kind, "file") || !strcmp(kind, "nofd");
	bool is_anonymous = !strcmp(kind, "anonymous");
	int fd = -1;

	if (!is_anonymous)
		fd = is_file ? mkstemp(path) : memfd_create("guest", MFD_CLOEXEC);
	if (!is_anonymous && (fd < 0 || ftruncate(fd, SIZE_BYTES)))
		die("file");
	if (is_file)
		unlink(path);
	memory = mmap(NULL, SIZE_BYTES, PROT_READ | PROT_WRITE,
		      MAP_SHARED | (is_anonymous ? MAP_ANONYMOUS : 0), fd, 0);
	if (memory == MAP_FAILED)
		die("mmap");
	if (!strcmp(kind, "nofd"))
		close(fd);
	memset(memory, 1, SIZE_BYTES / 2);
}

static void set_up(const char *kind, int number)
{
	if (!strcmp(kind, "vfork")) {
		start_thread(in_vfork);
	} else if (!strcmp(kind, "share")) {
		char *stack = malloc(STACK_BYTES);

		if (!stack || clone(wait_in_child, stack + STACK_BYTES, CLONE_VM | SIGCHLD, NULL) < 0)
			die("clone");
	} else if (!strcmp(kind, "space")) {
		limit(RLIMIT_AS, address_space_bytes());
	} else if (!strcmp(kind, "files")) {
		limit_files(number);
	} else if (!strcmp(kind, "held")) {
		block_and_raise();
	} else if (!strcmp(kind, "small")) {
		make_arena();
		start_thread(switch_stacks);
	} else if (!strcmp(kind, "threads")) {
		while (number--)
			start_thread(wait_for_ever);
	}
}

/* How many bytes of guest memory are not what they were. */
static long wrong_bytes(void)
{
	long wrong = 0;

	for (size_t i = 0; i < SIZE_BYTES; i++)
		wrong += memory[i] != (i < SIZE_BYTES / 2);
	return wrong;
}

/* A line at most; nothing that allocates. */
static void say(const char *what, long value)
{
	char line[64];
	int size = snprintf(line, sizeof line, "%s %ld\n", what, value);

	if (write(1, line, (size_t)size) != size)
		_exit(1);
}

static void do_asked(const char *kind)
{
	sigset_t all;
	siginfo_t info = { 0 };
	pid_t child;

	if (!strcmp(kind, "fork")) {
		child = fork();
		if (child == 0)
			_exit(0);
		say("forked", child > 0 && waitpid(child, NULL, 0) == child);
	} else if (!strcmp(kind, "hole")) {
		say("hole", ((volatile unsigned char *)memory)[SIZE_BYTES / 2 + PAGE_BYTES]);
	} else if (!strcmp(kind, "held")) {
		sigfillset(&all);
		sigwaitinfo(&all, &info);
		say("code", info.si_signo == SIGSEGV ? info.si_code : -1);
	} else if (!strcmp(kind, "file") || !strcmp(kind, "nofd") || !strcmp(kind, "anonymous")) {
		say("wrong", wrong_bytes());
	} else {
		say("alive", 1);
	}
}

int main(int argc, char **argv)
{
	const char *kind = argc > 1 ? argv[1] : "";
	char byte;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	make_memory(kind);
	sigaction(SIGUSR1, &(struct sigaction){ .sa_handler = on_signal }, NULL);
	set_up(kind, argc > 2 ? atoi(argv[2]) : 0);
	say("ready", 0);
	if (!strcmp(kind, "strict") && prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT))
		die("seccomp");
	while (!strcmp(kind, "wait")) {
		int rc = pause();

		say("paused", rc == -1 ? errno : 0);
	}
	if (!strcmp(kind, "small"))
		say("arena", (long)arena);
	if (!strcmp(kind, "vfork") || !strcmp(kind, "small"))
		for (volatile unsigned long count = 0;;)
			count++;
	while (read(0, &byte, 1) == 1)
		do_asked(kind);
	_exit(0);
}
