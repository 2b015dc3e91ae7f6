/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "engine.h"

#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>

#include "engine_inside.h"
#include "jobs/around.h"
#include "jobs/recover.h"
#include "jobs/replay.h"
#include "jobs/tender.h"
#include "store/log.h"
#include "vm/check.h"
#include "vm/owner.h"
#include "vm/page.h"
#include "vm/resident.h"

#define MAX_WORKERS 16

static uint32_t usable_cpus(void)
{
	cpu_set_t allowed;

	return sched_getaffinity(0, sizeof allowed, &allowed) == 0 ? (uint32_t)CPU_COUNT(&allowed) : 1;
}

/* The page map says that it may have slots of the log before there are any. */
static int open_tiers(struct vm *vm, const struct engine_config *config, struct error *err)
{
	uint64_t disk_max_bytes = config->store_max_bytes ? config->store_max_bytes : UINT64_MAX;
	struct log_config log = {
		.dir = config->swap_dir,
		.segments_fd = config->segments_fd,
		.ram_fd = config->ram_fd,
		.disk_fd = config->disk_fd,
		.key_fd = config->key_fd,
		.compress = config->compress,
		.encrypt = config->encrypt,
		.ram_max_bytes = config->ram_max_bytes,
		.disk_max_bytes = config->has_disk ? disk_max_bytes : 0,
		.disk_keep_free_bytes = config->store_keep_free_bytes,
		.ram_age_s = config->ram_age_s,
	};
	int rc;

	page_map_may_have_log(vm->map);
	if (config->store_fd < 0)
		return store_create_tiers(&log, &vm->store, err);
	rc = store_adopt(config->store_fd, &vm->store, err);
	return rc ? rc : store_add_tiers(vm->store, &log, err);
}

static int open_store(struct vm *vm, const struct engine_config *config, struct error *err)
{
	struct page_map_header *header = page_map_header(vm->map);
	struct snapshot_version version = { header->snapshot_bytes, header->snapshot_mtime_ns };
	int rc;

	if (config->snapshot) {
		rc = store_open_snapshot(config->store_fd, &version, &vm->store, err);

		header->snapshot_bytes = version.size_bytes;
		header->snapshot_mtime_ns = version.mtime_ns;
		return rc;
	}
	if (config->tiers)
		return open_tiers(vm, config, err);
	if (page_map_header(vm->map)->version == PAGE_MAP_VERSION_LOG)
		return error_set(err, EINVAL,
				 "pages of the VM are in a store of tiers, which is needed to serve them");
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
	struct faults_config how = { .no_uring = config->no_uring, .spin_us = config->spin_us };
	int rc;

	vm->fault_threads_n = threads < ENGINE_MAX_FAULT_THREADS ? threads : ENGINE_MAX_FAULT_THREADS;
	how.pin = vm->fault_threads_n == cpus;
	vm->workers_n = config->workers < 1	      ? 1 :
			config->workers > MAX_WORKERS ? MAX_WORKERS :
							config->workers;
	memory_init(&vm->memory);
	pthread_mutex_init(&vm->punching_lock, NULL);
	pthread_mutex_init(&vm->lift_lock, NULL);
	pthread_mutex_init(&vm->release_lock, NULL);
	pthread_mutex_init(&vm->lost.lock, NULL);
	pthread_mutex_init(&vm->regions_lock, NULL);
	vm->latencies = calloc(vm->fault_threads_n, sizeof *vm->latencies);
	/* what is not used takes no memory */
	vm->given_up_ms = calloc(PAGE_MAP_MAX_PAGES / CHUNK_PAGES, sizeof *vm->given_up_ms);
	if (!vm->latencies || !vm->given_up_ms || gate_create(&vm->gate) != 0 ||
	    gate_join(vm->gate, &engine->lane) != 0 || notices_create(&vm->notices) != 0 ||
	    trace_create(vm->fault_threads_n, &vm->trace) != 0)
		return error_set(err, ENOMEM, "no memory for the engine");
	engine->unsettled = config->page_map_fd >= 0;
	rc = config->page_map_fd < 0 ? page_map_create(&vm->map, err) :
				       page_map_adopt(config->page_map_fd, &vm->map, err);
	if (!rc && config->page_map_fd < 0)
		owner_take(page_map_header(vm->map));
	if (!rc && config->mover_pid)
		rc = mover_open(config->mover_pid, config->mailbox_fd, config->pagemap_fd, &vm->mover, err);
	if (!rc)
		rc = open_store(vm, config, err);
	if (!rc)
		store_count_writes_in(vm->store, &page_map_header(vm->map)->written_bytes);
	if (!rc)
		rc = faults_create(vm, &how, &engine->faults, err);
	if (!rc)
		rc = swapper_create(vm, &engine->swapper, err);
	if (!rc)
		rc = wake_create(engine, config, err);
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
	replay_destroy(engine->replay);
	swapper_destroy(engine->swapper);
	faults_destroy(engine->faults);
	wake_record_destroy(vm->wake);
	nearby_destroy(vm->nearby);
	address_spaces_destroy(&vm->spaces);
	store_destroy(vm->store);
	page_map_destroy(vm->map);
	mover_close(vm->mover);
	trace_destroy(vm->trace);
	notices_destroy(vm->notices);
	gate_part(vm->gate, engine->lane);
	gate_destroy(vm->gate);
	pthread_mutex_destroy(&vm->punching_lock);
	pthread_mutex_destroy(&vm->lift_lock);
	pthread_mutex_destroy(&vm->release_lock);
	pthread_mutex_destroy(&vm->lost.lock);
	pthread_mutex_destroy(&vm->regions_lock);
	free(vm->latencies);
	free(vm->given_up_ms);
	free(engine);
}

