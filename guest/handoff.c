/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "handoff.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "device.h"

#define RETRY_NS 100000000u
#define MESSAGE_BYTES 16384 /* 64 regions of less than 200 bytes */
#define MAX_FDS (2 + MAX_MEMFDS)

const char *const handoff_state_names[] = { "none", "connecting", "registering", "ready", "refused", "lost" };

/* As much of it as there is room for. */
static void copy_text(char *to, size_t size, const char *from)
{
	size_t length = strnlen(from, size - 1);

	memcpy(to, from, length);
	to[length] = '\0';
}

static void set_error(struct handoff *handoff, const char *error, const char *message)
{
	copy_text(handoff->error, sizeof(handoff->error), error);
	copy_text(handoff->message, sizeof(handoff->message), message);
}

static void refuse(struct handoff *handoff, const char *error, const char *message)
{
	handoff->state = HANDOFF_REFUSED;
	set_error(handoff, error, message);
}

static void refuse_errno(struct handoff *handoff, int err, const char *what, const char *advice)
{
	char message[sizeof(handoff->message)];

	snprintf(message, sizeof(message), "%s: %s; %s", what, strerror(err), advice);
	refuse(handoff, "errno", message);
}

/* All bytes and all fds in one sendmsg, or nothing that counts. 0 or -errno. */
static int send_with_fds(int socket, const struct text *text, const int *fds, unsigned count)
{
	struct iovec iov = { .iov_base = text->data, .iov_len = text->length };
	union {
		struct cmsghdr header;
		char bytes[CMSG_SPACE(MAX_FDS * sizeof(int))];
	} control = { 0 };
	struct msghdr message = { .msg_iov = &iov, .msg_iovlen = 1 };

	message.msg_control = control.bytes;
	message.msg_controllen = CMSG_SPACE(count * sizeof(int));
	control.header = (struct cmsghdr){ .cmsg_len = CMSG_LEN(count * sizeof(int)),
					   .cmsg_level = SOL_SOCKET,
					   .cmsg_type = SCM_RIGHTS };
	memcpy(CMSG_DATA(&control.header), fds, count * sizeof(int));
	ssize_t sent = sendmsg(socket, &message, MSG_NOSIGNAL);
	if (sent < 0)
		return -errno;
	return (size_t)sent == text->length ? 0 : -EMSGSIZE;
}

static void add_regions(struct text *text, const struct memory *memory, const _Atomic uint64_t *bases)
{
	text_add(text, "\"regions\":[");
	for (unsigned i = 0; i < memory->regions; i++) {
		const struct region *region = &memory->region[i];

		text_add(text,
			 "%s{\"base_host_virt_addr\":%llu,\"size\":%llu,\"offset\":%llu,\"page_size\":%u,"
			 "\"memfd\":%u}",
			 i ? "," : "", (unsigned long long)atomic_load(&bases[i]),
			 (unsigned long long)region->size_bytes, (unsigned long long)region->offset_bytes,
			 PAGE_BYTES, region->memfd_idx);
	}
	text_add(text, "]");
}

static int send_register(struct handoff *handoff, int socket)
{
	struct guest *guest = handoff->guest;
	const struct memory *memory = &guest->memory;
	char buffer[MESSAGE_BYTES];
	struct text text = { .data = buffer, .size = sizeof(buffer) };
	int fds[MAX_FDS] = { atomic_load(&guest->uffd) };

	memcpy(fds + 1, memory->memfd, memory->memfds * sizeof(int));
	text_add(&text, "{\"vmmswap\":1,\"type\":\"register\",");
	add_regions(&text, memory, guest->shared->process[0].base);
	if (memory->dummy_page)
		text_add(&text, ",\"dummy_page\":%llu", (unsigned long long)(uintptr_t)memory->dummy_page);
	if (handoff->pins)
		text_add(&text, ",\"pins\":%s", handoff->pins);
	text_add(&text, "}\n");
	int rc = send_with_fds(socket, &text, fds, 1 + memory->memfds);
	return rc;
}

