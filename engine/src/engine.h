/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The engine of one VM: what Python sees. All that happens per page, or while a guest thread waits, happens below here.
 *
 * Calls come from one thread at a time. None blocks for longer than a system call, but engine_destroy(), which waits for a
 * running job to end its chunk, and engine_add_process(), which tries for 200 ms to protect a process where pages are just
 * being punched. All fds given are dup'ed. Functions return 0 or -errno with *err filled. */
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

#define ENGINE_MAX_FAULT_THREADS 4
#define ENGINE_DEFAULT_SPIN_US 0

struct engine_config {
	const char *swap_dir;	/* where a new store's file goes; not needed with store_fd */
	uint32_t fault_threads; /* 0: one for each usable CPU, ENGINE_MAX_FAULT_THREADS at most */
	uint32_t spin_us;
	uint32_t workers; /* threads of a long job: at least 1 */
	/* -1: a new VM. Otherwise recovery: the same regions must be added again, in the same order */
	int page_map_fd;
	int store_fd;					 /* -1: a new store */
	uint64_t store_max_bytes, store_keep_free_bytes; /* see store_limit(); 0: no limit */
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
	uint64_t processes;
	uint64_t poisoned_pages, pinned_pages, kept_pages;
	uint64_t left_pages; /* by the last swap-out: they could not be read, stored or punched */
	uint64_t lost_pages; /* since the VM registered */
	uint64_t trace_dropped;
	uint32_t last_mode; /* enum swap_mode */
	uint32_t job;	    /* enum job_kind running now */
	uint32_t tracking;
};

struct engine;

int engine_create(const struct engine_config *config, struct engine **out, struct error *err);

/* Stops all threads; touches nothing of the guest: what is out stays out, for a successor with the same fds. */
void engine_destroy(struct engine *engine);

/* memfd: opened anew by the caller, so that its position is not the VMM's; its mode may have changed since. */
int engine_add_region(struct engine *engine, int memfd, uint64_t offset_bytes, uint64_t size_bytes,
		      uint64_t *page_idx, struct error *err);

/* Private memory that a VMM restores from a snapshot and has registered with its uffd already: page i of the region is what the
 * file holds at offset_bytes + i pages, until the guest has had it. It is served at once, and never goes out again; JOB_SWAP_IN
 * brings all of it and lets the memory go. -EINVAL: the file is too short. */
int engine_add_snapshot_region(struct engine *engine, uint64_t offset_bytes, uint64_t size_bytes,
			       uint64_t *page_idx, struct error *err);

/* -EBUSY while a page of the region is out, or a job runs. */
int engine_remove_region(struct engine *engine, uint64_t page_idx, struct error *err);

/* Whether any of these pages is. */
bool engine_is_out(struct engine *engine, uint64_t page_idx, uint64_t pages);

/* Remove a region that was added since the running job began, which therefore knows nothing of it. */
int engine_undo_add_region(struct engine *engine, uint64_t page_idx, struct error *err);

/* The uffd must have had UFFDIO_API. While guest memory is tracked the process is registered before this returns, and -EINVAL
 * says that it could not be. -EAGAIN: it could not be write-protected where a swap-out is taking pages out. */
int engine_add_process(struct engine *engine, int uffd, const struct range *ranges, size_t ranges_n,
		       uint32_t *process_id, struct error *err);

/* Where a process maps guest memory from now on, in place of what was known. While memory is tracked what is new is registered;
 * what is left out is not unregistered: it is not mapped any more. -EINVAL, with nothing changed: a range cannot be registered,
 * is not of one region, or two overlap, in addresses or pages. */
int engine_set_ranges(struct engine *engine, uint32_t process_id, const struct range *ranges, size_t ranges_n,
		      struct error *err);

/* Register all memory of a process that was unmapped and mapped anew at its place, which loses that. */
void engine_register_again(struct engine *engine, uint32_t process_id);

