/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The guest's other processes. Two kinds, as VMMs have them:
 *
 *   fork       a child of the VMM (or of another child) that goes on with the inherited mapping; the monitor
 * finds it by UFFD_EVENT_FORK back-end   a process that maps the memfds by itself at addresses of its own, as
 * vhost-user back-ends do; it makes its own userfaultfd, the VMM sends that by add-process, and only then
 * does it touch guest memory
 *
 * Back-ends are forked by a zygote, which has the memfds and never maps them. */
#ifndef GUEST_DEVICE_H
#define GUEST_DEVICE_H

#include "page.h"

enum backend_mode {
	BACKEND_PLAIN,	  /* there is no monitor */
	BACKEND_ANNOUNCE, /* make a userfaultfd and wait for `ok` */
	BACKEND_SILENT,	  /* map, say nothing, touch nothing */
};

struct zygote_request {
	int process;
	enum backend_mode mode;
};

/* A back-end's message to the control thread; its userfaultfd travels with it. */
struct backend_hello {
	int process;
};

/* A free slot, marked as starting for this job; -1 if all are taken. */
int device_slot(struct guest *guest, int kind, int parent, uint64_t job_id);

/* Fork the calling process; called by its first thread. 0 or errno. The child never returns. */
int device_fork(struct guest *guest, uint64_t job_id);

/* Stop this process's workers, then replace it by an idle program. errno if that fails. */
int device_exec(struct guest *guest);

/* What a process's first thread does: forks. Never returns. */
void device_first_thread(struct guest *guest) __attribute__((noreturn));

/* Control thread: SIGKILL by pidfd. 0 or errno; ESRCH if there is no such process. */
int device_kill(struct guest *guest, int process);

/* Control thread: end all other processes and wait until they are gone. */
void device_kill_all(struct guest *guest);

/* Start the zygote; before guest memory is mapped and before any thread. Sets guest->zygote_fd. */
void zygote_start(struct guest *guest);

/* Replace the calling process by a program that does nothing until its standard input ends, or it is
 * killed. */
int exec_idle(void);
int idle_main(void);

#endif
