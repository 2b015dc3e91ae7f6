/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "engine.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "jobs/recover.h"
#include "serve/event.h"
#include "serve/fault.h"
#include "vm/folios.h"
#include "vm/owner.h"
#include "vm/registration.h"
#include "vm/resident.h"
#include "vm/vm.h"

#define MAX_WORKERS 16

struct engine {
	struct vm vm;
	struct faults *faults;
	struct swapper *swapper;
	struct lane *lane; /* of whoever calls us, one at a time */
};

static uint32_t usable_cpus(void)
{
	cpu_set_t allowed;

	return sched_getaffinity(0, sizeof allowed, &allowed) == 0 ? (uint32_t)CPU_COUNT(&allowed) : 1;
}

static int open_store(struct vm *vm, const struct engine_config *config, struct error *err)
{
	struct page_map_header *header = page_map_header(vm->map);
	struct snapshot_version version = { header->snapshot_bytes, header->snapshot_mtime_ns };
	int rc;

	vm->snapshot = config->snapshot;
	if (vm->snapshot) {
		rc = store_open_snapshot(config->store_fd, &version, &vm->store, err);

		header->snapshot_bytes = version.size_bytes;
		header->snapshot_mtime_ns = version.mtime_ns;
		return rc;
	}
	rc = config->store_fd < 0 ? store_create(config->swap_dir, &vm->store, err) :
				    store_adopt(config->store_fd, &vm->store, err);
	if (!rc)
		store_limit(vm->store, config->store_max_bytes, config->store_keep_free_bytes);
	return rc;
}

static int create_rooms(struct engine *engine, const struct engine_config *config, struct error *err)
{
	struct vm *vm = &engine->vm;
	uint32_t cpus = usable_cpus();
	uint32_t threads = config->fault_threads ? config->fault_threads : cpus;
	int rc;

	vm->fault_threads_n = threads < ENGINE_MAX_FAULT_THREADS ? threads : ENGINE_MAX_FAULT_THREADS;
	vm->workers_n = config->workers < 1	      ? 1 :
			config->workers > MAX_WORKERS ? MAX_WORKERS :
							config->workers;
	memory_init(&vm->memory);
	pthread_mutex_init(&vm->punching_lock, NULL);
	pthread_mutex_init(&vm->lift_lock, NULL);
	pthread_mutex_init(&vm->lost.lock, NULL);
	pthread_mutex_init(&vm->regions_lock, NULL);
	vm->latencies = calloc(vm->fault_threads_n, sizeof *vm->latencies);
	/* what is not used takes no memory */
	vm->given_up_ms = calloc(PAGE_MAP_MAX_PAGES / CHUNK_PAGES, sizeof *vm->given_up_ms);
	if (!vm->latencies || !vm->given_up_ms || gate_create(&vm->gate) != 0 ||
	    gate_join(vm->gate, &engine->lane) != 0 || notices_create(&vm->notices) != 0 ||
	    trace_create(vm->fault_threads_n, &vm->trace) != 0)
		return error_set(err, ENOMEM, "no memory for the engine");
	rc = config->page_map_fd < 0 ? page_map_create(&vm->map, err) :
				       page_map_adopt(config->page_map_fd, &vm->map, err);
	if (!rc && config->page_map_fd < 0)
		owner_take(page_map_header(vm->map));
	if (!rc)
		rc = open_store(vm, config, err);
	if (!rc)
		rc = faults_create(vm, vm->fault_threads_n == cpus, config->spin_us, &engine->faults, err);
	if (!rc)
		rc = swapper_create(vm, &engine->swapper, err);
	return rc;
}

int engine_create(const struct engine_config *config, struct engine **out, struct error *err)
{
	struct engine *engine;
	int rc;

	if (sysconf(_SC_PAGESIZE) != (long)PAGE_BYTES)
		return error_set(err, ENOTSUP, "this kernel has pages of %ld bytes; vmmswap works with %llu",
				 sysconf(_SC_PAGESIZE), (unsigned long long)PAGE_BYTES);
	engine = calloc(1, sizeof *engine);
	if (!engine)
		return error_set(err, ENOMEM, "no memory for the engine");
	rc = create_rooms(engine, config, err);
	if (rc) {
		engine_destroy(engine);
		return rc;
	}
	*out = engine;
	return 0;
}

