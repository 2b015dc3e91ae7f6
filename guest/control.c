/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "control.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include "device.h"
#include "report.h"

#define LINE_BYTES 4096
#define FIXED_FDS 4
#define RECOVERY_RETRY_MS 10

struct text *control_event(struct control *control, const char *name)
{
	text_clear(&control->out);
	text_add(&control->out, "{\"event\":\"%s\"", name);
	return &control->out;
}

void control_send(struct control *control)
{
	text_add(&control->out, "}\n");
	for (size_t done = 0; done < control->out.length;) {
		ssize_t count = write(1, control->out.data + done, control->out.length - done);

		if (count < 0 && errno == EINTR)
			continue;
		if (count < 0) { /* nobody listens any more */
			control->has_ended = true;
			return;
		}
		done += (size_t)count;
	}
}

static void tell_handoff(struct control *control)
{
	report_handoff(control_event(control, "handoff"), &control->handoff);
	control_send(control);
}

static void finish_jobs(struct control *control)
{
	struct shared *shared = control->guest->shared;

	for (unsigned i = 0; i < JOB_SLOTS; i++) {
		struct job *job = &shared->job[i];

		if (!job->id || !job_is_complete(shared, job))
			continue;
		if (job->kind == JOB_QUIESCE)
			atomic_fetch_sub(&shared->quiesce_waiters, 1);
		if (job->kind != JOB_RECOVER) {
			text_add(control_event(control, "done"), ",\"job\":%llu,\"command\":\"%s\"",
				 (unsigned long long)job->id, job_names[job->kind]);
			report_job(&control->out, control->guest, job);
			control_send(control);
		}
		job_free(job);
	}
}

/* A new process is watched from the moment that its number is known. */
static void watch_processes(struct guest *guest)
{
	for (int i = 1; i < MAX_PROCESSES; i++) {
		struct process_slot *slot = &guest->shared->process[i];
		int state = atomic_load(&slot->state);
		int pid = atomic_load(&slot->pid);

		if (guest->pidfd[i] || !pid ||
		    (state != PROCESS_STARTING && state != PROCESS_RUNNING && state != PROCESS_SILENT))
			continue;
		int pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
		if (pidfd >= 0)
			guest->pidfd[i] = pidfd;
		else if (errno == ESRCH)
			atomic_store(&slot->state, PROCESS_DYING);
	}
}

/* Returns true if it has to be tried again: the last recovery has not quite ended. */
static bool order_recovery(struct shared *shared)
{
	for (int i = 1; i < MAX_PROCESSES; i++) {
		if (atomic_load(&shared->process[i].state) != PROCESS_DYING)
			continue;
		struct job *job = job_new(shared, JOB_RECOVER);
		if (job)
			job_start(shared, job);
		return job == NULL;
	}
	return false;
}

static void process_ended(struct control *control, int process)
{
	struct guest *guest = control->guest;
	struct process_slot *slot = &guest->shared->process[process];
	siginfo_t info = { 0 };

	waitid(P_PIDFD, (id_t)guest->pidfd[process], &info, WEXITED | WNOHANG);
	close(guest->pidfd[process]);
	guest->pidfd[process] = 0;
	handoff_forget_process(&control->handoff, process);
	text_add(control_event(control, "exit"), ",\"process\":%d,\"pid\":%d", process,
		 atomic_load(&slot->pid));
	control_send(control);
	atomic_store(&slot->state, PROCESS_DYING);
}

static void hear_zygote(struct control *control)
{
	struct backend_hello hello;
	struct iovec iov = { .iov_base = &hello, .iov_len = sizeof(hello) };
	union {
		struct cmsghdr header;
		char bytes[CMSG_SPACE(sizeof(int))];
	} ancillary;
	struct msghdr message = { .msg_iov = &iov, .msg_iovlen = 1 };
	int uffd;

	message.msg_control = ancillary.bytes;
	message.msg_controllen = sizeof(ancillary.bytes);
	ssize_t count = recvmsg(control->guest->zygote_fd, &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
	if (count != (ssize_t)sizeof(hello) || message.msg_controllen < CMSG_LEN(sizeof(int)))
		return;
	memcpy(&uffd, CMSG_DATA(&ancillary.header), sizeof(int));
	handoff_add_process(&control->handoff, hello.process, uffd);
}

static void read_orders(struct control *control, char *buffer, size_t *length)
{
	ssize_t count = read(0, buffer + *length, LINE_BYTES - *length);

	if (count < 0 && errno == EINTR)
		return;
	if (count <= 0) {
		control->has_ended = true;
		return;
	}
	*length += (size_t)count;
	char *start = buffer, *end;
	while (!control->has_ended && (end = memchr(start, '\n', *length - (size_t)(start - buffer)))) {
		*end = '\0';
		control->lines++;
		command_run(control, start);
		start = end + 1;
	}
	*length -= (size_t)(start - buffer);
	memmove(buffer, start, *length);
	if (*length == LINE_BYTES)
		die(0, "an order longer than %d bytes", LINE_BYTES - 1);
}

static int timeout_ms(const struct control *control)
{
	uint64_t retry_at_ns = control->handoff.retry_at_ns, now = now_ns();

	if (control->recovery_waits)
		return RECOVERY_RETRY_MS;
	if (!retry_at_ns)
		return -1;
	return retry_at_ns <= now ? 0 : (int)((retry_at_ns - now) / 1000000) + 1;
}

/* Guest events first, so that an order that follows an event finds it done. */
static void handle(struct control *control, struct pollfd *fds, const int *process_of, nfds_t count)
{
	struct handoff *handoff = &control->handoff;
	eventfd_t value;

	if (fds[1].revents)
		eventfd_read(control->guest->notify_fd, &value);
	if (fds[2].revents)
		hear_zygote(control);
	if (fds[3].revents && fds[3].fd == atomic_load(&control->guest->socket_fd) &&
	    handoff_readable(handoff))
		tell_handoff(control);
	if (handoff->retry_at_ns && handoff->retry_at_ns <= now_ns() && handoff_retry(handoff))
		tell_handoff(control);
	for (nfds_t i = FIXED_FDS; i < count; i++)
		if (fds[i].revents)
			process_ended(control, process_of[i]);
	watch_processes(control->guest);
	control->recovery_waits = order_recovery(control->guest->shared);
	finish_jobs(control);
}

void control_run(struct control *control)
{
	struct guest *guest = control->guest;
	static char buffer[LINE_BYTES];
	size_t length = 0;

	if (control->handoff.path && handoff_start(&control->handoff))
		tell_handoff(control);
	while (!control->has_ended) {
		struct pollfd fds[FIXED_FDS + MAX_PROCESSES] = {
			{ .fd = 0, .events = POLLIN },
			{ .fd = guest->notify_fd, .events = POLLIN },
			{ .fd = guest->zygote_fd, .events = POLLIN },
			{ .fd = atomic_load(&guest->socket_fd), .events = POLLIN },
		};
		int process_of[FIXED_FDS + MAX_PROCESSES] = { 0 };
		nfds_t count = FIXED_FDS;

		for (int i = 1; i < MAX_PROCESSES; i++) {
			if (guest->pidfd[i] <= 0)
				continue;
			process_of[count] = i;
			fds[count++] = (struct pollfd){ .fd = guest->pidfd[i], .events = POLLIN };
		}
		if (poll(fds, count, timeout_ms(control)) < 0 && errno != EINTR)
			die(errno, "poll");
		handle(control, fds, process_of, count);
		if (fds[0].revents)
			read_orders(control, buffer, &length);
		finish_jobs(control);
	}
}
