// SPDX-License-Identifier: GPL-2.0-or-later
#include "keep/fd_store.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdbool.h>
#include <stddef.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "keep/text.h"

#define RETRY_MS 20

int fd_store_open(struct fd_store *manager, const char *address)
{
	struct sockaddr_un to = { .sun_family = AF_UNIX };
	size_t length = strlen(address);
	int rc = 0;

	if (length >= sizeof to.sun_path)
		return -ENAMETOOLONG;
	memcpy(to.sun_path, address, length);
	if (to.sun_path[0] == '@')
		to.sun_path[0] = '\0';
	manager->socket = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (manager->socket < 0)
		return -errno;
	if (connect(manager->socket, (struct sockaddr *)&to,
		    (socklen_t)(offsetof(struct sockaddr_un, sun_path) + length)) < 0)
		rc = -errno;
	return rc;
}

/* ETOOMANYREFS: too many fds are on their way (unix(7)); the manager takes them in time. */
static bool may_be_sent_later(int code)
{
	return code == EINTR || code == EAGAIN || code == ENOBUFS || code == ENOMEM || code == ETOOMANYREFS;
}

static int send_with_fd(const struct fd_store *manager, const char *message, int fd)
{
	union {
		char bytes[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} control = { .bytes = { 0 } };
	struct iovec part = { .iov_base = (void *)message, .iov_len = strlen(message) };
	struct msghdr header = { .msg_iov = &part,
				 .msg_iovlen = 1,
				 .msg_control = control.bytes,
				 .msg_controllen = sizeof control.bytes };
	struct cmsghdr *rights = CMSG_FIRSTHDR(&header);

	rights->cmsg_level = SOL_SOCKET;
	rights->cmsg_type = SCM_RIGHTS;
	rights->cmsg_len = CMSG_LEN(sizeof fd);
	memcpy(CMSG_DATA(rights), &fd, sizeof fd);
	while (sendmsg(manager->socket, &header, MSG_NOSIGNAL) < 0) {
		if (!may_be_sent_later(errno))
			return -errno;
		poll(NULL, 0, RETRY_MS);
	}
	return 0;
}

/* FDPOLL=0: systemd drops an fd that polls as an error, and a userfaultfd that is blocking does. */
int fd_store_add(const struct fd_store *manager, const char *name, int fd)
{
	char message[128];
	struct text text = text_in(message, sizeof message);

	text_add(&text, "FDSTORE=1\nFDNAME=");
	text_add(&text, name);
	text_add(&text, "\nFDPOLL=0");
	return send_with_fd(manager, message, fd);
}

/* systemd closes the other end of the pipe when it comes to the barrier (sd_notify(3)). */
int fd_store_wait(const struct fd_store *manager)
{
	struct pollfd reader = { .events = 0 };
	int ends[2];
	int rc;

	if (pipe2(ends, O_CLOEXEC) < 0)
		return -errno;
	rc = send_with_fd(manager, "BARRIER=1", ends[1]);
	close(ends[1]);
	reader.fd = ends[0];
	while (!rc && poll(&reader, 1, -1) != 1)
		;
	close(ends[0]);
	return rc;
}