/* How many there are, of which `room` at most are written. A forked child has those that its parent had then. Asked for anew
 * after each NOTICE_PROCESS_MOVED. */
size_t engine_ranges_of(struct engine *engine, uint32_t process_id, struct range *out, size_t room);

/* A process that lives is unregistered. */
int engine_remove_process(struct engine *engine, uint32_t process_id, struct error *err);

/* A page that nobody touches, registered for as long as the process lives: the kernel reports forks only while something is. */
int engine_register_dummy(struct engine *engine, uint32_t process_id, uint64_t addr, struct error *err);

/* For a successor, after all regions and processes were added and before engine_start(): what is in the memfds is resident
 * whatever the page map says, slots in use are taken over, and every thread that waits for a page asks again.
 * *out_pages: how many pages are out. *last_job: what the predecessor was doing (enum job_kind). */
int engine_recover(struct engine *engine, uint64_t *out_pages, uint32_t *last_job, struct error *err);

int engine_start(struct engine *engine, struct error *err);

#ifdef VMMSWAP_FAILPOINTS
/* -EPROTO, with what it is, if what the engine knows does not agree with itself: pages, counters, slots, regions, processes
 * (vm/check.h). Finds more when no job runs, and most after engine_stop(). engine_recover() and engine_stop() do it themselves,
 * and abort. */
int engine_check(struct engine *engine, struct error *err);
#endif

/* Stop all threads, turning a running job back. Notices can still be taken, and nothing adds to them any more: a forked
 * child's uffd that is not told of by then was never read. */
void engine_stop(struct engine *engine);

/* After engine_stop(): close the memfds, on which a VM's memory stays allocated when nobody else has it any more. It takes as
 * long as that takes the kernel. The regions are unknown then. */
void engine_release_memory(struct engine *engine);

int engine_start_job(struct engine *engine, uint32_t job, const struct swap_out_options *options,
		     struct error *err);
void engine_cancel_job(struct engine *engine);

/* How many pages a swap-in may bring back from now on: see swapper_set_budget(). */
void engine_set_budget(struct engine *engine, uint64_t pages);

/* The predecessor's job is not gone on with. */
void engine_forget_job(struct engine *engine);

/* After NOTICE_PROTECTED: the VMM's block layer was drained and may go on; the swap-out goes on. */
void engine_continue_job(struct engine *engine);

/* Drop copies that a process that joined has made useless, and give disk space of dropped pages back, a little at a time: true while
 * there is more. For an idle moment. */
bool engine_housekeep(struct engine *engine);

int engine_notices_fd(const struct engine *engine);
int engine_take_notice(struct engine *engine, struct notice *out);

/* How many pages the last swap-out of this process left because they could not be read, stored or punched, and which. */
uint64_t engine_left_pages(struct engine *engine, struct lost_incident *out);

/* After NOTICE_PAGES_LOST: how many pages were lost since the last call, and which. */
uint64_t engine_take_lost(struct engine *engine, struct lost_incident *out);

/* Whether resident_pages is only as good as the last engine_count_resident(), and the end of the last job: the VMM's files are
 * larger than its memory. */
bool engine_needs_count(struct engine *engine);

/* Count it, some 40 to 80 ms a GiB. On any thread, beside any other call but engine_release_memory() and engine_destroy();
 * engine_stop() ends it. */
void engine_count_resident(struct engine *engine);

/* Waits for nothing that a guest, a disk or another process can delay, and takes as long for a large VM as for a small one. */
void engine_read_stats(struct engine *engine, struct engine_stats *out);
/* After NOTICE_FAULTS_STARVED: true if no page fault waits for want of memory any more. The next one that does is told again. */
bool engine_end_starvation(struct engine *engine);

const char *engine_pin_check(const struct engine *engine);

int engine_set_trace(struct engine *engine, bool on, struct error *err);
size_t engine_drain_trace(struct engine *engine, struct trace_record *out, size_t room);

int engine_page_map_fd(const struct engine *engine);
int engine_store_fd(const struct engine *engine);

#endif