void engine_destroy(struct engine *engine)
{
	struct vm *vm;

	if (!engine)
		return;
	vm = &engine->vm;
	engine_stop(engine);
	engine_release_memory(engine);
	swapper_destroy(engine->swapper);
	faults_destroy(engine->faults);
	address_spaces_destroy(&vm->spaces);
	store_destroy(vm->store);
	page_map_destroy(vm->map);
	trace_destroy(vm->trace);
	notices_destroy(vm->notices);
	gate_part(vm->gate, engine->lane);
	gate_destroy(vm->gate);
	pthread_mutex_destroy(&vm->punching_lock);
	pthread_mutex_destroy(&vm->lift_lock);
	pthread_mutex_destroy(&vm->lost.lock);
	pthread_mutex_destroy(&vm->regions_lock);
	free(vm->latencies);
	free(vm->given_up_ms);
	free(engine);
}

int engine_add_region(struct engine *engine, int memfd, uint64_t offset_bytes, uint64_t size_bytes,
		      uint64_t *page_idx, struct error *err)
{
	struct vm *vm = &engine->vm;
	int rc = page_map_add_pages(vm->map, pages_of_bytes(size_bytes), page_idx, err);

	if (rc)
		return rc;
	gate_hold_alone(vm->gate);
	pthread_mutex_lock(&vm->regions_lock);
	rc = memory_add(&vm->memory, memfd, offset_bytes, *page_idx, pages_of_bytes(size_bytes), err);
	pthread_mutex_unlock(&vm->regions_lock);
	gate_release(vm->gate);
	if (rc)
		page_map_return_pages(vm->map, *page_idx);
	folios_look(vm, &vm->memory);
	return rc;
}

/* What the file has goes out, as it were; what is a hole there is zeros. */
static void mark_stored(struct vm *vm, const struct region *region)
{
	uint64_t first_slot = pages_of_bytes(region->offset_bytes), end_slot = first_slot + region->pages;
	uint64_t from_slot, to_slot;

	for (uint64_t slot = first_slot;
	     slot < end_slot && store_next_data(vm->store, slot, &from_slot, &to_slot); slot = to_slot) {
		for (slot = from_slot; slot < to_slot && slot < end_slot; slot++) {
			_Atomic uint64_t *word = page_map_word(vm->map, region->page_idx + slot - first_slot);

			atomic_store_explicit(word, page_word_after(0, PAGE_STORED, slot, 0),
					      memory_order_relaxed);
			atomic_fetch_add_explicit(&vm->stored_pages, 1, memory_order_relaxed);
		}
	}
}

int engine_add_snapshot_region(struct engine *engine, uint64_t offset_bytes, uint64_t size_bytes,
			       uint64_t *page_idx, struct error *err)
{
	struct vm *vm = &engine->vm;
	struct page_map_header *header = page_map_header(vm->map);
	uint64_t known_pages = atomic_load(&header->pages_n);
	uint64_t pages = pages_of_bytes(size_bytes);
	int rc;

	if (!vm->snapshot || offset_bytes % PAGE_BYTES ||
	    pages_of_bytes(offset_bytes) + pages > STORE_SLOTS_MAX)
		return error_set(err, EINVAL,
				 "%llu bytes at offset %llu of a snapshot's memory file cannot be served",
				 (unsigned long long)size_bytes, (unsigned long long)offset_bytes);
	rc = page_map_add_pages(vm->map, pages, page_idx, err);
	if (rc)
		return rc;
	gate_hold_alone(vm->gate);
	pthread_mutex_lock(&vm->regions_lock);
	rc = memory_add_private(&vm->memory, offset_bytes, *page_idx, pages, err);
	pthread_mutex_unlock(&vm->regions_lock);
	if (!rc && *page_idx >= known_pages) { /* else a predecessor's map says it better */
		mark_stored(vm, memory_region_of(&vm->memory, *page_idx));
		atomic_store(&header->tracking, true);
		atomic_store(&vm->tracking, true);
	}
	gate_release(vm->gate);
	return rc;
}

