/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The threads that serve page faults, from the inside: fault.c, reading.c and adopt.c. */
#ifndef VMMSWAP_SERVER_H
#define VMMSWAP_SERVER_H

#include <pthread.h>
#include <stdatomic.h>

#include "serve/fault.h"
#include "serve/listeners.h"
#include "serve/resolve.h"

/* Page faults that were read and that no thread has taken yet. */
#define QUEUE_MAX 512
/* Page faults that a thread has taken and not served yet: those that its fetches have, and those to be tried
 * again. */
#define TAKEN_MAX (FETCHES_MAX + 448)

struct server {
	struct faults *faults;
	size_t number; /* of its trace ring and latencies */
	struct means means;
	int epoll_fd;
	pthread_t thread;
	bool started;
	_Atomic bool unreadable; /* reading events failed, and was reported */
	bool reads_events_first; /* a fault cannot be served before events were read */
	size_t pending_n;
	struct fault pending[TAKEN_MAX]; /* to be tried again */
};

struct faults {
	struct vm *vm;
	struct faults_config config;
	int stop_fd;
	struct listeners listeners; /* the first ones listen to userfaultfds; the others help when called */
	int help_fd;		    /* an eventfd: they are called */
	_Atomic bool stopping;
	_Atomic bool unpolled; /* some process is: see adopt.h */
	struct readers *readers;

	pthread_mutex_t reading;  /* one thread at a time reads events */
	_Atomic uint64_t reads_n; /* begun under the lock */
	uint32_t last_read_id;	  /* the process; under the lock */

	/* A ring. Each thread takes one fault at a time, so that none waits behind another's work while a
	 * thread is idle. */
	pthread_mutex_t queue_lock;
	size_t queue_from;
	_Atomic size_t queue_n;
	/* Faults were read for which the queue had no room: their threads must fault again. */
	_Atomic bool overflown;
	struct fault queue[QUEUE_MAX];

	size_t n;
	struct server *servers[];
};

#endif
