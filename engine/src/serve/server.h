/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The threads that serve page faults, from the inside: fault.c and adopt.c. */
#ifndef VMMSWAP_SERVER_H
#define VMMSWAP_SERVER_H

#include <pthread.h>
#include <stdatomic.h>

#include "serve/fault.h"
#include "serve/resolve.h"

/* page faults read and not served yet, for each thread; beyond that it reads no more until some are */
#define PENDING_MAX 64

struct server {
	struct faults *faults;
	size_t number; /* of its trace ring and latencies */
	struct lane *lane;
	int epoll_fd;
	pthread_t thread;
	bool started;
	void *page;
	size_t pending_n;
	bool unreadable; /* reading events failed, and was reported */
	bool overflown; /* page faults were read for which the list had no room: their threads must fault again */
	struct fault pending[PENDING_MAX];
};

struct faults {
	struct vm *vm;
	bool pin;
	uint32_t spin_us;
	int stop_fd;
	_Atomic bool stopping;
	_Atomic bool unpolled; /* some process is: see adopt.h */
	size_t n;
	struct server servers[];
};

#endif
