/* SPDX-License-Identifier: GPL-2.0-or-later */
/* One VM as the engine's threads share it: the rooms, and what they agree on between them.
 *
 * What may be called while holding what a page fault needs
 * --------------------------------------------------------
 * A page fault needs the gate, passed, and its page. So each of these holds up faults:
 *
 *   the gate held alone: all of them. The gate passed: all of them too, once anybody wants it alone, as every reader of
 *     events does.
 *   a page FILLING, but not BACKGROUND, which a demand fault takes over: those on that page.
 *   a page PUNCHING: those on that page that find it missing, and all writes to it.
 *
 * Nobody may wait meanwhile for what a guest, a disk or another process can delay, for that wait may in turn be for a page
 * fault. The case that happens: a thread of the VMM write()s to its memfd from guest memory. The kernel holds the lock of the
 * inode while the thread faults, so who waits for that lock waits for the fault. Hence, with any of these held:
 *
 *   Fine: atomics on page words; ioctls of userfaultfds; pread() of guest memory, and all that tells a page from a hole by
 *     page tables (no inode's lock); fstat(); mmap() of our own; locks that are held for such things alone (lift_lock, the
 *     store's slots: store_drop(), notices); posting a notice.
 *   Forbidden: lseek(), fallocate(), ftruncate(), write() of a guest's memfd; reading and writing the store; waiting for a
 *     clock, a condition, a thread, a process; anything proportional to guest memory.
 *
 * Two exceptions, each argued where it is: a page FILLING waits for its own bytes from the store, outside of the gate
 * (serve/resolve.c), and pages PUNCHING wait for their own punch (jobs/evict.c).
 *
 * base/held.h keeps watch in builds with failpoints, which all tests use: it aborts at once where this is broken, whether
 * anybody would have been held up or not. Who adds a way to wait adds HELD_MAY_WAIT() to it. */
#ifndef VMMSWAP_VM_H
#define VMMSWAP_VM_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/notice.h"
#include "base/stats.h"
#include "base/trace.h"
#include "linux/uffd.h"
#include "store/store.h"
#include "vm/address_space.h"
#include "vm/gate.h"
#include "vm/lost.h"
#include "vm/memory.h"
#include "vm/page_map.h"
#include "vm/removal.h"

/* Pages that a worker has PUNCHING, among others: on its stack. */
struct punching {
	uint64_t page_idx, pages;
	struct punching *next;
};

struct vm {
	struct gate *gate;
	struct page_map *map;
	/* Changes with the gate held alone, and under the lock, which resident.h needs where there is no gate to pass. Nothing is
	 * waited for with it held. */
	struct memory memory;
	pthread_mutex_t regions_lock;
	struct address_spaces spaces; /* changes with the gate held alone */
	struct store *store;
	struct notices *notices;
	struct trace *trace;
	struct latency *latencies; /* one for each fault thread */
	size_t fault_threads_n, workers_n;

	_Atomic bool stopping; /* the engine is: long walks that nobody needs any more end early */
	_Atomic bool tracking; /* guest memory is registered with the uffds */
	/* How many pages are in that state, or about to be: page.h changes them. */
	_Atomic uint64_t stored_pages;
	_Atomic uint64_t poisoned_pages;
	_Atomic uint64_t kept_pages;

	/* Where pages wait for their poison markers to be lifted: somewhere from..end. The range is under the lock. */
	pthread_mutex_t lift_lock;
	uint64_t lift_from_idx, lift_end_idx;
	_Atomic bool lift_wanted;
	_Atomic bool large_folios; /* guest memory may hold some: see folios.h */
	struct lost lost;	   /* pages that somebody else filled */
	struct removals removals;  /* given up, and not in the page map yet */
	/* When whole chunks were given up that the page map had no record of, in ms; 0: never. */
	_Atomic uint32_t *given_up_ms;
	/* write-protect faults served: pages that the guest wrote to after they were protected */
	_Atomic uint64_t writes_seen;

