/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Which processes hold the guest's memory as an open file, whether they map it or not. */
#ifndef VMMSWAP_HOLDERS_H
#define VMMSWAP_HOLDERS_H

#include "linux/mappers.h"
#include "linux/procfs.h"

#include <stddef.h>
#include <sys/types.h>

struct holder {
	pid_t pid;
	int fd;
	size_t file_idx; /* which of the fds asked for */
};

struct holder_list {
	struct holder *holders;
	size_t holders_n;
	size_t holders_max;	    /* allocated */
	struct pid_list unreadable; /* processes whose fds we may not see: any of them may be a holder */
};

/* Who has the files open that these fds have open. Looks through the fds of all processes, except our own and
 * those that share our fd table. Takes some microseconds for each fd, whose fdinfo is read, and one where all
 * files are memfds and the process has our uid. Fds that are in no fd table are not seen: those in flight
 * in a socket, or registered with an io_uring and closed. 0, -ENOMEM or the -errno of reading /proc. On
 * success the caller frees the list. */
int holders_find(const int *fds, size_t fds_n, struct holder_list *out);

/* Leave in the list only those who have the files open now, by these fds, and do not share our fd table. 0 or
 * -errno; then the list is empty. */
int holders_confirm(const int *fds, size_t fds_n, struct holder_list *list);
int holders_add(struct holder_list *list, struct holder holder); /* 0 or -ENOMEM */
void holders_free(struct holder_list *list);			 /* leaves an empty list */

#endif
