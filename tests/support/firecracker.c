/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A VMM that restores a snapshot as Firecracker does (src/vmm/src/persist.rs, guest_memory_from_uffd and
 * send_uffd_handshake; format of the message: GuestRegionUffdMapping): private anonymous memory, one
 * userfaultfd with EVENT_REMOVE, O_NONBLOCK and kernel-mode faults, registered for missing pages; connect;
 * all regions as one JSON array with the userfaultfd in one sendmsg(); nothing is read, and neither the
 * socket nor the userfaultfd is ever closed. Then its guest does what standard input says, one order a line,
 * one answer a line:
 *
 *     firecracker SOCKET VERSION SIZE-MIB[,SIZE-MIB...] [ODD]
 *
 * VERSION: new, or old: page_size_kib alone, where new has page_size too; EVENT_REMOVE only if there is a
 * balloon (there is none); the socket is closed as soon as all is sent. ODD: split (the message comes in
 * pieces), or what Firecracker would not do and what we do not serve: shared, fork, no-api, huge.
 *
 *     read PAGE N FILE     write() N pages to FILE: the kernel reads guest memory
 *     sum PAGE N           read each byte and answer the sum of all words; "sigbus" if that raises it
 *     write PAGE N BYTE    fill N pages
 *     balloon PAGE N       MADV_DONTNEED: Firecracker's balloon
 *     remap PAGE N         map anew in their place: the balloon of Firecrackers before PR #5021
 *     forbid PAGE N        mprotect(PROT_NONE): memory that is not plugged in
 *     allow PAGE N         and plugged in again
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sched.h>
#include <setjmp.h>
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

#define PAGE_BYTES 4096ul
#define REGIONS_MAX 8

struct region {
	char *addr;
	size_t bytes, offset_bytes;
};

static struct region regions[REGIONS_MAX];
static size_t regions_n;
static const char *odd = "";
static int is_old;
static sigjmp_buf on_sigbus;

static void need(int good, const char *what)
{
	if (good)
		return;
	perror(what);
	exit(1);
}

static void caught(int number)
{
	(void)number;
	siglongjmp(on_sigbus, 1);
}

/* Guard pages keep the kernel from joining a region with its neighbours, as Firecracker's do. */
static void map_regions(const char *sizes_mib)
{
	int sharing = strcmp(odd, "shared") == 0 ? MAP_SHARED : MAP_PRIVATE;
	char *text = strdup(sizes_mib);
	size_t offset_bytes = 0;

	for (char *size = strtok(text, ","); size; size = strtok(NULL, ",")) {
		struct region *region = &regions[regions_n++];

		region->bytes = strtoul(size, NULL, 10) << 20;
		region->offset_bytes = offset_bytes;
		offset_bytes += region->bytes;
		region->addr = mmap(NULL, region->bytes + 2 * PAGE_BYTES, PROT_NONE,
				    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
		need(region->addr != MAP_FAILED, "mmap");
		region->addr = mmap(region->addr + PAGE_BYTES, region->bytes, PROT_READ | PROT_WRITE,
				    sharing | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
		need(region->addr != MAP_FAILED, "mmap");
	}
	free(text);
}

static int make_uffd(void)
{
	struct uffdio_api api = { .api = UFFD_API, .features = UFFD_FEATURE_EVENT_REMOVE };
	int uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);

	need(uffd >= 0, "userfaultfd");
	if (strcmp(odd, "no-api") == 0)
		return uffd;
	if (is_old)
		api.features = 0;
	if (strcmp(odd, "fork") == 0)
		api.features |= UFFD_FEATURE_EVENT_FORK;
	need(ioctl(uffd, UFFDIO_API, &api) == 0, "UFFDIO_API");
	for (size_t i = 0; i < regions_n; i++) {
		struct uffdio_register range = {
			.range = { (uintptr_t)regions[i].addr, regions[i].bytes },
			.mode = UFFDIO_REGISTER_MODE_MISSING,
		};

		need(ioctl(uffd, UFFDIO_REGISTER, &range) == 0, "UFFDIO_REGISTER");
	}
	return uffd;
}

/* serde_json's compact form, in the order of the struct's fields. */
static size_t describe(char *text, size_t room)
{
	size_t page_bytes = strcmp(odd, "huge") == 0 ? 2 << 20 : PAGE_BYTES;
	size_t n = 0;

	for (size_t i = 0; i < regions_n; i++) {
		n += (size_t)snprintf(text + n, room - n,
				      "%s{\"base_host_virt_addr\":%ju,\"size\":%zu,\"offset\":%zu,",
				      i ? "," : "[", (uintmax_t)(uintptr_t)regions[i].addr, regions[i].bytes,
				      regions[i].offset_bytes);
		if (!is_old)
			n += (size_t)snprintf(text + n, room - n, "\"page_size\":%zu,", page_bytes);
		n += (size_t)snprintf(text + n, room - n, "\"page_size_kib\":%zu}", page_bytes);
	}
	return n + (size_t)snprintf(text + n, room - n, "]");
}

static void send_handshake(const char *path, int uffd)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	char text[4096], control[CMSG_SPACE(sizeof uffd)] = { 0 };
	struct iovec bytes = { .iov_base = text, .iov_len = describe(text, sizeof text) };
	struct msghdr message = {
		.msg_iov = &bytes, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control
	};
	struct cmsghdr *header = CMSG_FIRSTHDR(&message);
	size_t whole = bytes.iov_len;
	int sock = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	header->cmsg_level = SOL_SOCKET;
	header->cmsg_type = SCM_RIGHTS;
	header->cmsg_len = CMSG_LEN(sizeof uffd);
	memcpy(CMSG_DATA(header), &uffd, sizeof uffd);
	snprintf(address.sun_path, sizeof address.sun_path, "%s", path);
	need(connect(sock, (struct sockaddr *)&address, sizeof address) == 0, "connect");
	if (strcmp(odd, "split") == 0)
		bytes.iov_len = 1;
	need(sendmsg(sock, &message, 0) == (ssize_t)bytes.iov_len, "sendmsg");
	for (size_t sent = bytes.iov_len; sent < whole; sent++) {
		need(send(sock, text + sent, 1, 0) == 1, "send");
		sched_yield();
	}
	if (is_old)
		close(sock);
}