static bool anything_out(struct vm *vm, uint64_t page_idx, uint64_t pages)
{
	uint64_t end_idx = page_idx + pages;

	for (uint64_t idx = page_map_next_used(vm->map, page_idx, end_idx); idx < end_idx; idx++) {
		enum page_state state;

		if (idx % (PAGE_BYTES / sizeof(uint64_t)) == 0)
			idx = page_map_next_used(vm->map, idx, end_idx);
		if (idx >= end_idx)
			break;
		state = page_state_of(atomic_load(page_map_word(vm->map, idx)));
		if (state == PAGE_STORED || state == PAGE_POISONED)
			return true;
	}
	return false;
}

static void forget_region(struct vm *vm, uint64_t page_idx, uint64_t pages)
{
	for (size_t i = 0; i < vm->spaces.n; i++) {
		struct process *process = vm->spaces.processes[i];
		uint64_t addr, run;

		for (uint64_t done = 0; done < pages && vm->tracking && !process->gone;
		     done += run ? run : 1) {
			run = process_addr_of(process, page_idx + done, pages - done, &addr);
			if (run)
				uffd_unregister(process->uffd, addr, bytes_of_pages(run));
		}
		process_forget_pages(process, page_idx, pages);
	}
	removals_forget(&vm->removals, page_idx, pages);
	event_give_up(vm, page_idx, pages); /* kept copies */
	pthread_mutex_lock(&vm->regions_lock);
	memory_remove(&vm->memory, page_idx);
	pthread_mutex_unlock(&vm->regions_lock);
	page_map_forget(vm->map, page_idx, pages);
}

static int remove_region(struct vm *vm, uint64_t page_idx, struct error *err)
{
	const struct region *region;
	int rc = 0;

	gate_hold_alone(vm->gate);
	region = memory_region_of(&vm->memory, page_idx);
	if (!region || region->page_idx != page_idx)
		rc = error_set(err, EINVAL, "no region starts at page %llu", (unsigned long long)page_idx);
	else if (anything_out(vm, page_idx, region->pages))
		rc = error_set(err, EBUSY, "pages of the region are swapped out: call Disable first");
	else
		forget_region(vm, page_idx, region->pages);
	gate_release(vm->gate);
	return rc;
}

int engine_remove_region(struct engine *engine, uint64_t page_idx, struct error *err)
{
	if (swapper_job(engine->swapper) != JOB_NONE)
		return error_set(err, EBUSY, "an operation is under way: remove memory when it is done");
	return remove_region(&engine->vm, page_idx, err);
}

bool engine_is_out(struct engine *engine, uint64_t page_idx, uint64_t pages)
{
	return anything_out(&engine->vm, page_idx, pages);
}

int engine_undo_add_region(struct engine *engine, uint64_t page_idx, struct error *err)
{
	return remove_region(&engine->vm, page_idx, err);
}

static int fill_process(struct engine *engine, struct process *process, const struct range *ranges,
			size_t ranges_n, struct error *err)
{
	struct vm *vm = &engine->vm;
	int rc = 0;

	process->protects = !vm->snapshot; /* until registering says otherwise */
	for (size_t i = 0; i < ranges_n && !rc; i++)
		rc = process_add_range(process, ranges[i]);
	if (rc)
		return error_set(err, -rc, "cannot take the process's %zu ranges: %s", ranges_n,
				 strerror(-rc));
	rc = faults_watch(engine->faults, process);
	if (rc)
		return error_set(err, -rc, "cannot listen to the userfaultfd: %s", strerror(-rc));
	return vm->tracking ? register_or_refuse(vm, process, err) : 0;
}

/* -EAGAIN: pages are PUNCHING, and the process cannot be protected there. */
static int try_to_add(struct engine *engine, int uffd, const struct range *ranges, size_t ranges_n,
		      uint32_t *process_id, struct error *err)
{
	struct vm *vm = &engine->vm;
	int own = fcntl(uffd, F_DUPFD_CLOEXEC, 3);
	struct process *process;
	int rc;

	if (own < 0)
		return error_set(err, errno, "cannot dup the userfaultfd: %s", strerror(errno));
	gate_hold_alone(vm->gate);
	process = address_space_add(&vm->spaces, own);
	if (process) {
		*process_id = process->id;
		rc = fill_process(engine, process, ranges, ranges_n, err);
		if (!rc && !vm_protect_punching(vm, process)) {
			unregister_process(vm, process);
			rc = error_set(
				err, EAGAIN,
				"a swap-out is under way, and the process cannot be write-protected: it is changing its "
				"mappings, or its userfaultfd has no write-protection; try again when the swap-out is done");
		}
		if (rc) {
			faults_unwatch(engine->faults, process);
			address_space_remove(&vm->spaces, process->id);
		}
	} else {
		close(own);
		rc = error_set(err, ENOMEM, "no memory for one more process");
	}
	if (rc != -EAGAIN) /* whatever came of it: there is a process that may map guest memory */
		vm_note_join(vm);
	gate_release(vm->gate);
	return rc;
}

