/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A bare io_uring for tests: enough to register buffers. */
#ifndef VMMSWAP_TESTS_URING_H
#define VMMSWAP_TESTS_URING_H

#include <linux/io_uring.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "harness.h"

static inline int uring_open(void)
{
	struct io_uring_params params;
	int fd;

	memset(&params, 0, sizeof params);
	fd = (int)syscall(SYS_io_uring_setup, 4, &params);
	if (fd < 0 && (errno == ENOSYS || errno == EPERM))
		test_skip("io_uring is not to be had: %s", strerror(errno));
	CHECK_SYS(fd);
	return fd;
}

static inline void uring_register(int ring, void *addr, size_t size_bytes)
{
	struct iovec iov[2] = { { NULL, 0 }, { addr, size_bytes } }; /* the first one is left empty */

	CHECK_SYS(syscall(SYS_io_uring_register, ring, IORING_REGISTER_BUFFERS, iov, 2));
}

static inline void uring_unregister(int ring)
{
	CHECK_SYS(syscall(SYS_io_uring_register, ring, IORING_UNREGISTER_BUFFERS, NULL, 0));
}

#endif
