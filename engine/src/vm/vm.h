/* SPDX-License-Identifier: GPL-2.0-or-later */
/* One VM as the engine's threads share it: the rooms, and the rules between them.
 *
 * What may be called while holding what a page fault needs
 * --------------------------------------------------------
 * A page fault passes the gate and claims its page. So each of these delays page faults:
 *
 *   the gate held alone: all faults. The gate passed: all faults too, as soon as some thread wants it alone,
 * which every thread that reads events does. a page FILLING and not BACKGROUND: faults on that page. (A
 * demand fault takes over a page that is BACKGROUND.) a page PUNCHING: faults that find the page missing, and
 * all writes to it.
 *
 * A thread that holds one of these must not wait for anything that a guest, a disk or another process can
 * delay, as that may itself be waiting for a page fault. This happens: a thread of the VMM calls write() on
 * its memfd with a buffer in guest memory. The kernel holds the lock of the inode while that thread faults,
 * so whoever waits for the lock waits for the fault. Hence, with any of these held:
 *
 *   Allowed: atomics on page words; ioctls of userfaultfds; pread() of guest memory, and calls that tell a
 * page from a hole by page tables (they take no inode's lock); fstat(); mmap() in our own process; locks that
 * are only ever held for such calls (lift_lock, the lock of the store's slots in store_drop(), the notices'
 * lock); posting a notice. Forbidden: lseek(), fallocate(), ftruncate(), write() of a guest's memfd; reading
 * or writing the store; waiting for a clock, a condition, a thread or a process; work in proportion to guest
 * memory.
 *
 * There are two exceptions, each argued where it is: a claimed page waits for its own bytes from the store,
 * outside of the gate and of any thread (serve/fetch.h), also together with a few others (jobs/ahead.h), and
 * pages PUNCHING wait for their own punch (jobs/punch.h).
 *
 * In builds with failpoints, which all tests use, base/held.h aborts as soon as a rule is broken, whether a
 * fault was delayed or not. If you add a way to wait, add HELD_MAY_WAIT() to it. */
#ifndef VMMSWAP_VM_H
#define VMMSWAP_VM_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/notice.h"
#include "base/stats.h"
#include "base/trace.h"
#include "linux/mover.h"
#include "linux/uffd.h"
#include "store/store.h"
#include "vm/address_space.h"
#include "vm/gate.h"
#include "vm/lost.h"
#include "vm/memory.h"
#include "vm/page_map.h"
#include "vm/removal.h"
#include "wake/nearby.h"
#include "wake/wake_record.h"

/* A range in which a worker has pages PUNCHING. Lives on the worker's stack. */
struct punching {
	uint64_t page_idx, pages;
	struct punching *next;
};

struct vm {
	struct gate *gate;
	struct page_map *map;
	/* Changes only with the gate held alone and the lock taken. resident.h takes the lock instead of
	 * passing the gate. No thread waits for anything while it has the lock. */
	struct memory memory;
	pthread_mutex_t regions_lock;
	struct address_spaces spaces; /* changes with the gate held alone */
	struct store *store;
	struct mover *mover; /* of private memory that the VMM moves: then there is no other; else NULL */
	struct notices *notices;
	struct trace *trace;
	struct wake_record *wake;
	struct nearby *nearby;	   /* neighbours of page faults; NULL: they are not brought back */
	struct latency *latencies; /* one for each fault thread */
	size_t fault_threads_n, workers_n;

	_Atomic bool stopping; /* the engine is stopping: long walks end early */
	_Atomic bool tracking; /* guest memory is registered with the uffds */
	/* How many pages are in that state, or about to be: page.h changes them. */
	_Atomic uint64_t stored_pages;
	_Atomic uint64_t poisoned_pages;
	_Atomic uint64_t kept_pages;

	/* All pages whose poison markers are to be lifted are in this range. The range is under the lock. */
	pthread_mutex_t lift_lock;
	uint64_t lift_from_idx, lift_end_idx;
	_Atomic bool lift_wanted;
	_Atomic bool large_folios; /* guest memory may have some: see folios.h */
	struct lost lost;	   /* pages whose holes something else filled */
	struct removals removals;  /* given up, but not yet in the page map */
	/* For each chunk: when all of it was given up while the page map had no record of it, in ms. 0:
	 * never. */
	_Atomic uint32_t *given_up_ms;
	/* write-protect faults served: pages that the guest wrote to after they were protected */
	_Atomic uint64_t writes_seen;

	/* Page faults that wait because the kernel has no memory for their pages. starved_told: this was
	 * reported, and engine_end_starvation() has not said since that it is over. */
	_Atomic uint64_t starved_faults;
	_Atomic bool starved_told;

