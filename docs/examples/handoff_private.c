/* SPDX-License-Identifier: GPL-2.0-or-later */
/* How a VMM hands private, anonymous memory to vmmswap. handoff.c is the same for shared memory; what differs
 * is here: a thread of the VMM moves its pages, because nobody else can (UFFDIO_MOVE, Linux 6.8 or newer).
 *
 *	gcc -Wall -Wextra -I../../engine/src -I../../engine/planted -o handoff_private handoff_private.c \
 *		../../engine/planted/mover_thread.c
 *	./handoff_private /run/vmmswap/NAME.sock
 *
 * This example's guest is 64 MiB of numbers; once `ready` it checks one for each line on standard input,
 * until that ends. */
#define _GNU_SOURCE
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#include "mover_thread.h"

#ifndef USERFAULTFD_IOC_NEW /* headers older than Linux 6.1 */
#define USERFAULTFD_IOC_NEW _IO(0xAA, 0x00)
#endif

#define GUEST_BYTES ((uint64_t)64 << 20)
#define PAGE_BYTES 4096

static struct vmmswap_mover mover;

/* Children must not inherit it: a copy of what is out cannot be told from the VMM's own. */
static void *map_private(uint64_t bytes, uint64_t aligned_to)
{
	char *at = mmap(NULL, bytes + aligned_to, PROT_READ | PROT_WRITE,
			MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (at == MAP_FAILED)
		err(1, "mmap");
	at += (aligned_to - (uintptr_t)at % aligned_to) % aligned_to;
	if (madvise(at, bytes, MADV_DONTFORK) < 0)
		err(1, "madvise");
	return at;
}

static int open_userfaultfd(int more_flags)
{
	int flags = O_CLOEXEC | O_NONBLOCK | more_flags;
	int device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
	int uffd = device < 0 ? -1 : ioctl(device, USERFAULTFD_IOC_NEW, flags);

	if (device >= 0)
		close(device);
	if (uffd < 0)
		uffd = (int)syscall(SYS_userfaultfd, flags);
	if (uffd < 0)
		err(1, "userfaultfd");
	return uffd;
}

/* The monitor asks the thread through this page, and reads what it moved from scratch. */
static int create_mailbox(void)
{
	int fd = memfd_create("vmmswap mailbox", MFD_CLOEXEC | MFD_ALLOW_SEALING);

	if (fd < 0 || ftruncate(fd, VMMSWAP_MAILBOX_BYTES) < 0 ||
	    fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) < 0)
		err(1, "mailbox");
	mover.mailbox = mmap(NULL, VMMSWAP_MAILBOX_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (mover.mailbox == MAP_FAILED)
		err(1, "mmap of the mailbox");
	return fd;
}

/* With a userfaultfd of its own, for user mode only: nobody waits for a page of scratch that is not there. */
static void create_scratch(void)
{
	struct uffdio_api api = { .api = UFFD_API };
	struct uffdio_register scratch = { .mode = UFFDIO_REGISTER_MODE_MISSING };

	mover.scratch_addr = (uintptr_t)map_private(VMMSWAP_SCRATCH_BYTES, VMMSWAP_WINDOW_BYTES);
	scratch.range = (struct uffdio_range){ mover.scratch_addr, VMMSWAP_SCRATCH_BYTES };
	mover.uffd = open_userfaultfd(UFFD_USER_MODE_ONLY);
	if (ioctl(mover.uffd, UFFDIO_API, &api) < 0 || ioctl(mover.uffd, UFFDIO_REGISTER, &scratch) < 0)
		err(1, "scratch");
}

static void *move_pages(void *unused)
{
	prctl(PR_SET_NAME, "vmmswap");
	vmmswap_mover_run(&mover);
	return unused;
}

/* It takes no signals, and costs nothing while nothing moves. */
static void start_mover(const void *memory)
{
	sigset_t all, before;
	pthread_t thread;

	mover.ranges[0] = (struct vmmswap_mover_range){ (uintptr_t)memory, GUEST_BYTES };
	mover.ranges_n = 1;
	mover.mailbox->magic = VMMSWAP_MAILBOX_MAGIC;
	mover.mailbox->scratch_addr = mover.scratch_addr;
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	if (pthread_create(&thread, NULL, move_pages, NULL))
		errx(1, "cannot start a thread");
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	while (!__atomic_load_n(&mover.mailbox->tid, __ATOMIC_ACQUIRE))
		usleep(1000);
}

/* The regions say `private`, and have no offset and no memfd; the mailbox comes in the memfds' place. */
static int send_register(int sock, int uffd, int mailbox, const void *memory, const void *dummy_page)
{
	char json[512];
	/* Whether a page is there, the monitor sees in our pagemap, which it may have no right to open. */
	int pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC), sent;
	int fds[3] = { uffd, mailbox, pagemap };
	union {
		struct cmsghdr header;
		char bytes[CMSG_SPACE(sizeof(fds))];
	} control = { 0 };
	int length =
		snprintf(json, sizeof(json),
			 "{\"vmmswap\":1,\"type\":\"register\",\"regions\":[{\"base_host_virt_addr\":%llu,"
			 "\"size\":%llu,\"page_size\":%d,\"private\":true}],\"dummy_page\":%llu}\n",
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
	sent = (int)sendmsg(sock, &message, MSG_NOSIGNAL);
	close(pagemap);
	return sent == length ? 0 : -1;
}

static int hand_over(const char *path, int mailbox, const void *memory)
{
	int uffd = open_userfaultfd(0); /* for the guest's memory: never closed, and not for user mode only */
	void *dummy_page = mmap(NULL, PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	int sock = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	char reply[1024] = "";

	if (dummy_page == MAP_FAILED)
		err(1, "mmap of the dummy page");
	if (strlen(path) >= sizeof(address.sun_path))
		errx(2, "%s: too long for a socket's path", path);
	strcpy(address.sun_path, path);
	if (sock < 0 || connect(sock, (struct sockaddr *)&address, sizeof(address)) < 0)
		err(1, "%s", path);
	if (send_register(sock, uffd, mailbox, memory, dummy_page) < 0)
		err(1, "sendmsg");
	for (size_t length = 0; length + 1 < sizeof(reply) && !strchr(reply, '\n'); length++)
		if (read(sock, reply + length, 1) != 1)
			errx(1, "the monitor ended before it answered: register again");
	fputs(reply, stdout);
	if (!strstr(reply, "\"ready\""))
		errx(1, "the monitor refused: %s", reply);
	return sock;
}

int main(int argc, char **argv)
{
	uint64_t words = GUEST_BYTES / sizeof(uint64_t);
	char line[64];

	if (argc != 2)
		errx(2, "usage: %s /run/vmmswap/NAME.sock", argv[0]);
	setlinebuf(stdout);
	uint64_t *memory = map_private(GUEST_BYTES, VMMSWAP_WINDOW_BYTES);
	for (uint64_t i = 0; i < words; i++)
		memory[i] = i;

	int mailbox = create_mailbox();
	create_scratch();
	start_mover(memory);
	int sock = hand_over(argv[1], mailbox, memory);
	for (uint64_t i = 0; fgets(line, sizeof(line), stdin); i += 12345678)
		printf("%s\n", memory[i % words] == i % words ? "right" : "wrong");
	close(sock);
	return 0;
}
