/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "harness.h"
#include "keep/keeper.h"

#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/un.h>

#define ENTRIES 16
#define BALLAST_BYTES ((size_t)64 << 20)
#define FDS "TEST_KEPT_FDS"
#define LIVES "TEST_KEPT_LIVES"

/* A monitor that can be killed, and what it tells of its keeper. */
struct monitor {
	pid_t pid;
	pid_t keeper;
	int keeper_fd; /* a pidfd */
	struct keeper_entry *entries;
};

static struct keeper_entry *new_table(void)
{
	size_t bytes = ENTRIES * sizeof(struct keeper_entry);
	void *entries = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	CHECK(entries != MAP_FAILED);
	return entries;
}

static void put(struct keeper_entry *entry, enum keeper_kind kind, const char *name, int fd)
{
	struct stat st;

	CHECK_SYS(fstat(fd, &st));
	entry->fd = fd;
	entry->inode = st.st_ino;
	snprintf(entry->name, sizeof entry->name, "%s", name);
	entry->kind = (uint8_t)kind;
}

static int new_uffd(void)
{
	int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | UFFD_USER_MODE_ONLY);

	CHECK_SYS(fd);
	return fd;
}

static struct keeper_plan plan_for(struct keeper_entry *entries)
{
	struct keeper_plan plan = { .entries = entries,
				    .entries_n = ENTRIES,
				    .orphan_prefix = "orphan-",
				    .program = "/bin/sh",
				    .fds_variable = FDS,
				    .lives_variable = LIVES };

	for (size_t i = 0; i < 4; i++)
		plan.spare_fds[i] = (int)CHECK_SYS(open("/dev/null", O_RDONLY | O_CLOEXEC));
	return plan;
}

/* live() is the monitor's life up to where it is killed; it runs in a process with much memory. */
static struct monitor start(struct keeper_plan *plan, void (*live)(struct keeper_entry *))
{
	struct monitor monitor = { .entries = plan->entries };
	int ends[2];

	CHECK_SYS(pipe2(ends, O_CLOEXEC));
	monitor.pid = (pid_t)CHECK_SYS(fork());
	if (!monitor.pid) {
		CHECK(mmap(NULL, BALLAST_BYTES, PROT_READ | PROT_WRITE,
			   MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0) != MAP_FAILED);
		monitor.keeper = keeper_start(plan);
		CHECK(monitor.keeper > 0);
		live(plan->entries);
		CHECK_EQ(write(ends[1], &monitor.keeper, sizeof monitor.keeper), sizeof monitor.keeper);
		for (;;)
			pause();
	}
	close(ends[1]);
	CHECK_EQ(read(ends[0], &monitor.keeper, sizeof monitor.keeper), sizeof monitor.keeper);
	close(ends[0]);
	monitor.keeper_fd = (int)CHECK_SYS(syscall(SYS_pidfd_open, monitor.keeper, 0));
	return monitor;
}

static bool has_ended(const struct monitor *monitor, int timeout_ms)
{
	struct pollfd keeper = { .fd = monitor->keeper_fd, .events = POLLIN };

	return poll(&keeper, 1, timeout_ms) == 1;
}

static void kill_monitor(const struct monitor *monitor)
{
	CHECK_SYS(kill(monitor->pid, SIGKILL));
	CHECK_SYS(waitpid(monitor->pid, NULL, 0));
}

/* What the successor wrote to its file, once it has ended. */
static char *read_all(int fd)
{
	static char text[4096];
	size_t filled = 0;
	ssize_t n;

	while ((n = read(fd, text + filled, sizeof text - 1 - filled)) > 0)
		filled += (size_t)n;
	text[filled] = '\0';
	return text;
}

/* The successor writes into a pipe; its end of file says that nobody goes on. */
static int pipe_for_successor(int *writer)
{
	int ends[2];

	CHECK_SYS(pipe(ends));
	CHECK_SYS(fcntl(ends[0], F_SETFD, FD_CLOEXEC));
	*writer = ends[1];
	return ends[0];
}

static void serve_a_vm_with_a_child(struct keeper_entry *entries)
{
	int known = new_uffd();

	put(&entries[0], KEEPER_VM, "manifest", known);
	put(&entries[3], KEEPER_FD, "gone", known);
	entries[3].kind = KEEPER_NOTHING;
	new_uffd(); /* that of a child, which was read and not stored yet */
	CHECK_SYS(open("/dev/null", O_RDONLY | O_CLOEXEC));
}

