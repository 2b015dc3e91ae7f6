/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The engine of one VM: what Python sees. Work that is done for each page, or while a guest thread waits, is
 * done below here.
 *
 * Call it from one thread at a time. No call blocks for longer than a system call, except engine_destroy(),
 * which waits for a running job to finish its window, and engine_add_process(), which tries for 200 ms to
 * protect a process where pages are just being punched. All fds given are dup'ed. Functions return 0 or
 * -errno with *err filled. */
#ifndef VMMSWAP_ENGINE_H
#define VMMSWAP_ENGINE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"
#include "base/notice.h"
#include "base/trace.h"
#include "jobs/swapper.h"
#include "vm/address_space.h"
#include "vm/lost.h"

#define ENGINE_MAX_FAULT_THREADS 16
#define ENGINE_DEFAULT_SPIN_US 0

struct engine_config {
	const char *swap_dir;	/* where a new store's file goes; not needed with store_fd */
	uint32_t fault_threads; /* 0: one for each usable CPU, ENGINE_MAX_FAULT_THREADS at most */
	bool no_uring;		/* read with threads, also where io_uring is allowed */
	uint32_t spin_us;
	uint32_t workers; /* threads of a long job: at least 1 */
	/* The largest window of neighbours that come back after a page fault of a guest that wakes up, once
	 * engine_set_wake_budget() allows it: a power of two, NEARBY_PAGES_MAX at most; below 2: none do. */
	uint32_t fault_around_pages;
	/* -1: a new VM. Otherwise a predecessor's: the same regions must be added again, in the same order */
	int page_map_fd;
	int store_fd;					 /* -1: a new store */
	int wake_fd;					 /* of the record of wake-ups; -1: a new one */
	uint64_t store_max_bytes, store_keep_free_bytes; /* see store_limit(); 0: no limit */
	/* New pages go to the tiers, log.h, and what store_fd has stays there until it is dropped. Their fds:
	 * -1, or a predecessor's. */
	bool tiers;
	int segments_fd, ram_fd, disk_fd, key_fd;
	uint64_t ram_max_bytes; /* 0: RAM only on the way to disk */
	bool has_disk;		/* store_max_bytes is its limit; false: there is none */
	bool compress, encrypt;
	uint32_t ram_age_s; /* older pages move to disk; 0: never */
	/* Private memory that the VMM moves, engine_add_private_region(): the VMM's pid, its mailbox
	 * (linux/mailbox.h), and its /proc/self/pagemap, or -1. Memory of other kinds cannot be added then.
	 * Pid -1: the VMM has ended; 0: there is no such memory. */
	int32_t mover_pid;
	int mailbox_fd, pagemap_fd;
	/* store_fd is the memory file of a snapshot, also of a new VM: see engine_add_snapshot_region() */
	bool snapshot;
};

struct engine_stats {
	uint64_t resident_pages; /* by the kernel's count; see engine_needs_count() */
	uint64_t total_pages;
	uint64_t copied_pages, zeroed_pages, redundant_pages; /* since the last swap-out began */
	uint64_t swap_pages;
	uint64_t progress_pages; /* of the running job, out of total_pages */
	uint64_t swap_time_ms, pause_us;
	uint64_t fault_count, fault_p50_ns, fault_p99_ns; /* since the process started */
	uint64_t stored_ram_bytes, stored_disk_bytes, written_bytes;
	uint64_t used_slots, same_filled_pages, raw_pages, record_bytes;
	uint64_t processes;
	uint64_t poisoned_pages, pinned_pages, kept_pages;
	uint64_t left_pages; /* left by the last swap-out, which could not read, store or punch them */
	uint64_t lost_pages; /* since the VM registered */
	uint64_t trace_dropped;
	uint32_t last_mode; /* enum swap_mode */
	uint32_t job;	    /* enum job_kind running now */
	uint32_t tracking;
	uint32_t limited_by; /* enum limited_by: what stopped the last swap-out or flush */
	uint64_t wake_set_pages;
	uint64_t idle_set_pages; /* that the last swap-out left resident: swap_out_options.idle_pages_max */
	uint64_t prefetched_pages,
		wasted_pages;	    /* since the VM registered; wasted: up to the last swap-out */
	uint64_t wake_ms;	    /* of the last wake-up */
	uint64_t faults_per_second; /* in the last whole second */
	uint64_t touched_pages;	    /* that were noted since the last swap-out */
	uint32_t waking;	    /* a wake-up is under way */
};

struct engine;

int engine_create(const struct engine_config *config, struct engine **out, struct error *err);

/* Stop all threads. Guest memory is not touched: what is out stays out, for a successor with the same fds. */
void engine_destroy(struct engine *engine);

