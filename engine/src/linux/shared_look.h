/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Who has memfds open or mapped, as one process has seen it for all that ask on this host.
 *
 * There is a monitor for each VM, and each must know who has its VM's memory. If each looked through all
 * processes by itself, all looks together would cost the square of the number of VMs. But one look sees the
 * holders of all memfds as well as of one. So whoever looks leaves what it has seen in a file that all share,
 * and for a while nobody else has to look. Nobody is appointed: who finds the file too old makes a new one,
 * under a lock that the kernel releases if its owner dies. */
#ifndef VMMSWAP_SHARED_LOOK_H
#define VMMSWAP_SHARED_LOOK_H

#include "linux/holders.h"
#include "linux/look_picture.h"
#include "linux/procfs.h"

#include <stddef.h>
#include <stdint.h>

struct shared_look {
	struct holder_list holders; /* LOOK_FDS: as of holders_find(): they have the files open now */
	struct pid_list mappers;    /* LOOK_MAPS: processes that mapped one when it was looked, each once */
	int unshared;		    /* an errno: why nobody else can use the look that was made; else 0 */
};

/* Who has the memfds that these fds have open, by a look that began at most max_age_ns ago: one that is in
 * the directory, or a new one, which takes some 20 us for each process of the host. dir_fd: a directory that
 * only we and others with our rights may write to. Of processes that do not change their size some mappings
 * are found late (map_read.h).
 *
 * 0; -EBUSY: somebody else is looking, and is not done in a fifth of a second; -ENOTSUP: one of the files is
 * no memfd of small pages, or the kernel is older than 5.14; -E2BIG: there are too many; or another -errno,
 * of reading /proc or of opening the files in the directory. Then look by oneself. On success the caller
 * frees what is found. */
int shared_look(int dir_fd, enum look_kind kind, const int *fds, size_t fds_n, uint64_t max_age_ns,
		struct shared_look *out);
void shared_look_free(struct shared_look *look);

#endif