static int send_add_process(struct handoff *handoff, int process)
{
	struct guest *guest = handoff->guest;
	struct process_slot *slot = &guest->shared->process[process];
	int pidfd = (int)syscall(SYS_pidfd_open, atomic_load(&slot->pid), 0);
	char buffer[MESSAGE_BYTES];
	struct text text = { .data = buffer, .size = sizeof(buffer) };

	if (pidfd < 0)
		return -errno;
	int fds[2] = { handoff->uffd_of[process], pidfd };
	text_add(&text, "{\"vmmswap\":1,\"type\":\"add-process\",");
	add_regions(&text, &guest->memory, slot->base);
	if (atomic_load(&slot->dummy_page))
		text_add(&text, ",\"dummy_page\":%llu", (unsigned long long)atomic_load(&slot->dummy_page));
	text_add(&text, "}\n");
	int rc = send_with_fds(atomic_load(&guest->socket_fd), &text, fds, 2);
	close(pidfd);
	return rc;
}

void handoff_disconnect(struct handoff *handoff)
{
	int fd = atomic_exchange(&handoff->guest->socket_fd, -1);

	if (fd >= 0)
		close(fd);
	handoff->asked = -1;
	handoff->received_length = 0;
}

static void plan_retry(struct handoff *handoff)
{
	handoff_disconnect(handoff);
	if (handoff->tries_left == 0) {
		refuse(handoff, "unreachable",
		       "nobody listens on the socket, or the monitor ends before it is ready: "
		       "see its log");
		return;
	}
	handoff->tries_left--;
	handoff->state = HANDOFF_CONNECTING;
	handoff->retry_at_ns = now_ns() + RETRY_NS;
}

static void connect_and_register(struct handoff *handoff)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	if (fd < 0) {
		refuse_errno(handoff, errno, "socket", "is the limit of open files too low?");
		return;
	}
	strncpy(address.sun_path, handoff->path, sizeof(address.sun_path) - 1);
	if (connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0) {
		int err = errno;
		close(fd);
		if (err == ENOENT || err == ECONNREFUSED || err == EAGAIN)
			plan_retry(handoff);
		else
			refuse_errno(handoff, err, handoff->path, "check the path and its mode");
		return;
	}
	int rc = send_register(handoff, fd);
	if (rc < 0) {
		close(fd);
		if (rc == -EPIPE || rc == -ECONNRESET)
			plan_retry(handoff);
		else
			refuse_errno(handoff, -rc, "sendmsg", "the register message could not be sent");
		return;
	}
	atomic_store(&handoff->guest->socket_fd, fd);
	handoff->state = HANDOFF_REGISTERING;
	handoff->asked = 0;
}

static bool make_uffd(struct handoff *handoff)
{
	struct guest *guest = handoff->guest;

	if (atomic_load(&guest->uffd) >= 0)
		return true;
	int fd = uffd_open(&guest->uffd_options);
	if (fd < 0) {
		refuse_errno(handoff, -fd, "userfaultfd", uffd_advice(-fd));
		return false;
	}
	atomic_store(&guest->uffd, fd);
	return true;
}

static bool make_dummy_page(struct handoff *handoff)
{
	struct guest *guest = handoff->guest;
	int rc = guest->has_dummy ? memory_map_dummy(&guest->memory) : 0;

	if (rc < 0)
		refuse_errno(handoff, -rc, "mmap", "no room for the dummy page");
	return rc == 0;
}

bool handoff_start(struct handoff *handoff)
{
	handoff_disconnect(handoff);
	handoff->tries_left = handoff->tries;
	handoff->retry_at_ns = 0;
	handoff->error[0] = handoff->message[0] = '\0';
	if (make_uffd(handoff) && make_dummy_page(handoff))
		connect_and_register(handoff);
	return true;
}

bool handoff_retry(struct handoff *handoff)
{
	enum handoff_state before = handoff->state;

	handoff->retry_at_ns = 0;
	connect_and_register(handoff);
	return handoff->state != before;
}

static void release_backend(struct guest *guest, int process)
{
	atomic_store(&guest->shared->process[process].go, 1);
	atomic_fetch_add(&guest->shared->wake, 1);
	futex_wake_all(&guest->shared->wake);
}

