/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Forked children. The kernel gives a child's userfaultfd to whoever reads the FORK event, and to nobody
 * else; the child runs on at once, with its parent's registrations. So what serving it takes is there before
 * the event is read, or it is served in another way: it is never refused.
 *
 * Memory: adopt_reserve(). A place in the epoll sets, of which a user has a limited number
 * (fs.epoll.max_user_watches): a child that gets none is `unpolled`, and its events are read every few
 * milliseconds until there is one. */
#ifndef VMMSWAP_ADOPT_H
#define VMMSWAP_ADOPT_H

#include "serve/fault.h"

#define ADOPT_LOOK_NS 5000000

/* Have memory for the children that n events of the process may tell of. How many events may be read; 0:
 * there is no memory. With the gate held alone. */
size_t adopt_reserve(struct vm *vm, const struct process *process, size_t n);

/* After adopt_reserve(), for each FORK event. With the gate held alone. */
void adopt_child(struct faults *faults, const struct process *parent, int uffd);

/* Find places in the epoll sets for unpolled processes. The ids of those that get none, `room` at most, whose
 * events the caller must read. Takes the gate. */
size_t adopt_poll_again(struct faults *faults, uint32_t *ids, size_t room);

#endif