/* A punch takes microseconds, as does a change of mappings, unless somebody is in the way. */
#define JOIN_TRIES 200
#define JOIN_RETRY_NS 1000000

int engine_add_process(struct engine *engine, int uffd, const struct range *ranges, size_t ranges_n,
		       uint32_t *process_id, struct error *err)
{
	int rc = try_to_add(engine, uffd, ranges, ranges_n, process_id, err);

	for (int tries = 1; rc == -EAGAIN && tries < JOIN_TRIES; tries++) {
		nanosleep(&(struct timespec){ .tv_nsec = JOIN_RETRY_NS }, NULL);
		rc = try_to_add(engine, uffd, ranges, ranges_n, process_id, err);
	}
	return rc;
}

/* Of ranges that are to be a process's: pages at two addresses would be protected and filled at one of them; a range over two
 * regions would not end with one of them. */
static int check_range(struct vm *vm, const struct range *ranges, size_t i, struct error *err)
{
	const struct range *range = &ranges[i];
	const struct region *region = memory_region_of(&vm->memory, range->page_idx);

	if (!region || range->pages > region->page_idx + region->pages - range->page_idx)
		return error_set(err, EINVAL, "the range at %#llx is not of one region of guest memory",
				 (unsigned long long)range->addr);
	for (size_t other = 0; other < i; other++)
		if (range->page_idx < ranges[other].page_idx + ranges[other].pages &&
		    ranges[other].page_idx < range->page_idx + range->pages)
			return error_set(
				err, EINVAL,
				"guest memory is mapped twice, at %#llx and %#llx: only one mapping in a process can be "
				"followed",
				(unsigned long long)ranges[other].addr, (unsigned long long)range->addr);
	return 0;
}

/* The ranges as a process of their own, to be tried. */
static int take_ranges(struct vm *vm, struct process *to, const struct range *ranges, size_t ranges_n,
		       struct error *err)
{
	for (size_t i = 0; i < ranges_n; i++) {
		int rc = check_range(vm, ranges, i, err);

		if (rc)
			return rc;
		rc = process_add_range(to, ranges[i]);
		if (rc == -EEXIST)
			return error_set(err, EINVAL, "two ranges overlap at %#llx",
					 (unsigned long long)ranges[i].addr);
		if (rc)
			return error_set(err, -rc, "no memory for the ranges of process %u", to->id);
	}
	return 0;
}

static bool has_all(const struct process *process, const struct process *next)
{
	for (size_t i = 0; i < next->ranges_n; i++)
		if (!process_has_range(process, &next->ranges[i]))
			return false;
	return true;
}

static int set_ranges(struct vm *vm, struct process *process, const struct range *ranges, size_t ranges_n,
		      struct error *err)
{
	struct process next = { .id = process->id, .uffd = process->uffd, .protects = process->protects };
	struct range *unused;
	int rc = take_ranges(vm, &next, ranges, ranges_n, err);

	if (!rc && !has_all(process, &next)) {
		vm_note_join(vm);
		rc = vm->tracking ? register_new_ranges(vm, process, &next, err) : 0;
	}
	unused = next.ranges;
	if (!rc) {
		unused = process->ranges;
		process->ranges = next.ranges;
		process->ranges_n = next.ranges_n;
		process->ranges_room = next.ranges_room;
		process->released_addr = 0;
		process->protects = next.protects;
	}
	free(unused);
	if (!rc && vm->tracking && process->unwatched) { /* of what it had before, perhaps */
		vm_note_join(vm);
		register_process(vm, process);
	}
	return rc;
}

int engine_set_ranges(struct engine *engine, uint32_t process_id, const struct range *ranges, size_t ranges_n,
		      struct error *err)
{
	struct vm *vm = &engine->vm;
	struct process *process;
	int rc;

