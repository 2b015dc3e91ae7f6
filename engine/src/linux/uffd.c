/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "linux/uffd.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "base/failpoint.h"

#ifndef UFFDIO_POISON /* since Linux 6.6; Debian 12's headers are older */
struct uffdio_poison {
	struct uffdio_range range;
	__u64 mode;
	__s64 updated;
};
#define UFFDIO_POISON _IOWR(UFFDIO, 0x08, struct uffdio_poison)
#endif

#ifndef UFFDIO_CONTINUE_MODE_WP /* since Linux 6.4 */
#define UFFDIO_CONTINUE_MODE_WP ((__u64)1 << 1)
#endif

const char *uffd_outcome_text(enum uffd_outcome outcome)
{
	switch (outcome) {
	case UFFD_DONE:
		return "done";
	case UFFD_EXISTS:
		return "the page is already present";
	case UFFD_RETRY:
		return "an event of the process waits to be read";
	case UFFD_GONE:
		return "the process is gone";
	case UFFD_UNMAPPED:
		return "the range is not mapped or not registered";
	case UFFD_NO_MEMORY:
		return "no memory left for the process";
	case UFFD_BEYOND:
		return "the range is beyond the end of its memfd";
	case UFFD_REFUSED:
		return "the kernel refused";
	}
	return "unknown outcome";
}

static enum uffd_outcome outcome_of(int code)
{
	switch (code) {
	case EEXIST:
		return UFFD_EXISTS;
	case EAGAIN:
		return UFFD_RETRY;
	case ESRCH:
		return UFFD_GONE;
	case ENOENT:
		return UFFD_UNMAPPED;
	case ENOMEM:
		return UFFD_NO_MEMORY;
	case EFAULT:
		return UFFD_BEYOND;
	default:
		return UFFD_REFUSED;
	}
}

int uffd_open_own(void)
{
	struct uffdio_api api = {
		.api = UFFD_API,
		.features = UFFD_FEATURE_MISSING_SHMEM | UFFD_FEATURE_MINOR_SHMEM,
	};
	int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY);

	if (fd >= 0 && ioctl(fd, UFFDIO_API, &api) == 0)
		return fd;
	int rc = -errno;

	if (fd >= 0)
		close(fd);
	return rc;
}

/* An address where hardly anything is mapped (vm.mmap_min_addr's default), and no guest memory. */
#define NOWHERE_ADDR 0x10000

/* (Un)register takes the mm by mmget_not_zero and returns ENOMEM where other calls return ESRCH. It also
 * returns ENOMEM if a mapping cannot be split, because the process has its maximum of mappings
 * (vm.max_map_count). To tell which, make a request that is refused for another reason. */
static enum uffd_outcome registration_outcome(int uffd, int code)
{
	struct uffdio_zeropage request = { .range = { .start = NOWHERE_ADDR, .len = 4096 } };

	if (code == ENOMEM && ioctl(uffd, UFFDIO_ZEROPAGE, &request) < 0 && errno == ESRCH)
		code = ESRCH;
	if (code == ENOMEM)
		return UFFD_NO_MEMORY;
	return code == ESRCH ? UFFD_GONE : UFFD_REFUSED;
}

#define MISSING_AND_MINOR (UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_MINOR)

static enum uffd_outcome register_mode(int uffd, uint64_t addr, uint64_t size_bytes, uint64_t mode)
{
	struct uffdio_register request = { .range = { .start = addr, .len = size_bytes }, .mode = mode };

	if (ioctl(uffd, UFFDIO_REGISTER, &request) == 0)
		return UFFD_DONE;
	return registration_outcome(uffd, errno);
}

enum uffd_outcome uffd_register(int uffd, uint64_t addr, uint64_t size_bytes, bool write_protect)
{
	return register_mode(uffd, addr, size_bytes,
			     UFFDIO_REGISTER_MODE_MISSING | (write_protect ? UFFDIO_REGISTER_MODE_WP : 0));
}

enum uffd_outcome uffd_unregister(int uffd, uint64_t addr, uint64_t size_bytes)
{
	struct uffdio_range range = { .start = addr, .len = size_bytes };

	if (ioctl(uffd, UFFDIO_UNREGISTER, &range) == 0)
		return UFFD_DONE;
	return registration_outcome(uffd, errno);
}