static const char *const tell[] = { "sh", "-c",
				    "echo fds=$" FDS " lives=$" LIVES " own=$OWN; for f in $(echo $" FDS
				    " | tr , ' '); do readlink /proc/$$/fd/${f#*=}; done",
				    NULL };

static char *tale_of_successor(void (*live)(struct keeper_entry *), const char *const *command)
{
	struct keeper_plan plan = plan_for(new_table());
	int writer;
	int reader = pipe_for_successor(&writer);
	struct monitor monitor;

	CHECK_SYS(dup2(writer, STDOUT_FILENO));
	close(writer);
	plan.command = command;
	monitor = start(&plan, live);
	close(STDOUT_FILENO);
	kill_monitor(&monitor);
	return read_all(reader);
}

TEST(without_an_fd_store_it_becomes_the_monitor)
{
	char *tale;

	CHECK_SYS(setenv("OWN", "kept", 1));
	CHECK_SYS(setenv(LIVES, "4", 1));
	CHECK_SYS(setenv(FDS, "stale=99,", 1));
	tale = tale_of_successor(serve_a_vm_with_a_child, tell);
	CHECK_CONTAINS(tale, "fds=manifest=");
	CHECK_CONTAINS(tale, ",orphan-");
	CHECK_CONTAINS(tale, "lives=5 own=kept");
	CHECK(!strstr(tale, "stale"));
	CHECK(!strstr(tale, "gone"));
	CHECK(!strstr(tale, "/dev/null"));
	CHECK_CONTAINS(tale, "anon_inode:[userfaultfd]\nanon_inode:[userfaultfd]\n");
}

/* 32 and 33 are libc's own; it lets nobody change them, and posix_spawn() ignores them for its child. */
TEST(the_successor_ignores_no_signal)
{
	static const char *const signals[] = { "sh", "-c", "grep -E 'SigIgn|SigBlk' /proc/self/status",
					       NULL };
	const char *tale = tale_of_successor(serve_a_vm_with_a_child, signals);

	CHECK_CONTAINS(tale, "SigBlk:\t0000000000000000");
	CHECK_CONTAINS(tale, "SigIgn:");
	CHECK_EQ(strtoull(strstr(tale, "SigIgn:") + 7, NULL, 16) & ~0x180000000ull, 0);
}

static void serve_nobody(struct keeper_entry *entries)
{
	put(&entries[0], KEEPER_FD, "listen", new_uffd());
}

TEST(without_a_vm_nobody_goes_on)
{
	CHECK_EQ(tale_of_successor(serve_nobody, tell)[0], '\0');
}

static void serve_who_has_ended(struct keeper_entry *entries)
{
	pid_t pid = (pid_t)CHECK_SYS(fork());

	if (!pid)
		_exit(0);
	serve_a_vm_with_a_child(entries);
	put(&entries[1], KEEPER_FD, "pidfd-1", (int)CHECK_SYS(syscall(SYS_pidfd_open, pid, 0)));
	CHECK_SYS(waitpid(pid, NULL, 0));
}

TEST(a_vm_whose_processes_have_all_ended_is_gone_on_with)
{
	const char *tale = tale_of_successor(serve_who_has_ended, tell);

	CHECK_CONTAINS(tale, "fds=manifest=");
	CHECK_CONTAINS(tale, ",pidfd-1=");
}

static void register_and_die(struct keeper_entry *entries)
{
	put(&entries[5], KEEPER_MESSAGE, "message", new_uffd());
	new_uffd(); /* nothing can be out yet: this is nobody's */
}

TEST(a_vm_that_was_registering_is_gone_on_with)
{
	const char *tale = tale_of_successor(register_and_die, tell);

	CHECK_CONTAINS(tale, "fds=message=");
	CHECK(!strstr(tale, "orphan-"));
}

/* A service manager, as far as its fd store goes. */
static int listen_as_manager(char *path, size_t path_bytes)
{
	struct sockaddr_un own = { .sun_family = AF_UNIX };
	int fd = (int)CHECK_SYS(socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0));

	CHECK((size_t)snprintf(path, path_bytes, "%s/notify", test_dir()) < sizeof own.sun_path);
	strcpy(own.sun_path, path);
	CHECK_SYS(bind(fd, (struct sockaddr *)&own, sizeof own));
	return fd;
}

