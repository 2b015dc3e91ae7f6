/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The service manager's fd store, for a process that has nothing else to do: every call blocks until it is
 * done. */
#ifndef VMMSWAP_FD_STORE_H
#define VMMSWAP_FD_STORE_H

struct fd_store {
	int socket;
};

/* address: NOTIFY_SOCKET, a path or an abstract name after '@'. 0 or -errno. */
int fd_store_open(struct fd_store *manager, const char *address);
/* 0 or -errno. */
int fd_store_add(const struct fd_store *manager, const char *name, int fd);
/* Wait until the manager has handled all that was sent. */
int fd_store_wait(const struct fd_store *manager);

#endif
