/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Reads of files through an io_uring: many in flight, begun by one system call, ended without any.
 *
 * One thread at a time uses a ring. */
#ifndef VMMSWAP_URING_H
#define VMMSWAP_URING_H

#include <stdbool.h>
#include <stdint.h>

struct uring;

/* A ring for `entries` reads at a time, a power of two. -EPERM, -ENOSYS: the kernel or a seccomp filter does
 * not allow io_uring here (kernel.io_uring_disabled, SystemCallFilter=); -ENOMEM and others: it cannot be had
 * now. */
int uring_create(unsigned entries, struct uring **out);
void uring_destroy(struct uring *uring); /* no read is in flight; NULL is allowed */

/* Readable while uring_next() has something. */
int uring_fd(const struct uring *uring);

/* Add a read that uring_submit() will begin. False: `entries` were added since the last one. */
bool uring_read(struct uring *uring, int fd, void *bytes, uint32_t size_bytes, uint64_t offset_bytes,
		void *token);

/* Begin what was added. False: the kernel did not take all now; call it again. */
bool uring_submit(struct uring *uring);

/* The next read that has ended, with its token: *result as of pread(), or -errno. False: none. */
bool uring_next(struct uring *uring, void **token, int32_t *result);

#endif