/* memfd: opened anew by the caller, so that its position is not the VMM's; its mode may have changed
 * since. */
int engine_add_region(struct engine *engine, int memfd, uint64_t offset_bytes, uint64_t size_bytes,
		      uint64_t *page_idx, struct error *err);

/* Add private memory that a VMM restores from a snapshot and has already registered with its uffd. Until the
 * guest first gets page i of the region, its contents are in the file at offset_bytes + i pages. The region
 * is served at once, and its pages never go out again; JOB_SWAP_IN brings all of them in and unregisters the
 * memory. -EINVAL: the file is too short. */
int engine_add_snapshot_region(struct engine *engine, uint64_t offset_bytes, uint64_t size_bytes,
			       uint64_t *page_idx, struct error *err);

/* Add private memory of the VMM, at an address of the VMM's. The first process that is added is the VMM;
 * others are its forked children, which may have a copy of the memory. -EINVAL: the engine was made without a
 * mailbox. */
int engine_add_private_region(struct engine *engine, uint64_t addr, uint64_t size_bytes, uint64_t *page_idx,
			      struct error *err);

/* Remove a region, part by part, so that nobody waits for all of it. -EBUSY while a page of it is out, or a
 * job runs; a job that starts meanwhile leaves the region out. It takes some 50 ms a GiB that was in use:
 * call it on any thread, beside any other call but engine_release_memory() and engine_destroy().
 * engine_stop() ends it (-ECANCELED). */
int engine_remove_region(struct engine *engine, uint64_t page_idx, struct error *err);

/* True if any page in the range is swapped out. It takes 0.5 ms a GiB; call it on any thread, as
 * engine_remove_region(). */
bool engine_is_out(struct engine *engine, uint64_t page_idx, uint64_t pages);

/* Remove a region that was added after the running job began, and that no process has. The job does not know
 * of it. */
int engine_undo_add_region(struct engine *engine, uint64_t page_idx, struct error *err);

/* Add a process that maps guest memory. UFFDIO_API must have been called on the uffd. While guest memory is
 * tracked, the process is registered before this returns. -EINVAL: it cannot be registered. -EAGAIN: it
 * cannot be write-protected where a swap-out is taking pages out. */
int engine_add_process(struct engine *engine, int uffd, const struct range *ranges, size_t ranges_n,
		       uint32_t *process_id, struct error *err);

/* Replace what is known of where a process maps guest memory. While memory is tracked, new ranges are
 * registered. Ranges that are left out are not unregistered, as they are no longer mapped. -EINVAL, with
 * nothing changed: a range cannot be registered, is not within one region, or overlaps another in addresses
 * or pages. */
int engine_set_ranges(struct engine *engine, uint32_t process_id, const struct range *ranges, size_t ranges_n,
		      struct error *err);

/* Register all memory of a process again. Memory that was unmapped and mapped again at the same place is no
 * longer registered. */
void engine_register_again(struct engine *engine, uint32_t process_id);

/* Return how many ranges the process has, and write the first `room` of them. A forked child has the ranges
 * that its parent had when it forked. Call this again after each NOTICE_PROCESS_MOVED. */
size_t engine_ranges_of(struct engine *engine, uint32_t process_id, struct range *out, size_t room);

/* Remove a process. If it is still alive, its memory is unregistered. 1: there is so much of it that
 * engine_release_rest() must be called for the rest; its page faults are served until then. */
int engine_remove_process(struct engine *engine, uint32_t process_id, struct error *err);

/* Unregister, part by part, what is left of processes that were removed or refused. Call it on any thread, as
 * engine_remove_region(). */
int engine_release_rest(struct engine *engine, struct error *err);

/* Register a page that nobody touches, for as long as the process lives: the kernel reports forks only while
 * something is registered. */
int engine_register_dummy(struct engine *engine, uint32_t process_id, uint64_t addr, struct error *err);

/* Take over from a predecessor that died. Call this after all regions and processes were added, and before
 * engine_start(). Pages that the memfds have are resident, whatever the page map says; slots in use are taken
 * over; every thread that waits for a page faults again. *out_pages: how many pages are out. *last_job: what
 * the predecessor was doing (enum job_kind). */
int engine_recover(struct engine *engine, uint64_t *out_pages, uint32_t *last_job, struct error *err);

int engine_start(struct engine *engine, struct error *err);

#ifdef VMMSWAP_FAILPOINTS
/* Check that pages, counters, slots, regions and processes agree with each other (vm/check.h). -EPROTO, with
 * what does not. The check is stricter when no job runs, and strictest after engine_stop(). engine_recover()
 * and engine_stop() check too, and abort if anything is wrong. */