static void fail_backend(struct handoff *handoff, int process, int err)
{
	struct process_slot *slot = &handoff->guest->shared->process[process];

	atomic_store(&slot->error, err);
	device_kill(handoff->guest, process);
	handoff_forget_process(handoff, process);
}

/* One message at a time: the next only after the reply to the last. */
static void send_next(struct handoff *handoff)
{
	for (int process = 1; process < MAX_PROCESSES; process++) {
		if (handoff->state != HANDOFF_READY || handoff->asked >= 0)
			return;
		if (!handoff->to_add[process])
			continue;
		handoff->to_add[process] = false;
		int rc = send_add_process(handoff, process);
		if (rc < 0)
			fail_backend(handoff, process, -rc);
		else
			handoff->asked = process;
	}
}

void handoff_add_process(struct handoff *handoff, int process, int uffd)
{
	handoff->uffd_of[process] = uffd;
	handoff->to_add[process] = true;
	send_next(handoff);
}

void handoff_forget_process(struct handoff *handoff, int process)
{
	handoff->to_add[process] = false;
	if (handoff->uffd_of[process] > 0)
		close(handoff->uffd_of[process]);
	handoff->uffd_of[process] = 0;
}

static void became_ready(struct handoff *handoff, const char *line)
{
	handoff->state = HANDOFF_READY;
	if (!json_string(line, "name", handoff->name, sizeof(handoff->name)))
		handoff->name[0] = '\0';
	for (int process = 1; process < MAX_PROCESSES;
	     process++) /* a new monitor has to hear of them again */
		handoff->to_add[process] = handoff->uffd_of[process] > 0;
}

static void handle_error(struct handoff *handoff, const char *line, int asked)
{
	char error[sizeof(handoff->error)] = "", message[sizeof(handoff->message)] = "";

	json_string(line, "error", error, sizeof(error));
	json_string(line, "message", message, sizeof(message));
	if (asked > 0) {
		set_error(handoff, error, message);
		fail_backend(handoff, asked, EPERM);
		return;
	}
	handoff_disconnect(handoff);
	refuse(handoff, error, message);
}

static void handle_line(struct handoff *handoff, const char *line)
{
	char type[16] = "";
	int asked = handoff->asked;

	handoff->asked = -1;
	json_string(line, "type", type, sizeof(type));
	if (!strcmp(type, "error"))
		handle_error(handoff, line, asked);
	else if (asked == 0 && !strcmp(type, "ready"))
		became_ready(handoff, line);
	else if (asked > 0 && !strcmp(type, "ok"))
		release_backend(handoff->guest, asked);
	else {
		handoff_disconnect(handoff);
		refuse(handoff, "unexpected", line);
	}
	send_next(handoff);
}

static void connection_ended(struct handoff *handoff)
{
	if (handoff->state == HANDOFF_READY) {
		handoff_disconnect(handoff);
		handoff->state = HANDOFF_LOST;
	} else {
		plan_retry(handoff);
	}
}

bool handoff_readable(struct handoff *handoff)
{
	enum handoff_state before = handoff->state;
	char *start = handoff->received;
	size_t room = sizeof(handoff->received) - 1 - handoff->received_length;
	ssize_t count =
		recv(atomic_load(&handoff->guest->socket_fd), start + handoff->received_length, room, 0);

	if (count < 0 && (errno == EAGAIN || errno == EINTR))
		return false;
	if (count <= 0) {
		connection_ended(handoff);
		return handoff->state != before;
	}
	handoff->received_length += (size_t)count;
	start[handoff->received_length] = '\0';
	char *end = strchr(start, '\n');
	if (end) {
		*end = '\0';
		size_t rest = handoff->received_length - (size_t)(end + 1 - start);
		handoff->received_length = 0;
		handle_line(handoff, start);
		if (rest) { /* more than one reply to one message */
			handoff_disconnect(handoff);
			refuse(handoff, "unexpected", "the monitor sent more than one line");
		}
	} else if (handoff->received_length == sizeof(handoff->received) - 1) {
		handoff_disconnect(handoff);
		refuse(handoff, "unexpected", "the monitor's reply is longer than 4095 bytes");
	}
	return handoff->state != before;
}
