/* SPDX-License-Identifier: GPL-2.0-or-later */
/* How much memory this process may still take: on the host, and below each limit of the cgroups that it is
 * charged to. At a cgroup's limit the kernel kills somebody there instead of refusing the memory, also for a
 * memfd. */
#ifndef VMMSWAP_HEADROOM_H
#define VMMSWAP_HEADROOM_H

#include <stdint.h>

struct headroom;

/* Of the calling process's cgroups, of version 1 or 2, as /proc/self has them now. proc is "/proc", or
 * another directory for tests. NULL: no memory. */
struct headroom *headroom_create(const char *proc);
void headroom_destroy(struct headroom *headroom);

/* Reads a few small files, some 50 us. What cannot be read sets no limit. Any thread. */
uint64_t headroom_bytes(const struct headroom *headroom);

#endif
