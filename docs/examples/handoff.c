/* SPDX-License-Identifier: GPL-2.0-or-later */
/* How a VMM hands its guest's memory to vmmswap: all that it takes, without a library.
 *
 * 	gcc -Wall -Wextra -o handoff handoff.c
 * 	./handoff /run/vmmswap/NAME.sock
 *
 * It needs access to the socket and to /dev/userfaultfd: root, or a member of the group vmmswap. This
 * example's guest is 64 MiB of numbers; once `ready` it checks one for each line on standard input, until
 * that ends. vmmswap-guest (guest/) is a larger example, with an event loop and several processes. / */
#define _GNU_SOURCE
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#ifndef USERFAULTFD_IOC_NEW /* headers older than Linux 6.1 */
#define USERFAULTFD_IOC_NEW _IO(0xAA, 0x00)
#endif

#define GUEST_BYTES ((uint64_t)64 << 20)
#define PAGE_BYTES 4096
#define TRIES 50

/* Guest memory must be shared memory: a memfd (or a file on tmpfs), mapped MAP_SHARED. The VMM goes on
 * using it as ever; pages that were taken away come back when they are touched. */
static int create_guest_memory(uint64_t **memory)
{
	int memfd = memfd_create("guest", MFD_CLOEXEC);

	if (memfd < 0 || ftruncate(memfd, GUEST_BYTES) < 0)
		err(1, "memfd");
	*memory = mmap(NULL, GUEST_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, memfd, 0);
	if (*memory == MAP_FAILED)
		err(1, "mmap");
	/* Linux before 6.4 fills what is swapped out with zeros where it makes huge pages, and the monitor
	 * refuses Enable where it may. EINVAL: this kernel makes none. */
	if (madvise(*memory, GUEST_BYTES, MADV_NOHUGEPAGE) < 0 && errno != EINVAL)
		err(1, "madvise");
	return memfd;
}

/* Not UFFD_USER_MODE_ONLY: KVM and vhost touch guest memory in kernel mode. UFFDIO_API is left to the
 * monitor, which knows the features that it needs and may have the right to ask for them where we have
 * not. */
static int create_userfaultfd(void)
{
	int flags = O_CLOEXEC | O_NONBLOCK;
	int device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
	int uffd = device < 0 ? -1 : ioctl(device, USERFAULTFD_IOC_NEW, flags);

	if (device >= 0)
		close(device);
	if (uffd < 0) /* Linux before 6.1; needs CAP_SYS_PTRACE or sysctl vm.unprivileged_userfaultfd=1 */
		uffd = (int)syscall(SYS_userfaultfd, flags);
	if (uffd < 0)
		err(1, "userfaultfd");
	return uffd;
}

/* A page that nobody touches. The monitor watches it from the start, so that the kernel tells it of every
 * fork of ours, also before guest memory is first swapped out. */
static void *create_dummy_page(void)
{
	void *page = mmap(NULL, PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (page == MAP_FAILED)
		err(1, "mmap of the dummy page");
	return page;
}

/* One JSON value, a newline, and the fds, all in one sendmsg: first the userfaultfd, then the memfds in
 * the order that "memfd" counts. There may be many memfds and many regions of each; here is one of each.
 * 0, or -1. */
static int send_register(int sock, int uffd, int memfd, const void *memory, const void *dummy_page)
{
	char json[512];
	int fds[2] = { uffd, memfd };
	union {
		struct cmsghdr header;
		char bytes[CMSG_SPACE(sizeof(fds))];
	} control = { 0 };
	int length =
		snprintf(json, sizeof(json),
			 "{\"vmmswap\":1,\"type\":\"register\",\"regions\":[{\"base_host_virt_addr\":%llu,"
			 "\"size\":%llu,\"offset\":0,\"page_size\":%d,\"memfd\":0}],\"dummy_page\":%llu}\n",
			 (unsigned long long)(uintptr_t)memory, (unsigned long long)GUEST_BYTES, PAGE_BYTES,
			 (unsigned long long)(uintptr_t)dummy_page);
	struct iovec iov = { .iov_base = json, .iov_len = (size_t)length };
	struct msghdr message = { .msg_iov = &iov, .msg_iovlen = 1 };

	control.header.cmsg_level = SOL_SOCKET;
	control.header.cmsg_type = SCM_RIGHTS;
	control.header.cmsg_len = CMSG_LEN(sizeof(fds));
	memcpy(CMSG_DATA(&control.header), fds, sizeof(fds));
	message.msg_control = control.bytes;
	message.msg_controllen = sizeof(control.bytes);
	return sendmsg(sock, &message, MSG_NOSIGNAL) == length ? 0 : -1;
}

/* One line: {"type":"ready","name":...} or {"type":"error","error":...,"message":...}. Its length, 0 if
 * the connection ended first: the monitor ended before it had recorded us, nothing has happened, and we
 * ask again. */
static size_t read_reply(int sock, char *reply, size_t size)
{
	size_t length = 0;

	while (length + 1 < size && (length == 0 || reply[length - 1] != '\n')) {
		ssize_t count = read(sock, reply + length, 1);

		if (count < 0 && errno == EINTR)
			continue;
		if (count <= 0)
			return 0;
		length++;
	}
	reply[length] = '\0';
	return length;
}

static int connect_to(const char *path)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	int sock = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (strlen(path) >= sizeof(address.sun_path))
		errx(2, "%s: too long for a socket's path", path);
	strcpy(address.sun_path, path);
	if (sock < 0 || connect(sock, (struct sockaddr *)&address, sizeof(address)) < 0)
		err(1, "%s", path);
	return sock;
}

static int hand_over(const char *path, int memfd, const void *memory)
{
	int uffd = create_userfaultfd(); /* never closed: see below */
	void *dummy_page = create_dummy_page();
	char reply[1024];

	for (int i = 0; i < TRIES; i++) {
		int sock = connect_to(path);

		if (send_register(sock, uffd, memfd, memory, dummy_page) == 0 &&
		    read_reply(sock, reply, sizeof(reply)) > 0) {
			fputs(reply, stdout);
			if (!strstr(reply, "\"ready\""))
				errx(1, "the monitor refused: %s", reply);
			return sock;
		}
		close(sock);
		usleep(100000);
	}
	errx(1, "%s: the monitor ends before it is ready; see its log", path);
}

int main(int argc, char **argv)
{
	uint64_t *memory;
	uint64_t words = GUEST_BYTES / sizeof(*memory);
	char line[64];

	if (argc != 2)
		errx(2, "usage: %s /run/vmmswap/NAME.sock", argv[0]);
	setlinebuf(stdout);
	int memfd = create_guest_memory(&memory);
	for (uint64_t i = 0; i < words; i++) /* memory may be in use already when it is handed over */
		memory[i] = i;

	/* From here to our end: the userfaultfd stays open, so that a guest whose monitor was killed waits
	 * for the next one instead of reading zeros; and the connection stays open: to close it means
	 * "give all back". */
	int sock = hand_over(argv[1], memfd, memory);
	for (uint64_t i = 0; fgets(line, sizeof(line), stdin); i += 12345678)
		printf("%s\n", memory[i % words] == i % words ? "right" : "wrong");
	close(sock);
	return 0;
}