static int receive(int manager, char *text, size_t text_bytes)
{
	union {
		char bytes[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} control;
	struct iovec part = { .iov_base = text, .iov_len = text_bytes - 1 };
	struct msghdr header = { .msg_iov = &part,
				 .msg_iovlen = 1,
				 .msg_control = control.bytes,
				 .msg_controllen = sizeof control };
	ssize_t n = CHECK_SYS(recvmsg(manager, &header, MSG_CMSG_CLOEXEC));
	int fd = -1;

	text[n] = '\0';
	CHECK(CMSG_FIRSTHDR(&header));
	memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&header)), sizeof fd);
	return fd;
}

static void serve_with_something_unsent(struct keeper_entry *entries)
{
	serve_a_vm_with_a_child(entries);
	entries[0].fd = -1; /* has been sent */
	put(&entries[2], KEEPER_FD, "unsent", (int)CHECK_SYS(open("/dev/null", O_RDONLY | O_CLOEXEC)));
}

TEST(with_an_fd_store_it_sends_what_is_missing_and_waits_for_the_manager)
{
	struct keeper_plan plan = plan_for(new_table());
	char address[300];
	char text[256];
	int manager = listen_as_manager(address, sizeof address);
	struct monitor monitor;
	int barrier;

	plan.notify_address = address;
	plan.command = tell;
	monitor = start(&plan, serve_with_something_unsent);
	kill_monitor(&monitor);
	close(receive(manager, text, sizeof text));
	CHECK(!strcmp(text, "FDSTORE=1\nFDNAME=unsent\nFDPOLL=0"));
	close(receive(manager, text, sizeof text));
	CHECK_CONTAINS(text, "FDSTORE=1\nFDNAME=orphan-");
	barrier = receive(manager, text, sizeof text);
	CHECK(!strcmp(text, "BARRIER=1"));
	CHECK(!has_ended(&monitor, 0));
	close(barrier);
	CHECK(has_ended(&monitor, -1));
}

static size_t resident_bytes(pid_t pid)
{
	char path[64];
	unsigned long pages = 0;
	FILE *file;

	snprintf(path, sizeof path, "/proc/%d/statm", pid);
	file = fopen(path, "r");
	CHECK(file);
	CHECK_EQ(fscanf(file, "%*u %lu", &pages), 1);
	fclose(file);
	return (size_t)pages * (size_t)sysconf(_SC_PAGESIZE);
}

static bool has_runtime(void)
{
#if defined(__SANITIZE_ADDRESS__)
	return true;
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
	return true;
#endif
#endif
	return false;
}

TEST(it_gives_the_copied_memory_back)
{
	struct keeper_plan plan = plan_for(new_table());
	static const char *const end[] = { "true", NULL };
	struct monitor monitor;

	if (has_runtime())
		test_skip("a sanitizer's runtime needs the memory");
	plan.program = "/bin/true";
	plan.command = end;
	monitor = start(&plan, serve_a_vm_with_a_child);
	CHECK(resident_bytes(monitor.pid) > BALLAST_BYTES);
	while (resident_bytes(monitor.keeper) > BALLAST_BYTES / 8)
		usleep(1000);
	kill_monitor(&monitor);
	CHECK(has_ended(&monitor, -1));
}

static void nothing(struct keeper_entry *entries)
{
	(void)entries;
}

TEST(signals_that_can_be_ignored_are)
{
	struct keeper_plan plan = plan_for(new_table());
	struct monitor monitor;
	char path[64];
	char line[128];
	bool ignores = false;

	plan.command = tell;
	monitor = start(&plan, nothing);
	snprintf(path, sizeof path, "/proc/%d/status", monitor.keeper);
	while (!ignores) {
		FILE *file = fopen(path, "r");

		CHECK(file);
		while (fgets(line, sizeof line, file))
			/* SIGHUP, SIGINT, SIGQUIT, SIGABRT, SIGUSR1, SIGUSR2, SIGTERM */
			ignores |= !strncmp(line, "SigIgn:", 7) &&
				   (strtoull(line + 7, NULL, 16) & 0x4a27) == 0x4a27;
		fclose(file);
	}
	kill_monitor(&monitor);
	CHECK(has_ended(&monitor, -1));
}
