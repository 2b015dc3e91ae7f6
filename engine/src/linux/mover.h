/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The monitor's end of the mailbox (mailbox.h): asks a thread of the VMM to move windows of private guest
 * memory to scratch, and reads what is there.
 *
 * Each place in scratch has one owner at a time. Any thread may call any function, with a place that it owns.
 * mover_find() and mover_read() wait for nothing that a guest or a disk can delay. The others wait for a
 * thread of the VMM. */
#ifndef VMMSWAP_LINUX_MOVER_H
#define VMMSWAP_LINUX_MOVER_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/error.h"
#include "linux/mailbox.h"

struct mover;

/* pid: of the VMM, which must have a thread at the mailbox. pagemap_fd: the VMM's own, /proc/self/pagemap;
 * -1: it is opened here. The fds stay the caller's. What a predecessor has left in scratch is taken over:
 * mover_take_left(). A VMM that has ended (pid -1 too) has no memory and no thread. -EINVAL: no such mailbox;
 * -ENOTSUP: a kernel before 6.8; -EBUSY: the thread is still busy for a predecessor, and may be done soon. */
int mover_open(pid_t pid, int mailbox_fd, int pagemap_fd, struct mover **out, struct error *err);
void mover_close(struct mover *mover); /* NULL is allowed */

/* For pagemap.h; -1: the VMM had ended before mover_open(). */
int mover_pagemap(const struct mover *mover);

/* Own a place in scratch, once one is free and nobody else has the window, and record that the window may be
 * there from now on. -1: what is in the way is what mover_take_left() gives. */
int mover_take_place(struct mover *mover, uint64_t window_addr);

/* Give the place up; nothing that is needed is in it any more. The place must be empty, unless the thread is
 * gone. */
void mover_give_place(struct mover *mover, int place);

/* Own a place that a predecessor, or a thread that gave up, left with a window in it. -1: there is none. */
int mover_take_left(struct mover *mover, uint64_t *window_addr);

/* Give up the place, and leave what is in it: see mover_take_left(). */
void mover_leave_place(struct mover *mover, int place);

/* Move the wanted pages of the place's window. *moved has those that were, and *busy those that something
 * else holds. All others are where they were, or were not there. 0, with *why the errno of pages that stay
 * for another reason, or 0. -ETIMEDOUT: the thread did not take the order for five seconds, and will not:
 * nothing was moved. -ESRCH: there is no thread any more; what was moved is not known, and will not change.
 * -ECANCELED: stop became true; what was moved is not known, and may change yet. */
int mover_move(struct mover *mover, int place, const uint64_t wanted[VMMSWAP_WINDOW_WORDS],
	       uint64_t moved[VMMSWAP_WINDOW_WORDS], uint64_t busy[VMMSWAP_WINDOW_WORDS], int *why,
	       const _Atomic bool *stop);

/* Empty a place. Errors as of mover_move(), or the kernel's of madvise(MADV_DONTNEED): -EINVAL, the VMM has
 * locked it into RAM. Then what was moved there is there yet. */
int mover_discard(struct mover *mover, int place, const _Atomic bool *stop);

/* The place that may have this window; -1: none. */
int mover_find(const struct mover *mover, uint64_t window_addr);

/* Read pages of a place into buf. -ENOENT: one of them is not there; -EAGAIN: they are, and the kernel has no
 * memory to say so now; -ESRCH: the VMM has ended. Pages are there or not: reading never waits for one. */
int mover_read(const struct mover *mover, int place, uint64_t page, uint64_t pages, void *buf);

/* What an error of these means, for people. */
const char *mover_error_text(int rc);

#endif
