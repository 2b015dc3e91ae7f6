/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Ends a move of private memory that the kernel would not end.
 *
 * UFFDIO_MOVE splits a huge page, or a large folio, before it moves parts of it. While anything holds one of
 * its pages (I/O in flight, a registered buffer), that fails with EAGAIN, and up to some kernel after 6.12
 * the call tries again without end, and only SIGKILL ends it (mm/userfaultfd.c, move_pages()): seen on
 * Debian's 6.12.117. The thread of the VMM then holds the mapping's lock, and guest threads wait for pages
 * that were moved already. If the I/O waits for one of these, nothing ever ends.
 *
 * Each try looks first at the place where the page is to go, and the call ends with EEXIST if there is one.
 * So zeros are put there, wherever scratch is empty. Whatever was not moved by then stays in guest memory: a
 * page is moved or it is not, so this is as right as any other end. */
#ifndef VMMSWAP_SCRATCH_FILL_H
#define VMMSWAP_SCRATCH_FILL_H

#include <stdint.h>
#include <sys/types.h>

/* Fill what is empty of size_bytes at addr with zeros, by way of the process's own userfaultfd, which is
 * looked for among its fds. proc_fd: its /proc/PID. How many pages were filled; -ENOENT: no such userfaultfd;
 * -errno. */
int scratch_fill(pid_t pid, int proc_fd, uint64_t addr, uint64_t size_bytes);

#endif