int engine_check(struct engine *engine, struct error *err);
#endif

/* Cancel a running job and stop all threads. Notices can still be taken, and none is added any more: if a
 * forked child was not reported by then, its event was never read. */
void engine_stop(struct engine *engine);

/* After engine_stop(): forget the regions and close their memfds. If nobody else has them open, the kernel
 * frees the VM's memory now, and this takes as long as that does. */
void engine_release_memory(struct engine *engine);

int engine_start_job(struct engine *engine, uint32_t job, const struct swap_out_options *options,
		     struct error *err);
void engine_cancel_job(struct engine *engine);

/* Set how many pages a swap-in may bring back from now on: see swapper_set_budget(). */
void engine_set_budget(struct engine *engine, uint64_t pages);

/* Do not resume the predecessor's job. */
void engine_forget_job(struct engine *engine);

/* After NOTICE_PROTECTED, when the VMM's block layer was drained: resume the swap-out. */
void engine_continue_job(struct engine *engine);

/* Drop kept copies that became stale when a process joined, and give a little unused disk space back. True
 * while there is more to give back. For idle moments. */
bool engine_housekeep(struct engine *engine);

/* What the tiers need now and then, store_tend_step(): true while there is more. After engine_start() a
 * thread of the engine does that, beside all jobs; who cannot wait for it may call this on any thread. */
bool engine_tend(struct engine *engine);

/* The host is short of memory, or no longer: while it is, all that can move from RAM to disk does. */
void engine_host_is_short(struct engine *engine, bool is_short);

/* Move one segment from RAM to disk. 1: done, 0: there is none, -errno: why not. As engine_tend(). */
int engine_flush_step(struct engine *engine, struct error *err);

/* Bytes written to disk since the VM registered, by all its monitors. */
uint64_t engine_written_bytes(const struct engine *engine);
/* Up to where that may grow from now on; UINT64_MAX: no limit. A swap-out that needs more is limited by the
 * write budget. */
void engine_limit_writes(struct engine *engine, uint64_t max_bytes);

/* Bring back what earlier wake-ups touched; NOTICE_REPLAY_DONE follows. is_ordered: a caller knows that the
 * guest wakes up. -EBUSY: a job runs, or the last replay is just ending. */
int engine_wake(struct engine *engine, bool is_ordered, struct error *err);
void engine_cancel_wake(struct engine *engine);

/* Set how many pages a replay and fault-around may bring back from now on, as engine_set_budget(). With
 * fault-around, none before the first call. */
void engine_set_wake_budget(struct engine *engine, uint64_t pages);

/* The guest touches little any more: the wake-up is over. False: it was none. */
bool engine_settle_wake(struct engine *engine);

/* True if a predecessor was killed while a replay ran. */
bool engine_was_replaying(const struct engine *engine);
/* True if engine_wake() was ordered since the last swap-out, of a predecessor too. */
bool engine_wake_is_ordered(const struct engine *engine);

int engine_notices_fd(const struct engine *engine);
int engine_take_notice(struct engine *engine, struct notice *out);

/* Return how many pages this process's last swap-out left resident because they could not be read, stored or
 * punched; *out says which. */
uint64_t engine_left_pages(struct engine *engine, struct lost_incident *out);

/* After NOTICE_PAGES_LOST: return how many pages were lost since the last call; *out says which. */
uint64_t engine_take_lost(struct engine *engine, struct lost_incident *out);

/* True if resident_pages is only updated by engine_count_resident() and at the end of jobs, because the VMM's
 * files are larger than its memory. */
bool engine_needs_count(struct engine *engine);

/* Update resident_pages. Takes some 40 to 80 ms a GiB. Any thread may call this, at the same time as any
 * other call but engine_release_memory() and engine_destroy(); engine_stop() ends it early. */
void engine_count_resident(struct engine *engine);

/* Read the statistics. Waits for nothing that a guest, a disk or another process can delay, and takes no
 * longer for a large VM. */
void engine_read_stats(struct engine *engine, struct engine_stats *out);
/* After NOTICE_FAULTS_STARVED: true if no page fault waits for lack of memory any more. The next one that
 * does is reported again. */
bool engine_end_starvation(struct engine *engine);

const char *engine_pin_check(const struct engine *engine);

int engine_set_trace(struct engine *engine, bool on, struct error *err);
size_t engine_drain_trace(struct engine *engine, struct trace_record *out, size_t room);

int engine_page_map_fd(const struct engine *engine);
int engine_wake_fd(const struct engine *engine);
/* -1: there is none. */
int engine_store_fd(const struct engine *engine);
struct store_fds engine_tier_fds(const struct engine *engine);

#endif
