/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "device.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>

#include "job.h"

int device_slot(struct guest *guest, int kind, int parent, uint64_t job_id)
{
	struct shared *shared = guest->shared;

	for (int process = 1; process < MAX_PROCESSES; process++) {
		struct process_slot *slot = &shared->process[process];
		int state = atomic_load(&slot->state);

		if ((state != PROCESS_FREE && state != PROCESS_DEAD) ||
		    !atomic_compare_exchange_strong(&slot->state, &state, PROCESS_STARTING))
			continue;
		atomic_store(&slot->kind, kind);
		atomic_store(&slot->parent, parent);
		atomic_store(&slot->pid, 0);
		atomic_store(&slot->error, 0);
		atomic_store(&slot->go, 0);
		atomic_store(&slot->dummy_page, 0);
		atomic_store(&slot->job_id, job_id);
		for (unsigned i = 0; i < JOB_SLOTS; i++)
			atomic_store(&shared->job[i].active[process], 0);
		return process;
	}
	return -1;
}

static void give_up_slot(struct guest *guest, int process, int err)
{
	atomic_store(&guest->shared->process[process].error, err);
	atomic_store(&guest->shared->process[process].state, PROCESS_FREE);
	guest_notify(guest);
}

/* In a new process: die with the parent, keep none of the fds that are the VMM's own. */
static void leave_vmm(struct guest *guest, pid_t parent)
{
	int null = open("/dev/null", O_RDWR | O_CLOEXEC);

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (getppid() != parent)
		_exit(0);
	signal(SIGCHLD, SIG_IGN); /* our own children are not waited for */
	dup2(null, 0);
	dup2(null, 1);
	close(null);
	if (atomic_load(&guest->uffd) >= 0)
		close(atomic_exchange(&guest->uffd, -1));
	if (atomic_load(&guest->socket_fd) >= 0)
		close(atomic_exchange(&guest->socket_fd, -1));
}

static void become_device(struct guest *guest, int process, pid_t parent)
{
	leave_vmm(guest, parent);
	guest->process = process;
	atomic_store(&guest->shared->process[process].pid, getpid());
}

static void fail_device(struct guest *guest, int err)
{
	atomic_store(&guest->shared->process[guest->process].error, err);
	_exit(1);
}

static void run_device(struct guest *guest, int state)
{
	if (state == PROCESS_RUNNING) {
		int rc = workers_start(guest, guest->device_workers);

		if (rc < 0)
			fail_device(guest, -rc);
	}
	atomic_store(&guest->shared->process[guest->process].state, state);
	guest_notify(guest);
	device_first_thread(guest);
}

int device_fork(struct guest *guest, uint64_t job_id)
{
	int process = device_slot(guest, KIND_FORK, guest->process, job_id);
	pid_t parent = getpid();

	if (process < 0)
		return EAGAIN;
	pid_t pid = fork();
	if (pid < 0) {
		int err = errno;
		give_up_slot(guest, process, err);
		return err;
	}
	if (pid == 0) {
		become_device(guest, process, parent);
		run_device(guest, PROCESS_RUNNING);
	}
	atomic_store(&guest->shared->process[process].pid, pid);
	return 0;
}

void device_first_thread(struct guest *guest)
{
	struct worker *worker = malloc(sizeof(*worker));

	if (!worker)
		fail_device(guest, ENOMEM);
	worker_init(worker, guest, -1);
	for (;;) {
		uint32_t seen_wake = atomic_load(&guest->shared->wake);

		if (!jobs_step(worker))
			futex_wait(&guest->shared->wake, seen_wake, 0);
	}
}

static bool workers_are_parked(const struct process_slot *slot)
{
	for (int i = 0; i < MAX_WORKERS; i++)
		if (atomic_load(&slot->worker[i].busy))
			return false;
	return true;
}

int exec_idle(void)
{
	execl("/proc/self/exe", "vmmswap-guest", "--idle", (char *)NULL);
	return errno;
}

int idle_main(void)
{
	char byte;

	while (read(0, &byte, 1) > 0)
		;
	return 0;
}

int device_exec(struct guest *guest)
{
	struct process_slot *slot = &guest->shared->process[guest->process];

	atomic_store(&slot->state, PROCESS_SILENT);
	atomic_fetch_add(&guest->shared->wake, 1);
	futex_wake_all(&guest->shared->wake);
	for (;;) {
		uint32_t seen_wake = atomic_load(&guest->shared->wake);

		if (workers_are_parked(slot))
			break;
		futex_wait(&guest->shared->wake, seen_wake, 0);
	}
	guest_notify(guest);
	int pipe_fd[2]; /* standard input that never ends: its other end is inherited, too */
	if (pipe(pipe_fd) == 0)
		dup2(pipe_fd[0], 0);
	return exec_idle();
}