	gate_hold_alone(vm->gate);
	process = address_space_find(&vm->spaces, process_id);
	rc = process ? set_ranges(vm, process, ranges, ranges_n, err) :
		       error_set(err, EINVAL, "there is no process %u", process_id);
	/* It runs already: what cannot be protected now is as what it wrote before it was known. */
	if (!rc)
		vm_protect_punching(vm, process);
	gate_release(vm->gate);
	return rc;
}

void engine_register_again(struct engine *engine, uint32_t process_id)
{
	struct vm *vm = &engine->vm;
	struct process *process;

	gate_hold_alone(vm->gate);
	process = address_space_find(&vm->spaces, process_id);
	if (process && vm->tracking) {
		vm_note_join(vm);
		register_process(vm, process);
		vm_protect_punching(vm, process);
	}
	gate_release(vm->gate);
}

size_t engine_ranges_of(struct engine *engine, uint32_t process_id, struct range *out, size_t room)
{
	struct vm *vm = &engine->vm;
	struct process *process;
	size_t n = 0;

	gate_pass(vm->gate, engine->lane);
	process = address_space_find(&vm->spaces, process_id);
	if (process)
		atomic_store(&process->moved, false);
	for (; process && n < process->ranges_n; n++)
		if (n < room)
			out[n] = process->ranges[n];
	gate_leave(vm->gate, engine->lane);
	return n;
}

/* It has ended as a rule. One that lives, and is given up, must not wait for us for ever. */
static void let_process_go(struct vm *vm, struct process *process)
{
	if (vm->tracking && !vm->snapshot) /* private memory is nowhere else: better wait than read zeros */
		unregister_process(vm, process);
	if (process->dummy_addr && !process->gone)
		uffd_unregister(process->uffd, process->dummy_addr, PAGE_BYTES);
}

int engine_remove_process(struct engine *engine, uint32_t process_id, struct error *err)
{
	struct vm *vm = &engine->vm;
	struct process *process;
	int rc = 0;

	gate_hold_alone(vm->gate);
	process = address_space_find(&vm->spaces, process_id);
	if (process) {
		let_process_go(vm, process);
		faults_unwatch(engine->faults, process);
		address_space_remove(&vm->spaces, process_id);
	} else {
		rc = error_set(err, ESRCH, "there is no process %u", process_id);
	}
	gate_release(vm->gate);
	return rc;
}

int engine_register_dummy(struct engine *engine, uint32_t process_id, uint64_t addr, struct error *err)
{
	struct vm *vm = &engine->vm;
	struct process *process;
	int rc = 0;

	gate_hold_alone(vm->gate);
	process = address_space_find(&vm->spaces, process_id);
	if (!process)
		rc = error_set(err, ESRCH, "there is no process %u", process_id);
	else if (uffd_register(process->uffd, addr, PAGE_BYTES, false) != UFFD_DONE)
		rc = error_set(
			err, EINVAL,
			"cannot register the dummy page at %#llx: it must be a page of the process's own "
			"memory that no other userfaultfd watches",
			(unsigned long long)addr);
	else
		process->dummy_addr = addr;
	gate_release(vm->gate);
	return rc;
}

int engine_recover(struct engine *engine, uint64_t *out_pages, uint32_t *last_job, struct error *err)
{
	int rc = recover_pages(&engine->vm, err);

	*out_pages = atomic_load(&engine->vm.stored_pages);
	*last_job = atomic_load(&page_map_header(engine->vm.map)->job);
	return rc;
}

/* Python's main thread takes the process's signals; ours must not. */
int engine_start(struct engine *engine, struct error *err)
{
	sigset_t all, before;
	int rc;

	sigfillset(&all);
	pthread_sigmask(SIG_BLOCK, &all, &before);
	rc = faults_start(engine->faults, err);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	return rc;
}

void engine_stop(struct engine *engine)
{
	atomic_store(&engine->vm.stopping, true);
	if (engine->swapper)
		swapper_stop(engine->swapper);
	if (engine->faults)
		faults_stop(engine->faults);
}

void engine_release_memory(struct engine *engine)
{
	pthread_mutex_lock(&engine->vm.regions_lock);
	memory_destroy(&engine->vm.memory);
	pthread_mutex_unlock(&engine->vm.regions_lock);
}

int engine_start_job(struct engine *engine, uint32_t job, const struct swap_out_options *options,
		     struct error *err)
{
	sigset_t all, before;
	int rc;