	/* Page faults that wait because the kernel has no memory for their pages; and whether that was told, and
	 * engine_end_starvation() has not said since that it is over. */
	_Atomic uint64_t starved_faults;
	_Atomic bool starved_told;

	/* Pages that are out are write-protected, by bits or markers, in every process: all can protect, and none joined
	 * since guest memory was registered. Only then does a page that comes back keep its copy. While it is false, copies that
	 * were kept before are stale: no swap-out may begin with them, so it drops them after it has read `joined`, and one that
	 * turns stale later is not punched, because `joined` has changed. */
	_Atomic bool keeps;

	/* A swap-out trusts that every process's writes to a protected page are seen. A process that joins is not protected
	 * yet: it counts `joined` up, so that what was protected before it came is left alone, and is protected where pages are
	 * PUNCHING, vm_protect_punching(). A forked child inherits its parent's protection and needs neither. */
	_Atomic uint64_t joined;
	pthread_mutex_t punching_lock;
	struct punching *punching; /* under the lock */
};

uint64_t monotonic_ns(void);

/* How long a process may be in the middle of changing its mappings before a job gives up: by the clock, since on a loaded host
 * neither it nor the thread that reads its event need run soon. */
#define VM_STUCK_NS 5000000000ull

/* Note that a process's uffd answered ESRCH; says so once. */
void vm_process_gone(struct vm *vm, struct process *process);

/* Wake whoever waits for these pages, in every process. With the gate passed or held. */
void vm_wake(struct vm *vm, uint64_t page_idx, uint64_t pages);

/* Wake all threads that wait for guest memory: they fault again. With the gate passed or held. */
void vm_wake_all(struct vm *vm);

/* Pages there are PUNCHING from before the first is marked until the last is finished. */
void vm_punching_begin(struct vm *vm, struct punching *punching);
void vm_punching_end(struct vm *vm, struct punching *punching);

/* Write-protect a process that joins where pages are PUNCHING: what it writes there from now on waits for the punch, as all others'
 * writes do. With the gate held alone, after it was registered. False if it cannot be protected there now: it must not join. */
bool vm_protect_punching(struct vm *vm, struct process *process);

/* Whether the store gave the bytes of a page with this hash, unless it checks that itself. */
bool vm_is_right(const struct vm *vm, const void *page, uint32_t hash);

/* A page that is out was found to be present, and nobody of ours put it there. True if it is lost: others around it may be, too.
 * Where nobody but a predecessor can have put it there, it is not. With the gate passed or held. */
bool vm_found_present(struct vm *vm, uint64_t page_idx);

/* Whether guest memory has the page, where the kernel says of a process that something is there. It may be other memory of that
 * process, or a page table that somebody frees just then (EEXIST: mm/userfaultfd.c). */
bool vm_has_page(const struct vm *vm, uint64_t page_idx);

/* Whether a page that was copied to the process is in the guest's memfd now. If not, the process has something else there, and was
 * given bytes that are not its own: told of. */
bool vm_has_landed(struct vm *vm, const struct process *process, uint64_t page_idx);

/* MADV_REMOVE raises its event before it punches, and the kernel does not say when it has: for so long what was given up does not
 * go out, or it would come back. A fault for a missing page ends that: the hole was there. */
#define VM_GIVEN_UP_MS 10000u
uint32_t vm_now_ms(void);
/* When the page was given up, if no more than its word and its chunk is known since; 0: it was not. */
uint32_t vm_given_up_ms(const struct vm *vm, uint64_t page_idx, uint64_t word);
bool vm_may_be_punched_yet(const struct vm *vm, uint64_t page_idx, uint64_t word);

/* Memory joins that is not protected as that of all others is. With the gate held alone. The kept copies are stale from here on. */
void vm_note_join(struct vm *vm);

/* All kept copies are dropped: their pages are simply resident from here on. Not inside the gate: it takes the longer the more
 * there are, up to a second for 64 GiB. */
void vm_drop_kept_copies(struct vm *vm);

/* The same, if they may be stale. */
void vm_drop_stale_copies(struct vm *vm);

#endif