int device_kill(struct guest *guest, int process)
{
	struct process_slot *slot = &guest->shared->process[process];
	int pid = atomic_load(&slot->pid);

	if (guest->pidfd[process] <= 0 && pid > 0) {
		int pidfd = (int)syscall(SYS_pidfd_open, pid, 0);

		guest->pidfd[process] = pidfd < 0 ? 0 : pidfd;
	}
	if (guest->pidfd[process] <= 0)
		return ESRCH;
	return syscall(SYS_pidfd_send_signal, guest->pidfd[process], SIGKILL, NULL, 0) < 0 ? errno : 0;
}

void device_kill_all(struct guest *guest)
{
	for (int process = 1; process < MAX_PROCESSES; process++)
		if (guest->pidfd[process] > 0)
			device_kill(guest, process);
	for (int process = 1; process < MAX_PROCESSES; process++) {
		struct pollfd gone = { .fd = guest->pidfd[process], .events = POLLIN };

		if (gone.fd > 0)
			poll(&gone, 1, 5000);
	}
}

static void send_hello(struct guest *guest, int socket, int uffd)
{
	struct backend_hello hello = { .process = guest->process };
	struct iovec iov = { .iov_base = &hello, .iov_len = sizeof(hello) };
	union {
		struct cmsghdr header;
		char bytes[CMSG_SPACE(sizeof(int))];
	} control = { 0 };
	struct msghdr message = { .msg_iov = &iov, .msg_iovlen = 1 };

	message.msg_control = control.bytes;
	message.msg_controllen = sizeof(control.bytes);
	control.header = (struct cmsghdr){ .cmsg_len = CMSG_LEN(sizeof(int)),
					   .cmsg_level = SOL_SOCKET,
					   .cmsg_type = SCM_RIGHTS };
	memcpy(CMSG_DATA(&control.header), &uffd, sizeof(int));
	if (sendmsg(socket, &message, MSG_NOSIGNAL) < 0)
		fail_device(guest, errno);
}

static void wait_for_go(struct guest *guest)
{
	struct shared *shared = guest->shared;

	for (;;) {
		uint32_t seen_wake = atomic_load(&shared->wake);

		if (atomic_load(&shared->process[guest->process].go))
			return;
		futex_wait(&shared->wake, seen_wake, 0);
	}
}

static void run_backend(struct guest *guest, const struct zygote_request *request, int socket, pid_t zygote)
{
	struct process_slot *slot = &guest->shared->process[request->process];

	become_device(guest, request->process, zygote);
	int rc = memory_map(&guest->memory);
	if (rc < 0)
		fail_device(guest, -rc);
	for (unsigned i = 0; i < guest->memory.regions; i++)
		atomic_store(&slot->base[i], (uint64_t)(uintptr_t)guest->memory.region[i].base);
	if (request->mode == BACKEND_ANNOUNCE) {
		int uffd = uffd_open(&guest->uffd_options);

		if (uffd < 0)
			fail_device(guest, -uffd);
		if (guest->has_dummy && (rc = memory_map_dummy(&guest->memory)) < 0)
			fail_device(guest, -rc);
		atomic_store(&slot->dummy_page, (uint64_t)(uintptr_t)guest->memory.dummy_page);
		atomic_store(&guest->uffd, uffd); /* kept open for as long as we live */
		send_hello(guest, socket, uffd);
		wait_for_go(guest);
	}
	run_device(guest, request->mode == BACKEND_SILENT ? PROCESS_SILENT : PROCESS_RUNNING);
}

static void zygote_main(struct guest *guest, int socket)
{
	struct zygote_request request;

	while (recv(socket, &request, sizeof(request), 0) == (ssize_t)sizeof(request)) {
		pid_t zygote = getpid();
		pid_t pid = fork();

		if (pid == 0)
			run_backend(guest, &request, socket, zygote);
		if (pid < 0)
			give_up_slot(guest, request.process, errno);
		else
			atomic_store(&guest->shared->process[request.process].pid, pid);
		guest_notify(guest);
	}
	_exit(0);
}

void zygote_start(struct guest *guest)
{
	int pair[2];
	pid_t parent = getpid();

	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0)
		die(errno, "cannot make a socket pair");
	pid_t pid = fork();
	if (pid < 0)
		die(errno, "cannot fork");
	if (pid == 0) {
		close(pair[0]);
		leave_vmm(guest, parent);
		zygote_main(guest, pair[1]);
	}
	close(pair[1]);
	guest->zygote_fd = pair[0];
}
