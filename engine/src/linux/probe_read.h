/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A child process that reads one byte of another process in kernel mode, to see whether a userfaultfd stops
 * it there. */
#ifndef VMMSWAP_PROBE_READ_H
#define VMMSWAP_PROBE_READ_H

#include <stdint.h>
#include <sys/types.h>

/* Start the child. Returns its pid, for the caller to wait for, or -errno. The child reads once a byte comes
 * through go_fd: if it were forked only then, while our own memory is registered, the fork would wait until
 * its event is read. It ends with status 0 if the byte was read, else with the errno of process_vm_readv().
 * It shares our fd table: a copy would be closed at its end or at execve(), and close() of an fd that a peer
 * has sent may wait for ever (FUSE). */
pid_t probe_read_start(pid_t pid, uint64_t addr, int go_fd);

#endif