/* Minor faults are faults on pages that the file has and the process has not mapped yet. The kernel grants
 * them to shmem only, and to all of a range or none (fs/userfaultfd.c, vma_can_userfault()): this tells
 * private memory from a guest's. We do not want them, as each would cost a wake-up. A mode that adds nothing
 * to the registered one changes nothing; any other mode replaces it. So asking first for missing and minor
 * faults, then for missing faults and write-protection, never loses the missing ones. Without
 * write-protection, minor faults stay, and are served. */
enum uffd_outcome uffd_register_shared(int uffd, uint64_t addr, uint64_t size_bytes, bool write_protect)
{
	enum uffd_outcome outcome = register_mode(uffd, addr, size_bytes, MISSING_AND_MINOR);

	FAILPOINT_HERE("uffd.minor");
	return outcome == UFFD_DONE ? uffd_register(uffd, addr, size_bytes, write_protect) : outcome;
}

enum uffd_outcome uffd_register_more(int uffd, uint64_t addr, uint64_t size_bytes, bool write_protect)
{
	return register_mode(uffd, addr, size_bytes,
			     MISSING_AND_MINOR | (write_protect ? UFFDIO_REGISTER_MODE_WP : 0));
}

enum uffd_outcome uffd_unregister_shared(int uffd, uint64_t addr, uint64_t size_bytes)
{
	enum uffd_outcome outcome = register_mode(uffd, addr, size_bytes, MISSING_AND_MINOR);
	enum uffd_outcome undone = uffd_unregister(uffd, addr, size_bytes);

	uffd_wake(uffd, addr, size_bytes); /* unregistering wakes only those that wait for missing pages */
	return outcome == UFFD_DONE ? undone : outcome;
}

/* Memory that nobody may read. The kernel checks the registration first, and the bytes only then. */
static void *unreadable;

static void map_unreadable(void)
{
	unreadable = mmap(NULL, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
}

enum uffd_answer uffd_is_registered(int uffd, uint64_t addr)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;
	struct uffdio_copy request = { .dst = addr, .len = 4096 };

	pthread_once(&once, map_unreadable);
	request.src = (uint64_t)(uintptr_t)unreadable;
	if (unreadable == MAP_FAILED || ioctl(uffd, UFFDIO_COPY, &request) == 0)
		return UFFD_UNKNOWN;
	if (errno == ENOENT || errno == ESRCH)
		return UFFD_NO;
	return errno == EFAULT || errno == EEXIST ? UFFD_YES : UFFD_UNKNOWN;
}

/* 0 or a positive errno. */
static int copy_once(int uffd, struct uffdio_copy *request)
{
	int rc = FAILPOINT("uffd.copy");

	if (rc)
		return -rc;
	return ioctl(uffd, UFFDIO_COPY, request) == 0 ? 0 : errno;
}

enum uffd_outcome uffd_copy(int uffd, uint64_t addr, const void *from, uint64_t size_bytes,
			    bool write_protect, uint64_t *copied_bytes)
{
	struct uffdio_copy request = {
		.dst = addr,
		.src = (uint64_t)(uintptr_t)from,
		.len = size_bytes,
		.mode = write_protect ? UFFDIO_COPY_MODE_WP : 0,
	};
	int code = copy_once(uffd, &request);

	/* Since Linux 6.8 the kernel looks for unread events, then for the mapping, and then for events once
	 * more. A mapping that is being moved away between the first two is not found, though its event is
	 * still to come; whoever looks again meets the event (mm/userfaultfd.c, mfill_atomic()). */
	if (code == ENOENT)
		code = copy_once(uffd, &request);
	*copied_bytes = 0;
	if (!code)
		*copied_bytes = size_bytes;
	/* If nothing was copied, .copy holds a negative errno, on kernels that write it at all. */
	if (code == EAGAIN && request.copy > 0)
		*copied_bytes = (uint64_t)request.copy;
	return code ? outcome_of(code) : UFFD_DONE;
}

enum uffd_outcome uffd_zeropage(int uffd, uint64_t addr)
{
	struct uffdio_zeropage request = { .range = { .start = addr, .len = 4096 } };
	int rc = FAILPOINT("uffd.zeropage");

	if (rc)
		return outcome_of(-rc);
	return ioctl(uffd, UFFDIO_ZEROPAGE, &request) == 0 ? UFFD_DONE : outcome_of(errno);
}