	sigfillset(&all);
	pthread_sigmask(SIG_BLOCK, &all, &before);
	rc = swapper_start(engine->swapper, (enum job_kind)job, options, err);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	return rc;
}

void engine_cancel_job(struct engine *engine)
{
	swapper_cancel(engine->swapper);
}

void engine_set_budget(struct engine *engine, uint64_t pages)
{
	swapper_set_budget(engine->swapper, pages);
}

void engine_forget_job(struct engine *engine)
{
	swapper_forget_last(engine->swapper);
}

void engine_continue_job(struct engine *engine)
{
	swapper_continue(engine->swapper);
}

bool engine_housekeep(struct engine *engine)
{
	vm_drop_stale_copies(&engine->vm);
	return store_trim_step(engine->vm.store);
}

int engine_notices_fd(const struct engine *engine)
{
	return notices_fd(engine->vm.notices);
}

int engine_take_notice(struct engine *engine, struct notice *out)
{
	return notices_take(engine->vm.notices, out);
}

uint64_t engine_left_pages(struct engine *engine, struct lost_incident *out)
{
	return swapper_left_pages(engine->swapper, out);
}

uint64_t engine_take_lost(struct engine *engine, struct lost_incident *out)
{
	return lost_take(&engine->vm, out);
}

bool engine_needs_count(struct engine *engine)
{
	return resident_needs_count(&engine->vm);
}

void engine_count_resident(struct engine *engine)
{
	resident_count(&engine->vm);
}

void engine_read_stats(struct engine *engine, struct engine_stats *out)
{
	struct vm *vm = &engine->vm;
	struct page_map_header *header = page_map_header(vm->map);
	struct latency_summary latency;
	struct store_account account;

	store_account(vm->store, &account);
	latency_summarise(vm->latencies, vm->fault_threads_n, &latency);
	*out = (struct engine_stats){
		.resident_pages = resident_pages(vm),
		.total_pages = memory_total_pages(&vm->memory),
	};
	out->processes = atomic_load(&vm->spaces.living);
	out->copied_pages = atomic_load(&header->copied_pages);
	out->zeroed_pages = atomic_load(&header->zeroed_pages);
	out->redundant_pages = atomic_load(&header->redundant_pages);
	out->swap_pages = atomic_load(&vm->stored_pages);
	out->progress_pages = swapper_progress_pages(engine->swapper);
	out->swap_time_ms = atomic_load(&header->swap_time_ms);
	out->pause_us = atomic_load(&header->pause_us);
	out->fault_count = latency.count;
	out->fault_p50_ns = latency.p50_ns;
	out->fault_p99_ns = latency.p99_ns;
	out->stored_ram_bytes = account.ram_bytes;
	out->stored_disk_bytes = account.disk_bytes;
	out->written_bytes = atomic_load(&header->written_bytes) + account.written_bytes;
	out->poisoned_pages = atomic_load(&vm->poisoned_pages);
	out->left_pages = atomic_load(&header->left_pages);
	out->lost_pages = atomic_load(&header->lost_pages);
	out->kept_pages = atomic_load(&vm->kept_pages);
	out->pinned_pages = atomic_load(&header->pinned_pages);
	out->trace_dropped = trace_dropped(vm->trace);
	out->last_mode = atomic_load(&header->last_mode);
	out->job = swapper_job(engine->swapper);
	out->tracking = atomic_load(&vm->tracking);
}

bool engine_end_starvation(struct engine *engine)
{
	struct vm *vm = &engine->vm;

	if (atomic_load(&vm->starved_faults))
		return false;
	atomic_store(&vm->starved_told, false);
	return true;
}

const char *engine_pin_check(const struct engine *engine)
{
	return swapper_pin_check(engine->swapper);
}

int engine_set_trace(struct engine *engine, bool on, struct error *err)
{
	int rc = trace_set(engine->vm.trace, on);

	return rc ? error_set(err, -rc, "no memory for the page-fault trace") : 0;
}

size_t engine_drain_trace(struct engine *engine, struct trace_record *out, size_t room)
{
	return trace_drain(engine->vm.trace, out, room);
}

int engine_page_map_fd(const struct engine *engine)
{
	return page_map_fd(engine->vm.map);
}

int engine_store_fd(const struct engine *engine)
{
	return store_fd(engine->vm.store);
}
