/* SPDX-License-Identifier: GPL-2.0-or-later */
/* One thread's reads of files: any number in flight, each begun and taken apart, none waited for. Through an
 * io_uring, or where that is not allowed through threads that read (readers.h). */
#ifndef VMMSWAP_READS_H
#define VMMSWAP_READS_H

#include <stdbool.h>

#include "store/readers.h"

struct reads;

/* For `most` reads in flight, a power of two, and no more. uring: use an io_uring, if it can be had. 0 or
 * -errno. */
int reads_create(struct readers *readers, unsigned most, bool uring, struct reads **out);
void reads_destroy(struct reads *reads); /* none is in flight; NULL is allowed */

/* Readable while reads_take() has something that did not fail before it began. */
int reads_fd(const struct reads *reads);
bool reads_use_uring(const struct reads *reads);

/* Begin a read of whole pages: fd, bytes, size_bytes and offset_bytes are set. It may begin only with
 * reads_submit(). */
void reads_begin(struct reads *reads, struct file_read *file);

/* Begin all that has not begun yet. False: the kernel did not take all; call it again soon. */
bool reads_submit(struct reads *reads);

/* A read that has ended, with its result: 0; -errno; a short read is -EIO. NULL: none now. Then call
 * reads_submit() before you wait: the kernel may have cut a read short, and the rest of it has not begun. */
struct file_read *reads_take(struct reads *reads);

#endif
