/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Reading the events of userfaultfds, and the queue of page faults that all threads serve.
 *
 * One read() may give page faults, which need nobody to stand still, or events, which do (gate.h), and
 * nothing tells which before it has happened. So the gate is held alone for each read(), but not more often
 * than that: all threads wake up when a fault is raised, and only the first of them reads. */
#ifndef VMMSWAP_READING_H
#define VMMSWAP_READING_H

#include "serve/server.h"

/* Read the events of a process. All but page faults take effect before this returns; page faults go to the
 * queue. seen: what faults->reads_n was after epoll reported the process; another thread may have read its
 * events since, and then this does nothing. READ_ANYWAY: it reads in any case. */
#define READ_ANYWAY UINT64_MAX
void read_events(struct server *self, uint32_t process_id, uint64_t seen);

/* EAGAIN from an ioctl: an event of some process is unread, or was read and the process has not run since.
 * The kernel does not say which process, so all are read; then we yield the CPU to the one that must run, and
 * sleep if that takes long. */
void let_events_pass(struct server *self, unsigned round);

/* The VMM may have made its uffd blocking. */
void restore_nonblock(struct server *self, uint32_t process_id);

/* Wake a thread that sleeps while there are few faults. */
void call_for_help(struct faults *faults);

/* Take the fault that has waited longest. False: there is none. */
bool take_from_queue(struct server *self, struct fault *fault);

#endif
