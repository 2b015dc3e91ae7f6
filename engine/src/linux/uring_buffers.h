/* SPDX-License-Identifier: GPL-2.0-or-later */
/* io_uring's registered buffers: pinned for as long as they are registered, so guest memory below them can
 * never leave.
 *
 * The kernel shows them in /proc/PID/fdinfo/FD of each io_uring, as addresses in the process that registered
 * them. A VMM may register more at any time: look before each swap-out, and still check each page (pins.h).
 */
#ifndef VMMSWAP_URING_BUFFERS_H
#define VMMSWAP_URING_BUFFERS_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/error.h"

struct uring_range { /* guest memory as one process sees it */
	pid_t pid;
	uint64_t addr;
	uint64_t size_bytes;
};

struct uring_found {
	pid_t pid;
	int fd;	       /* of the io_uring in that process */
	uint64_t addr; /* of the registered buffer */
	uint64_t size_bytes;
};

/* Search every io_uring of the processes in ranges for a registered buffer that overlaps one of that
 * process's ranges. 1: found, *out is the first one and *err says so in words for a person. 0: none. -errno
 * with *err: could not be told (-EACCES: CAP_SYS_PTRACE is needed; -EBUSY: a ring was locked each time we
 * looked). A process that is gone has none.
 *
 * The addresses are those of the process that registered. A ring that several processes have open is compared
 * with the ranges of each. What cannot be seen: a ring with no file descriptor
 * (IORING_SETUP_REGISTERED_FD_ONLY, or closed and kept by a mapping), and one in a process that is not among
 * the ranges; pins_check() sees their pages as held. */
int uring_buffers_find(const struct uring_range *ranges, size_t ranges_n, struct uring_found *out,
		       struct error *err);

#endif
