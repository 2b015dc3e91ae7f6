/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The threads that serve userfaultfd events.
 *
 * A missing page costs the guest two wake-ups: of the thread that serves it, and then of its own. Where each happens
 * matters more than all work in between: a CPU that sleeps deeply takes tens of microseconds to wake. So there is a thread
 * pinned to each CPU, and all of them wait for every uffd: the one on the CPU that faulted is awake already. */
#ifndef VMMSWAP_FAULT_H
#define VMMSWAP_FAULT_H

#include "vm/vm.h"

struct faults;

/* vm->fault_threads_n threads, created but not started. pin: each to one of the CPUs that the process may use. spin_us:
 * how long a thread looks for the next event before it sleeps, after one that it served. */
int faults_create(struct vm *vm, bool pin, uint32_t spin_us, struct faults **out, struct error *err);

int faults_start(struct faults *faults, struct error *err);

/* Stop and join the threads. Faults that were read and not served are served first, or if they can't be, left. */
void faults_stop(struct faults *faults);
void faults_destroy(struct faults *faults); /* includes faults_stop(); NULL is fine */

/* Listen to a process's uffd, or no longer. With the gate held alone. */
int faults_watch(struct faults *faults, const struct process *process);
void faults_unwatch(struct faults *faults, const struct process *process);

#endif
