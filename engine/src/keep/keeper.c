// SPDX-License-Identifier: GPL-2.0-or-later
#include "keep/keeper.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "keep/fd_store.h"
#include "keep/own_memory.h"
#include "keep/text.h"

#define ORPHANS_MAX 4096
#define LISTED_BYTES 32768
#define SHORT_LIFE_MS 10000
#define LONGEST_WAIT_MS 10000
#define FIRST_WAIT_MS 100

struct orphan {
	int fd;
	uint64_t inode;
};

/* All that the keeper has; in a mapping of its own, with the strings behind it. */
struct keeper {
	struct keeper_plan plan;
	int monitor; /* a pidfd */
	int64_t started_ms;
	unsigned int lives;
	char **environment; /* without the two variables, and with room for them */
	size_t environment_n;
	char *variables; /* room for both */
	char *variables_end;
	size_t orphans_n;
	struct orphan orphans[ORPHANS_MAX];
	char listed[LISTED_BYTES] __attribute__((aligned(8)));
	struct span all;
};

static int64_t now_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static void complain(const char *what, int code)
{
	char line[256];
	struct text text = text_in(line, sizeof line);
	ssize_t written;

	text_add(&text, "vmmswap-keeper: ");
	text_add(&text, what);
	text_add(&text, ": ");
	text_add(&text, strerrordesc_np(code));
	text_add(&text, "\n");
	written = write(STDERR_FILENO, line, text_bytes(&text, line));
	(void)written; /* nobody is left to be told */
}

/* Waiting. */

static void wait_for_end(int pidfd)
{
	struct pollfd poll_fd = { .fd = pidfd, .events = POLLIN };

	while (poll(&poll_fd, 1, -1) != 1)
		;
}

static bool has(const struct keeper *keeper, enum keeper_kind kind)
{
	for (size_t i = 0; i < keeper->plan.entries_n; i++)
		if (keeper->plan.entries[i].kind == kind)
			return true;
	return false;
}

/* Orphans: the userfaultfds of our table that nothing is known of, each file once. */

static bool is_known(const struct keeper *keeper, uint64_t inode)
{
	for (size_t i = 0; i < keeper->plan.entries_n; i++)
		if (keeper->plan.entries[i].kind != KEEPER_NOTHING && keeper->plan.entries[i].inode == inode)
			return true;
	for (size_t i = 0; i < keeper->orphans_n; i++)
		if (keeper->orphans[i].inode == inode)
			return true;
	return false;
}

static bool is_userfaultfd(int dir_fd, const char *number)
{
	static const char wanted[] = "anon_inode:[userfaultfd]";
	char target[sizeof wanted];

	return readlinkat(dir_fd, number, target, sizeof target) == (ssize_t)strlen(wanted) &&
	       !memcmp(target, wanted, strlen(wanted));
}

static void look_at(struct keeper *keeper, int dir_fd, const char *number)
{
	struct stat st;
	int fd;

	if (number[0] == '.' || !is_userfaultfd(dir_fd, number))
		return;
	fd = (int)number_of(number);
	if (fstat(fd, &st) < 0 || is_known(keeper, st.st_ino) || keeper->orphans_n == ORPHANS_MAX)
		return;
	keeper->orphans[keeper->orphans_n++] = (struct orphan){ .fd = fd, .inode = st.st_ino };
}

