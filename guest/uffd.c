/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "uffd.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/ioctl.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Debian 12's headers are older than some kernels that we run on. */
#ifndef USERFAULTFD_IOC_NEW
#define USERFAULTFD_IOC_NEW _IO(0xAA, 0x00)
#endif
#ifndef UFFD_USER_MODE_ONLY
#define UFFD_USER_MODE_ONLY 1
#endif
#ifndef UFFD_FEATURE_WP_HUGETLBFS_SHMEM
#define UFFD_FEATURE_WP_HUGETLBFS_SHMEM (1 << 12)
#endif

#ifndef UFFD_FEATURE_POISON
#define UFFD_FEATURE_POISON (1 << 14)
#endif

/* All that the monitor can use, then with less for older kernels. Without fork events nothing works well. */
static const uint64_t wanted[] = {
	UFFD_FEATURE_EVENT_FORK | UFFD_FEATURE_EVENT_REMOVE | UFFD_FEATURE_MISSING_SHMEM |
		UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_WP_HUGETLBFS_SHMEM | UFFD_FEATURE_POISON,
	UFFD_FEATURE_EVENT_FORK | UFFD_FEATURE_EVENT_REMOVE | UFFD_FEATURE_MISSING_SHMEM |
		UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_WP_HUGETLBFS_SHMEM,
	UFFD_FEATURE_EVENT_FORK | UFFD_FEATURE_EVENT_REMOVE | UFFD_FEATURE_MISSING_SHMEM,
};

static int open_bare(const struct uffd_options *options)
{
	int flags = O_CLOEXEC | O_NONBLOCK | (options->user_mode_only ? UFFD_USER_MODE_ONLY : 0);
	int fd = -1;

	if (options->source != UFFD_SYSCALL) {
		int device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);

		if (device >= 0) {
			fd = ioctl(device, USERFAULTFD_IOC_NEW, flags);
			int err = errno;
			close(device);
			errno = err;
		}
		if (fd >= 0 || options->source == UFFD_DEVICE)
			return fd < 0 ? -errno : fd;
	}
	fd = (int)syscall(SYS_userfaultfd, flags);
	return fd < 0 ? -errno : fd;
}

static int try_api(int fd, uint64_t features)
{
	struct uffdio_api api = { .api = UFFD_API, .features = features };

	return ioctl(fd, UFFDIO_API, &api) < 0 ? -errno : 0;
}

/* UFFDIO_API that fails leaves the fd uninitialised, so asking for less afterwards is sound. */
static int do_api(int fd, uint64_t features)
{
	int rc = -EINVAL;

	if (features)
		return try_api(fd, features);
	for (unsigned i = 0; i < sizeof(wanted) / sizeof(wanted[0]) && rc == -EINVAL; i++)
		rc = try_api(fd, wanted[i]);
	return rc;
}

int uffd_open(const struct uffd_options *options)
{
	int fd = open_bare(options);

	if (fd < 0 || !options->does_api)
		return fd;
	int rc = do_api(fd, options->api_features);
	if (rc < 0) {
		close(fd);
		return rc;
	}
	return fd;
}

const char *uffd_advice(int err)
{
	switch (err) {
	case ENOSYS:
		return "this kernel has no userfaultfd: CONFIG_USERFAULTFD is off";
	case EPERM:
		return "needs root, CAP_SYS_PTRACE, sysctl vm.unprivileged_userfaultfd=1, or access to "
		       "/dev/userfaultfd";
	case EACCES:
		return "/dev/userfaultfd may not be opened: be in its group (vmmswap) or root";
	case ENOENT:
		return "there is no /dev/userfaultfd: use --uffd syscall";
	case EINVAL:
		return "the kernel lacks a feature that was asked for";
	default:
		return "see userfaultfd(2)";
	}
}
