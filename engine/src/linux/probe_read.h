/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A child process that reads one byte of another process in kernel mode, to see whether a userfaultfd stops it there. */
#ifndef VMMSWAP_PROBE_READ_H
#define VMMSWAP_PROBE_READ_H

#include <stdint.h>
#include <sys/types.h>

/* The child's pid, to be waited for, or -errno. It reads once a byte comes through go_fd: a process that forks while its
 * own memory is registered would wait for whoever reads the event. It ends with status 0 if the byte was read, else with the
 * errno of process_vm_readv(). It shares our fd table instead of a copy: at its end, or at an execve(), a copy would be
 * closed, and close() of what a peer has sent may wait for ever (FUSE). */
pid_t probe_read_start(pid_t pid, uint64_t addr, int go_fd);

#endif
