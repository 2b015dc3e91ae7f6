/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Registers guest memory, all of it and nothing else, with the userfaultfds of the processes that map it.
 *
 * A process may by now have memory of its own where it had guest memory, without any event: an attached VMM's
 * userfaultfd reports no mmap() and munmap(), and a child has less than its parent after MADV_DONTFORK. If
 * private memory were registered, it would be filled with the guest's bytes. So the kernel is asked for what
 * it grants for shmem only; see uffd_register_shared(). This does not tell the guest's shmem from other
 * shmem. So when a page comes back through another process than the VMM, vm_has_landed() checks that it has
 * arrived in the guest's memfd.
 *
 * Call these with the gate held alone, unless they say otherwise. Memory that was write-protected counts as
 * not protected from then on (vm.h, `joined`, `keeps`). */
#ifndef VMMSWAP_REGISTRATION_H
#define VMMSWAP_REGISTRATION_H

#include "vm/vm.h"

/* Register all ranges of a process, except those that its VMM registers. If one cannot be registered, this is
 * reported and the process is `unwatched`. */
void register_process(struct vm *vm, struct process *process);

/* Unregister the next part of all processes' memory, with the gate passed: a process cannot use its memory
 * map while a part is unregistered, which takes 34 to 55 ms a GiB. Nothing may be out or kept meanwhile. A
 * child's copy of private memory stays registered: what was out at the fork is missing there yet.
 * False: nothing is registered any more. A process that joins or moves memory begins at its first page again,
 * so this is only certain with the gate held alone. */
#define REGISTRATION_PIECE_PAGES ((uint64_t)4096)
#define REGISTRATION_PIECE_PAGES_MAX ((uint64_t)32768) /* 128 MiB: 7 ms, where full memory follows empty */
#define REGISTRATION_PIECE_QUICK_NS 100000
bool registration_release_piece(struct vm *vm);

/* The same for one process; only_ours: what register_process() registers. */
bool registration_release_process(struct vm *vm, struct process *process, bool only_ours);

/* The same for what one process maps of the pages from *page_idx to end_idx. *page_idx is then how far it has
 * come. False: there was nothing left. */
bool registration_release_pages(struct vm *vm, struct process *process, uint64_t *page_idx, uint64_t end_idx);

/* True if guest memory may be registered in some process. With the gate passed or held alone. */
bool registration_may_be(const struct vm *vm);

/* Register a process that joins while memory may be out, or refuse it: unregistered, it would read zeros. */
int register_or_refuse(struct vm *vm, struct process *process, struct error *err);

/* Register the ranges of `next` that `process` does not have yet; on error none of them. `next` is the
 * process as it is to become. */
int register_new_ranges(struct vm *vm, struct process *process, struct process *next, struct error *err);

/* Bring the registrations of a forked child, which has its parent's ranges, up to date: catch up with what
 * was registered or unregistered before the event was read, and forget ranges that it did not inherit.
 * Inherited memory stays protected. True if the child has no other guest memory.
 *
 * If nothing is tracked any more, what it has inherited is many pages of page tables to unregister at once.
 * It is `releasing` then, is served as before, and engine_housekeep() unregisters it in pieces. */
bool register_child(struct vm *vm, struct process *child);

#endif