	/* True if pages that are out are write-protected in every process, by bits or markers: every
	 * process can protect, and none joined since guest memory was registered. Only then does a page
	 * that comes back keep its copy. While this is false, copies that were kept before are stale. A
	 * swap-out reads `joined`, then drops stale copies, then begins: a copy that turns stale later is
	 * not used, because `joined` has changed. */
	_Atomic bool keeps;

	/* A swap-out relies on seeing every process's writes to a protected page. A process that joins is
	 * not protected yet. So it increments `joined`, and no page that was protected before is taken
	 * out; and it is write-protected where pages are PUNCHING (vm_protect_punching()). A forked child
	 * inherits its parent's protection and needs neither. */
	_Atomic uint64_t joined;
	uint64_t registrations; /* so often memory of a process was registered; with the gate held alone */
	pthread_mutex_t release_lock; /* unregistering a piece */
	_Atomic bool release_wanted;  /* some process may be `releasing` */
	pthread_mutex_t punching_lock;
	struct punching *punching; /* under the lock */
};

/* Private memory is the VMM's alone. A forked child that has some of it has a copy, as it was at the fork. */
static inline bool vm_has_copy(const struct vm *vm, const struct process *process)
{
	return vm->mover && process->id != 0;
}

uint64_t monotonic_ns(void);

/* A job gives up on a process that is in the middle of changing its mappings for this long. It is a time, not
 * a number of tries: on a loaded host, neither that process nor the thread that reads its event may run
 * soon. */
#define VM_STUCK_NS 5000000000ull

/* Note that a process's uffd answered ESRCH. Reported once. */
void vm_process_gone(struct vm *vm, struct process *process);

/* Wake the threads of all processes that wait for these pages. With the gate passed or held. */
void vm_wake(struct vm *vm, uint64_t page_idx, uint64_t pages);

/* Wake all threads that wait for guest memory. They fault again. With the gate passed or held. */
void vm_wake_all(struct vm *vm);

/* List a range before the first of its pages is marked PUNCHING, and unlist it after the last is finished. */
void vm_punching_begin(struct vm *vm, struct punching *punching);
void vm_punching_end(struct vm *vm, struct punching *punching);

/* Write-protect the listed ranges in a process that joins, so that its writes wait for the punch as all
 * others' do. With the gate held alone, after it was registered. False if it cannot be protected now: it must
 * not join. */
bool vm_protect_punching(struct vm *vm, struct process *process);

/* True if the page has this hash, or if the store checks its bytes itself. */
bool vm_is_right(const struct vm *vm, const void *page, uint32_t hash);

/* Report a swapped-out page that is unexpectedly present. True if it is lost; pages around it may be lost
 * too. False where only a predecessor can have put it there. With the gate passed or held. */
bool vm_found_present(struct vm *vm, uint64_t page_idx);

/* Call this if the kernel said EEXIST for a page of a process. True if guest memory has the page. Otherwise
 * the process has other memory there, or a page table was just being freed (mm/userfaultfd.c). */
bool vm_has_page(const struct vm *vm, uint64_t page_idx);

/* True if a page that was copied to the process has arrived in the guest's memfd. If not, the process has
 * other memory there and got the guest's bytes: this is reported. */
bool vm_has_landed(struct vm *vm, const struct process *process, uint64_t page_idx);

/* MADV_REMOVE raises its event before it punches, and the kernel does not say when it has punched. So a page
 * that was given up does not go out for this long: it could come back with its old contents. A missing fault
 * ends this early: the hole is there. */
#define VM_GIVEN_UP_MS 10000u
uint32_t vm_now_ms(void);
/* When the page was given up, by its word or else by its chunk; 0: it was not. */
uint32_t vm_given_up_ms(const struct vm *vm, uint64_t page_idx, uint64_t word);
bool vm_may_be_punched_yet(const struct vm *vm, uint64_t page_idx, uint64_t word);

/* Note that the guest touched a page for the first time since it went out (`missing`), or wrote to one that
 * has a kept copy, and asks for its neighbours. After its page fault was answered. Reports if this shows that
 * the guest wakes up. */
void vm_touched(struct vm *vm, uint64_t page_idx, bool missing, bool write);

/* Note that memory joins that is not write-protected like all other memory. Kept copies are stale from now
 * on. With the gate held alone. */
void vm_note_join(struct vm *vm);

/* Drop the page's kept copy, if it has one: it is simply resident from then on. */
void vm_drop_kept_copy(struct vm *vm, uint64_t page_idx);

/* Drop all kept copies. Call this outside of the gate: it takes up to a second for 64 GiB. */
void vm_drop_kept_copies(struct vm *vm);

/* Drop all kept copies if they are stale. */
void vm_drop_stale_copies(struct vm *vm);

#endif