enum uffd_outcome uffd_poison(int uffd, uint64_t addr)
{
	struct uffdio_poison request = { .range = { .start = addr, .len = 4096 } };

	return ioctl(uffd, UFFDIO_POISON, &request) == 0 ? UFFD_DONE : outcome_of(errno);
}

static enum uffd_outcome continue_mode(int uffd, uint64_t addr, uint64_t mode)
{
	struct uffdio_continue request = { .range = { .start = addr, .len = 4096 }, .mode = mode };
	int rc = FAILPOINT("uffd.continue");

	if (rc)
		return outcome_of(-rc);
	return ioctl(uffd, UFFDIO_CONTINUE, &request) == 0 ? UFFD_DONE : outcome_of(errno);
}

enum uffd_outcome uffd_continue(int uffd, uint64_t addr)
{
	return continue_mode(uffd, addr, 0);
}

/* The kernel looks at the mode before it looks for a registration (fs/userfaultfd.c,
 * userfaultfd_continue()). */
static bool continue_protected;

static void probe_continue_protected(void)
{
	struct uffdio_continue request = { .range = { .start = NOWHERE_ADDR, .len = 4096 },
					   .mode = UFFDIO_CONTINUE_MODE_WP };
	int uffd = uffd_open_own();

	if (uffd < 0)
		return;
	continue_protected = ioctl(uffd, UFFDIO_CONTINUE, &request) < 0 && errno == ENOENT;
	close(uffd);
}

bool uffd_can_continue_protected(void)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;

	pthread_once(&once, probe_continue_protected);
	return continue_protected && !FAILPOINT("uffd.continue-protected");
}

enum uffd_outcome uffd_continue_protected(int uffd, uint64_t addr)
{
	return uffd_can_continue_protected() ? continue_mode(uffd, addr, UFFDIO_CONTINUE_MODE_WP) :
					       UFFD_REFUSED;
}

enum uffd_outcome uffd_wake(int uffd, uint64_t addr, uint64_t size_bytes)
{
	struct uffdio_range range = { .start = addr, .len = size_bytes };

	return ioctl(uffd, UFFDIO_WAKE, &range) == 0 ? UFFD_DONE : outcome_of(errno);
}

static enum uffd_outcome set_protection(int uffd, uint64_t addr, uint64_t size_bytes, uint64_t mode)
{
	struct uffdio_writeprotect request = { .range = { .start = addr, .len = size_bytes }, .mode = mode };

	return ioctl(uffd, UFFDIO_WRITEPROTECT, &request) == 0 ? UFFD_DONE : outcome_of(errno);
}

enum uffd_outcome uffd_protect(int uffd, uint64_t addr, uint64_t size_bytes)
{
	int rc = FAILPOINT("uffd.protect");

	if (rc)
		return outcome_of(-rc);
	return set_protection(uffd, addr, size_bytes, UFFDIO_WRITEPROTECT_MODE_WP);
}

enum uffd_outcome uffd_unprotect(int uffd, uint64_t addr, uint64_t size_bytes)
{
	return set_protection(uffd, addr, size_bytes, 0);
}

/* O_NONBLOCK belongs to the open file, which the VMM shares. It can clear the flag between any two of our
 * calls, and a plain read() would then sleep in the kernel with a lock held. RWF_NOWAIT asks per call.
 * Kernels before 6.10 refuse it for userfaultfd (EOPNOTSUPP); there we set the flag again before each read,
 * which only narrows the window. */
int uffd_read(int uffd, struct uffd_msg *messages, size_t messages_n)
{
	struct iovec iov = { .iov_base = messages, .iov_len = messages_n * sizeof *messages };
	ssize_t got = preadv2(uffd, &iov, 1, -1, RWF_NOWAIT);

	if (got < 0 && errno == EOPNOTSUPP) {
		int flags = fcntl(uffd, F_GETFL);

		if (flags >= 0 && !(flags & O_NONBLOCK))
			fcntl(uffd, F_SETFL, flags | O_NONBLOCK);
		got = read(uffd, messages, iov.iov_len);
	}
	if (got >= 0)
		return (int)((size_t)got / sizeof *messages);
	return errno == EAGAIN || errno == EINTR ? 0 : -errno;
}