#ifdef VMMSWAP_FAILPOINTS
static enum check_when what_to_check(const struct engine *engine)
{
	if (engine->stopped)
		return CHECK_AT_REST;
	return swapper_job(engine->swapper) == JOB_NONE ? CHECK_NO_JOB : CHECK_ANY_TIME;
}

int engine_check(struct engine *engine, struct error *err)
{
	return engine->unsettled ? 0 : vm_check(&engine->vm, what_to_check(engine), err);
}

/* Whoever tests anything with an engine finds out at its end. */
static void check_at_rest(struct engine *engine)
{
	struct error err;

	if (!engine->swapper || engine->unsettled || !vm_check(&engine->vm, CHECK_AT_REST, &err))
		return;
	fprintf(stderr, "bug: %s\n", err.message);
	abort();
}
#else
static void check_at_rest(struct engine *engine)
{
	(void)engine;
}
#endif

int engine_recover(struct engine *engine, uint64_t *out_pages, uint32_t *last_job, struct error *err)
{
	int rc = recover_pages(&engine->vm, err);

	if (!rc) {
		engine->unsettled = false;
		check_at_rest(engine);
	}
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
	engine->started = !rc;
	if (!rc)
		rc = tender_start(&engine->vm, &engine->tender, err);
	if (!rc)
		rc = around_start(&engine->vm, replay_budget(engine->replay), &engine->around, err);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	return rc;
}

void engine_stop(struct engine *engine)
{
	atomic_store(&engine->vm.stopping, true);
	around_stop(engine->around);
	engine->around = NULL;
	if (engine->replay)
		replay_stop(engine->replay);
	if (engine->swapper)
		swapper_stop(engine->swapper);
	tender_stop(engine->tender);
	engine->tender = NULL;
	if (engine->faults)
		faults_stop(engine->faults);
	if (engine->started && !engine->stopped)
		check_at_rest(engine);
	engine->stopped = true;
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

	replay_cancel(engine->replay);
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
	bool more = release_children(engine);

	vm_drop_stale_copies(&engine->vm);
	return store_trim_step(engine->vm.store) || more;
}

bool engine_tend(struct engine *engine)
{
	return store_tend_step(engine->vm.store, page_relocate, &engine->vm);
}

void engine_host_is_short(struct engine *engine, bool is_short)
{
	store_host_is_short(engine->vm.store, is_short);
}

int engine_flush_step(struct engine *engine, struct error *err)
{
	int rc = store_flush_step(engine->vm.store, err);

	return rc == -ENOENT ? 0 : rc ? rc : 1;
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
	};
	pthread_mutex_lock(&vm->regions_lock);
	out->total_pages = memory_total_pages(&vm->memory);
	pthread_mutex_unlock(&vm->regions_lock);
	out->processes = atomic_load(&vm->spaces.living);
	out->copied_pages = atomic_load(&header->copied_pages);
	out->zeroed_pages = atomic_load(&header->zeroed_pages);
	out->redundant_pages = atomic_load(&header->redundant_pages);
	out->swap_pages = atomic_load(&vm->stored_pages);
	out->progress_pages = swapper_progress_pages(engine->swapper);
	out->swap_time_ms = atomic_load(&header->swap_time_ms);
	out->pause_us = atomic_load(&header->pause_us);
	out->fault_count = latency.count;
	out->faults_per_second = latency.last_second_n;
	out->fault_p50_ns = latency.p50_ns;
	out->fault_p99_ns = latency.p99_ns;
	out->stored_ram_bytes = account.ram_bytes;
	out->stored_disk_bytes = account.disk_bytes;
	out->written_bytes = account.written_bytes;
	out->used_slots = account.used_slots;
	out->same_filled_pages = account.same_filled_pages;
	out->raw_pages = account.raw_pages;
	out->record_bytes = account.record_bytes;
	out->limited_by = atomic_load(&header->limited_by);
	wake_read_stats(vm->wake, out);
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

struct store_fds engine_tier_fds(const struct engine *engine)
{
	return store_tier_fds(engine->vm.store);
}
