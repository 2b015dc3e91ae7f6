/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The threads that serve userfaultfd events.
 *
 * A missing page costs two wake-ups: of the thread that serves it, and then of the guest's own. On which CPUs
 * they happen matters more than all work in between, as a CPU in deep sleep takes tens of microseconds to
 * wake. So one thread is pinned to each CPU, and up to four of them wait for every uffd: the CPU that faulted
 * is awake already. While page faults come one after the other, one of them waits alone (listeners.h).
 * Further threads sleep until more faults have been read than there are threads awake.
 *
 * No thread waits for a device, or for another fault: it begins the read that a page needs and serves the
 * next fault meanwhile (fetch.h). Faults that were read together are taken one by one, by whichever thread is
 * free (reading.h). */
#ifndef VMMSWAP_FAULT_H
#define VMMSWAP_FAULT_H

#include "vm/vm.h"

struct faults;

struct faults_config {
	bool pin;      /* pin each thread to one of the CPUs that the process may use */
	bool no_uring; /* read with threads, also where io_uring is allowed */
	/* How long a thread polls for the next event, after it served one, before it sleeps. */
	uint32_t spin_us;
};

/* Create vm->fault_threads_n threads, without starting them. */
int faults_create(struct vm *vm, const struct faults_config *config, struct faults **out, struct error *err);

int faults_start(struct faults *faults, struct error *err);

/* Stop and join the threads. Faults that were already read are served first, if they can be. */
void faults_stop(struct faults *faults);
void faults_destroy(struct faults *faults); /* includes faults_stop(); NULL is allowed */

/* Start and stop listening to a process's uffd. With the gate held alone. */
int faults_watch(struct faults *faults, const struct process *process);
void faults_unwatch(struct faults *faults, const struct process *process);

#endif