static void find_orphans(struct keeper *keeper)
{
	int dir_fd = open("/proc/self/fd", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	ssize_t bytes;

	if (dir_fd < 0) {
		complain("/proc/self/fd", errno);
		return;
	}
	while ((bytes = getdents64(dir_fd, keeper->listed, LISTED_BYTES)) > 0) {
		for (ssize_t at = 0; at < bytes;) {
			const struct dirent64 *entry = (const void *)(keeper->listed + at);

			look_at(keeper, dir_fd, entry->d_name);
			at += entry->d_reclen;
		}
	}
	close(dir_fd);
}

static void name_orphan(const struct keeper *keeper, const struct orphan *orphan, struct text *text)
{
	text_add(text, keeper->plan.orphan_prefix);
	text_add_number(text, (uint64_t)getpid());
	text_add(text, "-");
	text_add_number(text, (uint64_t)orphan->fd);
}

/* With an fd store: the orphans, and what the monitor could not send any more. The manager must have taken
 * them, and seen who sent them, before we are gone: if it stands still, so do we. */
static void store(const struct keeper *keeper)
{
	struct fd_store manager;
	int rc = fd_store_open(&manager, keeper->plan.notify_address);
	bool any = false;

	for (size_t i = 0; !rc && i < keeper->plan.entries_n; i++) {
		const struct keeper_entry *entry = &keeper->plan.entries[i];

		if (entry->kind == KEEPER_NOTHING || entry->fd < 0)
			continue;
		rc = fd_store_add(&manager, entry->name, entry->fd);
		any = true;
	}
	for (size_t i = 0; !rc && i < keeper->orphans_n; i++) {
		char name[KEEPER_NAME_BYTES];
		struct text text = text_in(name, sizeof name);

		name_orphan(keeper, &keeper->orphans[i], &text);
		rc = fd_store_add(&manager, name, keeper->orphans[i].fd);
		any = true;
	}
	if (!rc && any)
		rc = fd_store_wait(&manager);
	if (rc)
		complain("the service manager's fd store", -rc);
}

/* Without one: become the monitor. */

static void inherit(int fd)
{
	fcntl(fd, F_SETFD, 0);
}

static void add_fd(struct text *text, const char *name, int fd)
{
	text_add(text, name);
	text_add(text, "=");
	text_add_number(text, (uint64_t)fd);
	text_add(text, ",");
	inherit(fd);
}

static char *fds_variable(const struct keeper *keeper, struct text *text)
{
	char *start = text->at;

	text_add(text, keeper->plan.fds_variable);
	text_add(text, "=");
	for (size_t i = 0; i < keeper->plan.entries_n; i++) {
		const struct keeper_entry *entry = &keeper->plan.entries[i];

		if (entry->kind != KEEPER_NOTHING && entry->fd >= 0)
			add_fd(text, entry->name, entry->fd);
	}
	for (size_t i = 0; i < keeper->orphans_n; i++) {
		char name[KEEPER_NAME_BYTES];
		struct text own = text_in(name, sizeof name);

		name_orphan(keeper, &keeper->orphans[i], &own);
		add_fd(text, name, keeper->orphans[i].fd);
	}
	text_next(text);
	return start;
}

static char *lives_variable(const struct keeper *keeper, unsigned int lives, struct text *text)
{
	char *start = text->at;

	text_add(text, keeper->plan.lives_variable);
	text_add(text, "=");
	text_add_number(text, lives);
	text_next(text);
	return start;
}

/* Signals that this process may ignore. */
static void all_signals(void (*handler)(int))
{
	struct sigaction action = { .sa_handler = handler };

	for (int number = 1; number <= SIGRTMAX; number++)
		if (number != SIGKILL && number != SIGSTOP && number != SIGCHLD && number != SIGCONT)
			sigaction(number, &action,
				  NULL); /* libc refuses its own two, which nobody sends us */
}

/* A monitor that died soon after its start may do so again: not at full speed. */
static unsigned int wait_for_turn(const struct keeper *keeper)
{
	unsigned int lives = now_ms() - keeper->started_ms < SHORT_LIFE_MS ? keeper->lives + 1 : 0;
	int wait_ms = lives < 7 ? FIRST_WAIT_MS << lives : LONGEST_WAIT_MS;

	if (lives > 1)
		poll(NULL, 0, wait_ms);
	return lives;
}

static void succeed(struct keeper *keeper)
{
	struct text text = { keeper->variables, keeper->variables_end };
	char **end = keeper->environment + keeper->environment_n;

	*end++ = lives_variable(keeper, wait_for_turn(keeper), &text);
	*end++ = fds_variable(keeper, &text);
	*end = NULL;
	all_signals(SIG_DFL);
	execve(keeper->plan.program, (char *const *)keeper->plan.command, keeper->environment);
	complain(keeper->plan.program, errno);
}

static _Noreturn void keep(struct keeper *keeper)
{
	const struct keeper_plan *plan = &keeper->plan;
	struct span needed[] = { keeper->all,
				 { (uintptr_t)plan->entries, (uintptr_t)(plan->entries + plan->entries_n) } };
	sigset_t none;

	prctl(PR_SET_NAME, "vmmswap-keeper", 0, 0, 0);
	all_signals(SIG_IGN);
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	own_memory_keep_only(needed, 2);
	wait_for_end(keeper->monitor);
	for (size_t i = 0; i < sizeof plan->spare_fds / sizeof plan->spare_fds[0]; i++)
		close(plan->spare_fds[i]);
	if (has(keeper, KEEPER_VM) || has(keeper, KEEPER_MESSAGE)) {
		if (has(keeper, KEEPER_VM))
			find_orphans(keeper);
		if (plan->notify_address)
			store(keeper);
		else
			succeed(keeper);
	}
	_exit(0);
}

/* Starting it: everything is copied to one mapping of the keeper's own. */

static size_t strings_n(const char *const *strings)
{
	size_t n = 0;

	while (strings[n])
		n++;
	return n;
}

static size_t strings_bytes(const char *const *strings)
{
	size_t bytes = (strings_n(strings) + 3) * sizeof *strings; /* two variables more, and NULL */

	for (; *strings; strings++)
		bytes += strlen(*strings) + 1;
	return bytes;
}

static size_t room_for(const struct keeper_plan *plan)
{
	return sizeof(struct keeper) + strings_bytes(plan->command) +
	       strings_bytes((const char *const *)environ) + strlen(plan->program) +
	       (plan->notify_address ? strlen(plan->notify_address) : 0) + strlen(plan->orphan_prefix) +
	       strlen(plan->fds_variable) + strlen(plan->lives_variable) + 5 +
	       /* both variables: NAME=FD, for each */
	       strlen(plan->fds_variable) + strlen(plan->lives_variable) + 64 +
	       (plan->entries_n + ORPHANS_MAX) * (KEEPER_NAME_BYTES + 16);
}

static char *copy_string(const char *string, char **at)
{
	char *start = *at;

	*at = stpcpy(start, string) + 1;
	return start;
}

static bool is_variable(const char *setting, const char *name)
{
	size_t length = strlen(name);

	return !strncmp(setting, name, length) && setting[length] == '=';
}

/* Pointers first, which must be aligned; then the strings. */
static void copy_all(struct keeper *keeper, const struct keeper_plan *plan)
{
	char **command = (char **)(keeper + 1);
	char **environment = command + strings_n(plan->command) + 1;
	char *at = (char *)(environment + strings_n((const char *const *)environ) + 3);
	size_t n = 0;

	keeper->plan = *plan;
	keeper->plan.program = copy_string(plan->program, &at);
	keeper->plan.orphan_prefix = copy_string(plan->orphan_prefix, &at);
	keeper->plan.fds_variable = copy_string(plan->fds_variable, &at);
	keeper->plan.lives_variable = copy_string(plan->lives_variable, &at);
	if (plan->notify_address)
		keeper->plan.notify_address = copy_string(plan->notify_address, &at);
	for (size_t i = 0; plan->command[i]; i++)
		command[i] = copy_string(plan->command[i], &at);
	keeper->plan.command = (const char *const *)command;
	for (char **setting = environ; *setting; setting++) {
		if (is_variable(*setting, plan->lives_variable))
			keeper->lives = (unsigned int)number_of(strchr(*setting, '=') + 1);
		else if (!is_variable(*setting, plan->fds_variable))
			environment[n++] = copy_string(*setting, &at);
	}
	keeper->environment = environment;
	keeper->environment_n = n;
	keeper->variables = at;
	keeper->variables_end = (char *)keeper->all.end;
}

static pid_t clone_with_fds(struct keeper *keeper)
{
	sigset_t all, before;
	long child;
	int rc = 0;

	/* The copy must run no signal handler of the monitor's: it would write into pipes that they share. */
	sigfillset(&all);
	sigprocmask(SIG_BLOCK, &all, &before);
	child = syscall(SYS_clone, CLONE_FILES, 0, 0, 0, 0);
	if (!child)
		keep(keeper);
	if (child < 0)
		rc = -errno;
	sigprocmask(SIG_SETMASK, &before, NULL);
	return rc ? rc : (pid_t)child;
}

pid_t keeper_start(const struct keeper_plan *plan)
{
	size_t bytes = room_for(plan);
	struct keeper *keeper;
	pid_t pid;

	keeper =
		mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (keeper == MAP_FAILED)
		return -errno;
	keeper->all = (struct span){ (uintptr_t)keeper, (uintptr_t)keeper + bytes };
	copy_all(keeper, plan);
	keeper->started_ms = now_ms();
	keeper->monitor = (int)syscall(SYS_pidfd_open, getpid(), 0);
	pid = keeper->monitor < 0 ? -errno : clone_with_fds(keeper);
	if (pid < 0 && keeper->monitor >= 0)
		close(keeper->monitor);
	munmap(keeper, bytes);
	return pid;
}
