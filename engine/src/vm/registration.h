/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Guest memory registered with the userfaultfds of the processes that map it: all of it, and nothing else.
 *
 * What a process has where guest memory was known to be can be something else by now, of its own, and nobody told: an attached
 * VMM's userfaultfd has no events for mmap() and munmap(), and a child has less than its parent if that said MADV_DONTFORK.
 * Private memory that is registered would be filled with the guest's bytes. So the kernel is asked for what it grants to shmem
 * alone; see uffd_register_shared(). Other shmem is not told from the guest's so: whoever brings a page back through a process
 * other than the VMM looks whether it has come to the guest's memfd, vm_has_landed().
 *
 * With the gate held alone, but where it is said; whatever was protected counts as not protected from here on (vm.h, `joined`, `keeps`). */
#ifndef VMMSWAP_REGISTRATION_H
#define VMMSWAP_REGISTRATION_H

#include "vm/vm.h"

/* Register all ranges of a process but those that its VMM registers. What cannot be registered is reported, and the process
 * `unwatched`. */
void register_process(struct vm *vm, struct process *process);

/* Unregister all of a process's ranges; or those that register_process() registers. */
void unregister_process(struct vm *vm, struct process *process);
void unregister_ours(struct vm *vm, struct process *process);

/* The same of all processes, a piece at a time, each in a passage of the gate: whoever uses a process's memory map waits while one is
 * unregistered, 34 to 55 ms a GiB. Nothing is out and nothing kept meanwhile. False: there is nothing left. Whoever joined or moved
 * memory since begins anew; so it is certain only with the gate held alone. */
#define REGISTRATION_PIECE_PAGES ((uint64_t)4096)
#define REGISTRATION_PIECE_PAGES_MAX ((uint64_t)32768) /* 128 MiB: 7 ms, where full memory follows empty */
#define REGISTRATION_PIECE_QUICK_NS 100000
bool registration_release_piece(struct vm *vm);

/* Of a process that joins while memory may be out: one that is answered and not watched would read zeros. */
int register_or_refuse(struct vm *vm, struct process *process, struct error *err);

/* Those ranges of `next` that `process` does not have yet, or none of them. `next` is the same process, to be. */
int register_new_ranges(struct vm *vm, struct process *process, struct process *next, struct error *err);

/* Of a forked child that has its parent's ranges: what was (un)registered while the event was on its way is made up for, and what
 * it did not get is forgotten. What it inherited stays protected; true if that is all that it has. */
bool register_child(struct vm *vm, struct process *child);

#endif
