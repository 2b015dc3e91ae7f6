/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Whether this kernel has poison markers. They came with Linux 6.6: before, whoever touches a page that
 * cannot be read back waits until it can be. */
#ifndef VMMSWAP_POISON_MARKER_H
#define VMMSWAP_POISON_MARKER_H

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <stdbool.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

static inline bool have_poison(void)
{
	struct uffdio_api api = { .api = UFFD_API };
	int uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	bool have = uffd >= 0 && ioctl(uffd, UFFDIO_API, &api) == 0 && api.features & 1 << 14;

	close(uffd);
	return have;
}

#endif