/* Pages are counted over all regions. */
static char *page_at(size_t page)
{
	for (size_t i = 0; i < regions_n; i++) {
		if (page < regions[i].bytes / PAGE_BYTES)
			return regions[i].addr + page * PAGE_BYTES;
		page -= regions[i].bytes / PAGE_BYTES;
	}
	errno = ERANGE;
	need(0, "page");
	return NULL;
}

static void read_pages(size_t page, size_t n, const char *path)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

	need(fd >= 0, path);
	for (size_t i = 0; i < n; i++)
		need(write(fd, page_at(page + i), PAGE_BYTES) == (ssize_t)PAGE_BYTES,
		     "write from guest memory");
	close(fd);
	puts("ok");
}

static void sum_pages(size_t page, size_t n)
{
	static uint64_t sum; /* not in a register: sigsetjmp */

	if (sigsetjmp(on_sigbus, 1)) {
		puts("sigbus");
		return;
	}
	sum = 0;
	for (size_t i = 0; i < n; i++)
		for (volatile uint64_t *word = (uint64_t *)page_at(page + i);
		     (char *)word < page_at(page + i) + PAGE_BYTES; word++)
			sum += *word;
	printf("%ju\n", (uintmax_t)sum);
}

static void protect_pages(size_t page, size_t n, int how)
{
	for (size_t i = 0; i < n; i++)
		need(mprotect(page_at(page + i), PAGE_BYTES, how) == 0, "mprotect");
	puts("ok");
}

static void obey(const char *line)
{
	char path[256] = "";
	size_t page, n;
	unsigned byte;

	if (sscanf(line, "read %zu %zu %255s", &page, &n, path) == 3) {
		read_pages(page, n, path);
	} else if (sscanf(line, "sum %zu %zu", &page, &n) == 2) {
		sum_pages(page, n);
	} else if (sscanf(line, "write %zu %zu %u", &page, &n, &byte) == 3) {
		for (size_t i = 0; i < n; i++)
			memset(page_at(page + i), (int)byte, PAGE_BYTES);
		puts("ok");
	} else if (sscanf(line, "balloon %zu %zu", &page, &n) == 2) {
		for (size_t i = 0; i < n; i++)
			need(madvise(page_at(page + i), PAGE_BYTES, MADV_DONTNEED) == 0, "MADV_DONTNEED");
		puts("ok");
	} else if (sscanf(line, "remap %zu %zu", &page, &n) == 2) {
		for (size_t i = 0; i < n; i++)
			need(mmap(page_at(page + i), PAGE_BYTES, PROT_READ | PROT_WRITE,
				  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1,
				  0) != MAP_FAILED,
			     "mmap");
		puts("ok");
	} else if (sscanf(line, "forbid %zu %zu", &page, &n) == 2) {
		protect_pages(page, n, PROT_NONE);
	} else if (sscanf(line, "allow %zu %zu", &page, &n) == 2) {
		protect_pages(page, n, PROT_READ | PROT_WRITE);
	} else {
		printf("unknown: %s", line);
	}
}

int main(int argc, char **argv)
{
	struct sigaction action = { .sa_handler = caught };
	char line[512];

	if (argc < 4)
		return 2;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	setvbuf(stdout, NULL, _IOLBF, 0);
	sigaction(SIGBUS, &action, NULL);
	if (argc > 4)
		odd = argv[4];
	is_old = strcmp(argv[2], "old") == 0;
	map_regions(argv[3]);
	send_handshake(argv[1], make_uffd());
	puts("sent");
	while (fgets(line, sizeof line, stdin))
		obey(line);
	return 0;
}
