/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "jobs/swapper.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "base/failpoint.h"
#include "base/held.h"
#include "freeze/freeze.h"
#include "freeze/members.h"
#include "jobs/budget.h"
#include "jobs/evict.h"
#include "jobs/restore.h"
#include "vm/folios.h"
#include "vm/poison.h"
#include "vm/registration.h"
#include "vm/resident.h"

#define STACK_BYTES ((size_t)256 << 10)
#define WORKERS_MAX 16
#define FREEZE_ATTEMPTS 5

struct swapper {
	struct vm *vm;
	pthread_t thread;
	struct lane *lane;   /* the thread's */
	bool thread_to_join; /* the caller's */
	_Atomic uint32_t job;
	_Atomic bool cancel;
	_Atomic uint64_t progress_pages;
	struct budget budget; /* of a swap-in */
	struct swap_out_options options;
	struct pins *pins;
	_Atomic(const char *) pin_check;

	/* What the workers of a job share; under lock. */
	pthread_mutex_t lock;
	pthread_cond_t resumed;
	bool resume; /* swapper_continue() was called */
	bool frozen;
	struct freeze *freeze; /* set while workers run, if frozen */
	bool free_only;
	uint64_t joined; /* vm->joined before the first pass began */
	struct window_cursor cursor;
	struct memory memory; /* as it was when the job began; no region of it is removed while one runs */
	struct error error;   /* the first one; ends the job */
	struct evict_counts counts;
	struct left left;
	uint64_t restored_pages, unreadable_pages;
};

struct worker {
	struct swapper *swapper;
	struct lane *lane;
	pthread_t thread;
	char *buffer;
};

static void fail(struct swapper *swapper, const struct error *error)
{
	pthread_mutex_lock(&swapper->lock);
	if (!swapper->error.code)
		swapper->error = *error;
	pthread_mutex_unlock(&swapper->lock);
}

/* The guest has stood still for long enough: what is not out yet stays. */
static void look_at_freeze(struct swapper *swapper)
{
	uint32_t limit_ms = swapper->options.freeze_limit_ms;
	struct error error;

	if (!swapper->freeze || !limit_ms || freeze_duration_us(swapper->freeze) / 1000 < limit_ms)
		return;
	error_set(
		&error, ETIMEDOUT,
		"the VM stood still for %u ms, which is FreezeLimitSec=, and runs again: what is not out yet stays. "
		"Call Enable again for the rest, or set Mode=live where the kernel can",
		limit_ms);
	fail(swapper, &error);
}

static bool go_on(struct swapper *swapper)
{
	bool failed;

	look_at_freeze(swapper);
	pthread_mutex_lock(&swapper->lock);
	failed = swapper->error.code != 0;
	pthread_mutex_unlock(&swapper->lock);
	return !failed && !atomic_load(&swapper->cancel);
}

/* What was protected before is not protected from him: all passes are done again. */
static bool somebody_joined(struct swapper *swapper)
{
	return atomic_load(&swapper->vm->joined) != swapper->joined;
}

/* In this order: no copy that a join has made stale is there then, and a later join shows. */
static void begin_with_all_who_joined(struct swapper *swapper)
{
	swapper->joined = atomic_load(&swapper->vm->joined);
	vm_drop_stale_copies(swapper->vm);
}

static bool next_window(struct swapper *swapper, bool data, struct window *out)
{
	struct vm *vm = swapper->vm;
	bool found;
	int rc;

	/* Not inside the gate: who has the lock of the memfd's inode may wait for a page fault. */
	pthread_mutex_lock(&swapper->lock);
	found = data ? window_next_data(&swapper->memory, &swapper->cursor, out) :
		       window_next_used(&swapper->memory, vm->map, &swapper->cursor, out);
	rc = swapper->cursor.error;
	if (rc && !swapper->error.code)
		error_set(&swapper->error, -rc,
			  "cannot tell what is in guest memory (lseek on its memfd): %s", strerror(-rc));
	pthread_mutex_unlock(&swapper->lock);
	return found && !rc;
}

static void rewind_cursor(struct swapper *swapper)
{
	memset(&swapper->cursor, 0, sizeof swapper->cursor);
}

static void add_counts(struct swapper *swapper, const struct evict_counts *counts)
{
	pthread_mutex_lock(&swapper->lock);
	swapper->counts.stored_pages += counts->stored_pages;
	swapper->counts.kept_pages += counts->kept_pages;
	swapper->counts.zero_pages += counts->zero_pages;
	swapper->counts.written_pages += counts->written_pages;
	swapper->counts.pinned_pages += counts->pinned_pages;
	if (counts->longest_stop_ns > swapper->counts.longest_stop_ns)
		swapper->counts.longest_stop_ns = counts->longest_stop_ns;
	pthread_mutex_unlock(&swapper->lock);
}

static struct evictor evictor_of(struct worker *worker)
{
	struct swapper *swapper = worker->swapper;

	return (struct evictor){
		.vm = swapper->vm,
		.lane = worker->lane,
		.pins = swapper->pins,
		.frozen = swapper->frozen,
		.free_only = swapper->free_only,
		.left = &swapper->left,
		.buffer = worker->buffer,
	};
}

/* Everything is protected before anything is evicted. What the guest writes to all the time then takes itself out of the
 * operation by one cheap write-protect fault a page, before its turn comes; protecting just before evicting took such pages
 * out and had to read each back (a thread with 2 % of memory as its hot set got 1.7 % of its speed). And a detector of pins
 * that needs time between the two has it. Each call protects one window, so the guest stops for no longer than that takes. */
static void *protect_worker(void *argument)
{
	struct worker *worker = argument;
	struct swapper *swapper = worker->swapper;
	struct evictor evictor = evictor_of(worker);
	struct window window;

	while (go_on(swapper) && !somebody_joined(swapper) && next_window(swapper, true, &window)) {
		struct error error = { 0 };

		lost_look_in(swapper->vm, worker->lane, &window);
		if (evict_protect(&evictor, &window, &error))
			fail(swapper, &error);
	}
	add_counts(swapper, &evictor.counts);
	return NULL;
}

static void *evict_worker(void *argument)
{
	struct worker *worker = argument;
	struct swapper *swapper = worker->swapper;
	struct evictor evictor = evictor_of(worker);
	struct window window;

	while (next_window(swapper, true, &window)) {
		struct error error = { 0 };

		if (!go_on(swapper) || somebody_joined(swapper))
			evict_abandon(&evictor, &window);
		else if (evict_protected(&evictor, &window, swapper->joined, &error))
			fail(swapper, &error);
		atomic_fetch_add(&swapper->progress_pages, window.pages);
	}
	add_counts(swapper, &evictor.counts);
	return NULL;
}

#define BUDGET_LOOK_NS 1000000

/* Wait until at least one of these pages may come back. How many may; 0: the job ends. */
static uint64_t wait_for_budget(struct swapper *swapper, uint64_t pages)
{
	uint64_t taken = budget_take(&swapper->budget, pages);

	HELD_MAY_WAIT(WAIT_TIME);
	while (!taken && go_on(swapper)) {
		nanosleep(&(struct timespec){ .tv_nsec = BUDGET_LOOK_NS }, NULL);
		taken = budget_take(&swapper->budget, pages);
	}
	return taken;
}

/* Each page is paid for, and no window is waited for as a whole: a page or two come back for a budget of that. */
static void restore_window(struct swapper *swapper, struct restorer *restorer, const struct window *window)
{
	uint64_t idx = window->page_idx, end_idx = window->page_idx + window->pages, wanted;

	while (go_on(swapper) && (wanted = restore_wanted(swapper->vm, idx, end_idx)) > 0) {
		uint64_t budget_pages = wait_for_budget(swapper, wanted);
		struct error error = { 0 };

		if (budget_pages && restore_chunk(restorer, &idx, end_idx, &budget_pages, &error))
			fail(swapper, &error);
		budget_return(&swapper->budget, budget_pages);
	}
}

static void *restore_worker(void *argument)
{
	struct worker *worker = argument;
	struct swapper *swapper = worker->swapper;
	struct restorer restorer = { .vm = swapper->vm, .lane = worker->lane, .buffer = worker->buffer };
	struct window window;

	while (go_on(swapper) && next_window(swapper, false, &window)) {
		restore_window(swapper, &restorer, &window);
		atomic_fetch_add(&swapper->progress_pages, window.pages);
	}
	pthread_mutex_lock(&swapper->lock);
	swapper->restored_pages += restorer.restored_pages;
	swapper->unreadable_pages += restorer.unreadable_pages;
	pthread_mutex_unlock(&swapper->lock);
	return NULL;
}

static void put_worker_away(struct worker *worker)
{
	if (worker->buffer != MAP_FAILED)
		munmap(worker->buffer, CHUNK_BYTES);
	gate_part(worker->swapper->vm->gate, worker->lane);
}

/* 0, or an errno with nothing left of it. */
static int start_worker(struct worker *worker, struct swapper *swapper, void *(*run)(void *))
{
	pthread_attr_t attr;
	int code = ENOMEM;

	*worker = (struct worker){ .swapper = swapper };
	worker->buffer = mmap(NULL, CHUNK_BYTES, PROT_READ | PROT_WRITE,
			      MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	if (worker->buffer != MAP_FAILED && gate_join(swapper->vm->gate, &worker->lane) == 0) {
		pthread_attr_init(&attr);
		pthread_attr_setstacksize(&attr, STACK_BYTES);
		code = pthread_create(&worker->thread, &attr, run, worker);
		pthread_attr_destroy(&attr);
	}
	if (code)
		put_worker_away(worker);
	return code;
}

/* Run one worker function on all workers until it returns on each. The more the storage lets overlap, the better: while one
 * chunk is written the next is read. */
static void run_workers(struct swapper *swapper, void *(*run)(void *))
{
	struct worker workers[WORKERS_MAX];
	size_t n = 0;
	int code = 0;

	while (n < swapper->vm->workers_n && !code) {
		code = start_worker(&workers[n], swapper, run);
		n += !code;
	}
	if (code && n == 0) { /* with one worker at least, the job only takes longer */
		struct error error;

		error_set(&error, code, "cannot start a worker thread: %s", strerror(code));
		fail(swapper, &error);
	}
	while (n-- > 0) {
		pthread_join(workers[n].thread, NULL);
		put_worker_away(&workers[n]);
	}
}

static void track(struct swapper *swapper)
{
	struct vm *vm = swapper->vm;
	bool keeps = true;

	gate_hold_alone(vm->gate);
	for (size_t i = 0; i < vm->spaces.n; i++)
		register_process(vm, vm->spaces.processes[i]);
	atomic_store(&vm->tracking, true);
	atomic_store(&page_map_header(vm->map)->tracking, true);
	for (size_t i = 0; i < vm->spaces.n; i++)
		keeps = keeps && vm->spaces.processes[i]->protects;
	atomic_store(&vm->keeps, keeps);
	gate_release(vm->gate);
}

/* True once nothing is registered any more, in no process. */
static bool tracks_nothing(struct vm *vm)
{
	bool done;

	gate_hold_alone(vm->gate);
	done = !registration_release_piece(vm);
	if (done) {
		atomic_store(&vm->tracking, false);
		atomic_store(&page_map_header(vm->map)->tracking, false);
	}
	gate_release(vm->gate);
	return done;
}

/* Nothing is out. Between two pieces one part of memory is watched and another is not: a write there is not seen, so no copy is kept.
 * Who forks or joins then gets all of memory registered, and is unregistered with all others; a successor registers all anew and
 * goes on with the job. A job that is cancelled leaves all registered. */
static void untrack(struct swapper *swapper)
{
	struct vm *vm = swapper->vm;
	bool more;

	gate_hold_alone(vm->gate);
	atomic_store(&vm->keeps, false);
	gate_release(vm->gate);
	vm_drop_kept_copies(vm);
	do {
		gate_pass(vm->gate, swapper->lane);
		more = registration_release_piece(vm);
		gate_leave(vm->gate, swapper->lane);
		FAILPOINT_HERE("swapper.unregistered");
		if (atomic_load(&swapper->cancel)) {
			track(swapper);
			return;
		}
	} while (more || !tracks_nothing(vm));
}

static uint64_t pages_out(struct vm *vm)
{
	return atomic_load(&vm->stored_pages) + atomic_load(&vm->poisoned_pages);
}

static bool all_watched(struct swapper *swapper)
{
	struct vm *vm = swapper->vm;
	bool all = true;

	gate_pass(vm->gate, swapper->lane);
	for (size_t i = 0; i < vm->spaces.n; i++)
		all = all && (vm->spaces.processes[i]->gone || !vm->spaces.processes[i]->unwatched);
	gate_leave(vm->gate, swapper->lane);
	return all;
}

static bool refuse_unwatched(struct swapper *swapper)
{
	if (all_watched(swapper))
		return false;
	error_set(
		&swapper->error, EINVAL,
		"guest memory of a process cannot be registered with its userfaultfd (the log has which): nothing may "
		"be swapped out");
	return true;
}

static bool all_protect(struct swapper *swapper)
{
	struct vm *vm = swapper->vm;
	bool all = true;

	gate_pass(vm->gate, swapper->lane);
	for (size_t i = 0; i < vm->spaces.n; i++)
		all = all && (vm->spaces.processes[i]->gone || vm->spaces.processes[i]->protects);
	gate_leave(vm->gate, swapper->lane);
	return all;
}

static size_t files_of(const struct memory *memory, struct mapped_file files[static MEMORY_MAX_REGIONS])
{
	size_t n = 0;

	for (size_t i = 0; i < memory->regions_n; i++)
		if (memory->regions[i].fd >= 0)
			files[n++] =
				(struct mapped_file){ memory->regions[i].device, memory->regions[i].inode };
	return n;
}

/* How many processes were ever served. Whoever holds the gate alone has all forks handled that were read of. */
static uint32_t processes_ever(struct vm *vm)
{
	uint32_t n;

	gate_hold_alone(vm->gate);
	n = vm->spaces.next_id;
	gate_release(vm->gate);
	return n;
}

static int freeze_once(struct swapper *swapper, const struct mapped_file *files, size_t files_n,
		       struct freeze **freeze)
{
	uint32_t timeout_ms = swapper->options.freeze_timeout_ms;
	struct members members;
	int rc = members_find(&members, files, files_n);

	if (rc)
		return error_set(&swapper->error, -rc, "cannot list the VM's processes: %s", strerror(-rc));
	FAILPOINT_HERE("swapper.listed");
	members.deadline_ns = monotonic_ns() + (uint64_t)timeout_ms * 1000000;
	rc = freeze_create(members_list, &members, timeout_ms, freeze, &swapper->error);
	members_free(&members);
	return rc;
}

/* Every process that maps a memfd of the VM, whether we know it or not. One that was forked between the look at all
 * processes and the freeze, by a process that has ended since, shows by its fork's event. */
static int freeze_all(struct swapper *swapper, struct freeze **freeze)
{
	struct mapped_file files[MEMORY_MAX_REGIONS];
	size_t files_n = files_of(&swapper->memory, files);

	for (int attempt = 0; attempt < FREEZE_ATTEMPTS; attempt++) {
		uint32_t before = processes_ever(swapper->vm);
		int rc = freeze_once(swapper, files, files_n, freeze);

		if (rc || processes_ever(swapper->vm) == before)
			return rc;
		freeze_destroy(*freeze);
		*freeze = NULL;
	}
	return error_set(
		&swapper->error, ETIMEDOUT,
		"the VM was given new processes each of %d times that it was to be frozen; all run again",
		FREEZE_ATTEMPTS);
}

static int choose_mode(struct swapper *swapper, enum swap_mode *mode)
{
	*mode = swapper->options.mode;
	if (*mode == MODE_AUTO)
		*mode = all_protect(swapper) ? MODE_LIVE : MODE_FREEZE;
	if (*mode == MODE_LIVE && !all_protect(swapper))
		return error_set(
			&swapper->error, ENOTSUP,
			"swap-out of a running guest needs write-protection by userfaultfd, which this kernel (or "
			"the VMM's userfaultfd) does not offer for shared memory: set Mode=freeze or Mode=auto");
	return 0;
}

/* Pins of before the freeze or the protect are visible from then on; the weakest way only waits and hopes. */
static int prepare_pin_check(struct swapper *swapper)
{
	pins_destroy(swapper->pins);
	swapper->pins = NULL;
	if (!swapper->options.check_pins) {
		atomic_store(&swapper->pin_check, "none");
		return 0;
	}
	int rc = pins_create(&swapper->options.pins, &swapper->pins, &swapper->error);

	atomic_store(&swapper->pin_check, pins_kind(swapper->pins));
	return rc;
}

/* Until swapper_continue(), the time is over (0: without limit), or the job is turned back. */
static void pause_job(struct swapper *swapper, uint32_t limit_ms)
{
	uint64_t until_ns = limit_ms ? monotonic_ns() + (uint64_t)limit_ms * 1000000 : UINT64_MAX;

	HELD_MAY_WAIT(WAIT_TIME);
	pthread_mutex_lock(&swapper->lock);
	while (!swapper->resume && !atomic_load(&swapper->cancel) && monotonic_ns() < until_ns) {
		struct timespec soon;

		clock_gettime(CLOCK_REALTIME, &soon);
		soon.tv_nsec += 10000000;
		soon.tv_sec += soon.tv_nsec / 1000000000;
		soon.tv_nsec %= 1000000000;
		pthread_cond_timedwait(&swapper->resumed, &swapper->lock, &soon);
	}
	pthread_mutex_unlock(&swapper->lock);
}

/* What the guest writes to all the time takes itself out of the operation now, page by page, for as long as many do: each costs
 * some 15 us here, and a read from a disk that is busy with our own writes (half a millisecond) if it is evicted first. An idle
 * guest makes us wait for one look. */
#define HOT_LOOK_NS 2000000
#define HOT_LOOKS_A_GIB 50 /* 2 % of a GiB take 80 ms */
#define HOT_LOOKS_MAX 500  /* however large the guest is: a second */
#define HOT_WRITES_A_LOOK 8

uint64_t swapper_hot_looks_max(uint64_t resident_pages)
{
	uint64_t looks = (1 + (resident_pages >> 18)) * HOT_LOOKS_A_GIB;

	return looks < HOT_LOOKS_MAX ? looks : HOT_LOOKS_MAX;
}

static void let_hot_pages_out(struct swapper *swapper)
{
	uint64_t looks_max = swapper_hot_looks_max(resident_pages(swapper->vm));

	for (uint64_t look = 0; look < looks_max && go_on(swapper); look++) {
		uint64_t before = atomic_load(&swapper->vm->writes_seen);

		FAILPOINT_HERE("swapper.looked");
		nanosleep(&(struct timespec){ .tv_nsec = HOT_LOOK_NS }, NULL);
		if (atomic_load(&swapper->vm->writes_seen) - before < HOT_WRITES_A_LOOK)
			return;
	}
}

/* I/O into guest memory that was under way before the protect comes to its end: the VMM's block layer is drained by whoever
 * reads our notices, or just given time. Requests made from now on fault. */
static void let_io_end(struct swapper *swapper)
{
	struct notice protected = { .kind = NOTICE_PROTECTED, .job = JOB_SWAP_OUT };
	uint32_t settle_ms = pins_settle_ms(swapper->pins);

	if (settle_ms) {
		pause_job(swapper, settle_ms);
	} else if (strcmp(pins_kind(swapper->pins), "qmp") == 0) {
		notices_post(swapper->vm->notices, &protected);
		pause_job(swapper, 0);
	}
}

static void pass_over_memory(struct swapper *swapper)
{
	swapper->counts.pinned_pages = 0;
	swapper->counts.written_pages = 0;
	left_begin(&swapper->left);
	swapper->resume = false;
	folios_look(swapper->vm, &swapper->memory);
	rewind_cursor(swapper);
	run_workers(swapper, protect_worker);
	if (!swapper->frozen)
		let_hot_pages_out(swapper);
	if (swapper->pins && go_on(swapper)) {
		let_io_end(swapper);
		pins_begin_pass(swapper->pins);
	}
	rewind_cursor(swapper);
	run_workers(swapper, evict_worker);
}

static uint64_t pages_taken(const struct swapper *swapper)
{
	return swapper->counts.stored_pages + swapper->counts.zero_pages;
}

static uint64_t resident_now(struct vm *vm)
{
	resident_count(vm);
	return resident_pages(vm);
}

static void passes_over_memory(struct swapper *swapper)
{
	for (uint32_t pass = 0; pass < swapper->options.max_passes; pass++) {
		uint64_t before = pages_taken(swapper);

		atomic_store(&swapper->progress_pages, 0);
		pass_over_memory(swapper);
		if (!go_on(swapper) || somebody_joined(swapper) || pages_taken(swapper) == before ||
		    resident_now(swapper->vm) <= swapper->options.until_resident_pages)
			break;
	}
}

/* All passes, until somebody joins. Who joins may not be watched, may lack what the mode needs, and nobody has frozen him: all of
 * that is looked at anew then. */
static void swap_out_once(struct swapper *swapper)
{
	struct page_map_header *header = page_map_header(swapper->vm->map);
	struct freeze *freeze = NULL;
	enum swap_mode mode;
	uint64_t pause_us;

	begin_with_all_who_joined(swapper);
	if (refuse_unwatched(swapper) || choose_mode(swapper, &mode))
		return;
	swapper->frozen = mode == MODE_FREEZE;
	if (swapper->frozen && freeze_all(swapper, &freeze))
		return;
	atomic_store(&header->last_mode, mode);
	swapper->freeze = freeze;
	passes_over_memory(swapper);
	swapper->freeze = NULL;
	if (freeze)
		freeze_thaw(freeze);
	pause_us = freeze ? freeze_duration_us(freeze) : swapper->counts.longest_stop_ns / 1000;
	if (pause_us > atomic_load(&header->pause_us))
		atomic_store(&header->pause_us, pause_us);
	freeze_destroy(freeze);
}

/* So often somebody may join in all, and so often in a row before anything more went out. */
#define JOINS_MAX 1000
#define FRUITLESS_JOINS_MAX 20

static void swap_out_until_nobody_joins(struct swapper *swapper)
{
	unsigned fruitless = 0;

	for (unsigned joins = 0; joins < JOINS_MAX && fruitless < FRUITLESS_JOINS_MAX; joins++) {
		uint64_t before = pages_taken(swapper);

		swap_out_once(swapper);
		if (!go_on(swapper) || !somebody_joined(swapper))
			return;
		fruitless = pages_taken(swapper) == before ? fruitless + 1 : 0;
	}
	error_set(
		&swapper->error, EAGAIN,
		"processes that map guest memory join faster than it can go out: %llu pages are out, try again later",
		(unsigned long long)atomic_load(&swapper->vm->stored_pages));
}

/* If nothing could be taken, that is an error. */
static void tell_left(struct swapper *swapper)
{
	struct notice notice = { .kind = NOTICE_PAGES_LEFT };
	struct lost_incident pages;
	struct error why;

	atomic_store(&page_map_header(swapper->vm->map)->left_pages,
		     left_pages(&swapper->left, &pages, &why));
	if (!pages.pages || !go_on(swapper))
		return;
	if (!pages_taken(swapper)) {
		swapper->error = why;
		return;
	}
	notice.code = why.code;
	memcpy(notice.message, why.message, sizeof notice.message);
	notices_post(swapper->vm->notices, &notice);
}

static void swap_out(struct swapper *swapper)
{
	struct page_map_header *header = page_map_header(swapper->vm->map);

	if (!swapper->vm->tracking)
		track(swapper);
	if (refuse_unwatched(swapper)) {
		if (!pages_out(swapper->vm))
			untrack(swapper);
		return;
	}
	if (prepare_pin_check(swapper))
		return;
	atomic_store(&header->copied_pages, 0);
	atomic_store(&header->zeroed_pages, 0);
	atomic_store(&header->redundant_pages, 0);
	atomic_store(&header->pause_us, 0);
	left_begin(&swapper->left);
	swap_out_until_nobody_joins(swapper);
	atomic_store(&header->pinned_pages, swapper->counts.pinned_pages);
	tell_left(swapper);
}

static void swap_in(struct swapper *swapper)
{
	struct vm *vm = swapper->vm;
	uint64_t idle_since_ns = 0;

	/* Demand faults bring pages back too, and may give up on one that we then have to try: so until nothing is out. A
	 * poisoned page may read well by now. */
	while (pages_out(vm) && go_on(swapper)) {
		uint64_t before = pages_out(vm);

		swapper->unreadable_pages = 0;
		rewind_cursor(swapper);
		run_workers(swapper, restore_worker);
		poison_lift(vm, swapper->lane);
		if (swapper->unreadable_pages && swapper->unreadable_pages >= pages_out(vm) &&
		    pages_out(vm) >= before)
			break; /* else a demand fault has some, and will let go of them */
		if (pages_out(vm) < before) {
			idle_since_ns = 0;
			continue;
		}
		idle_since_ns = idle_since_ns ? idle_since_ns : monotonic_ns();
		if (monotonic_ns() - idle_since_ns > VM_STUCK_NS &&
		    poison_pages_to_lift(vm) + swapper->unreadable_pages >= pages_out(vm)) {
			error_set(
				&swapper->error, EAGAIN,
				"%llu pages could not be taken out of a process's way: it is stuck in the middle of "
				"changing its memory mappings, or has no memory left; is it stopped (SIGSTOP, a debugger)?",
				(unsigned long long)pages_out(vm));
			return;
		}
		nanosleep(&(struct timespec){ .tv_nsec = 1000000 }, NULL);
	}
	if (!go_on(swapper))
		return;
	if (pages_out(vm)) {
		error_set(
			&swapper->error, EIO,
			"%llu pages of guest memory cannot be read back from the %s file: they are still out, and the VM "
			"cannot be released while they are",
			(unsigned long long)pages_out(vm), vm->snapshot ? "snapshot's" : "swap");
		return;
	}
	untrack(swapper);
	store_trim(vm->store);
}

static void trim(struct swapper *swapper)
{
	if (swapper->vm->tracking && !prepare_pin_check(swapper)) {
		swapper->free_only = true;
		for (unsigned joins = 0;
		     joins == 0 || (somebody_joined(swapper) && joins < FRUITLESS_JOINS_MAX); joins++) {
			begin_with_all_who_joined(swapper);
			pass_over_memory(swapper);
		}
	}
	store_trim(swapper->vm->store);
}

static void *run_job(void *argument)
{
	struct swapper *swapper = argument;
	struct page_map_header *header = page_map_header(swapper->vm->map);
	struct notice done = { .kind = NOTICE_JOB_DONE, .job = atomic_load(&swapper->job) };
	uint64_t since_ns = monotonic_ns();

	switch (done.job) {
	case JOB_SWAP_OUT:
		swap_out(swapper);
		atomic_store(&header->swap_time_ms, (monotonic_ns() - since_ns) / 1000000);
		break;
	case JOB_SWAP_IN:
		swap_in(swapper);
		break;
	case JOB_TRIM:
		trim(swapper);
		break;
	}
	resident_count(swapper->vm); /* whoever hears of the end asks what is left */
	FAILPOINT_HERE("swapper.done");
	atomic_store(&header->job, JOB_NONE);
	done.cancelled = atomic_load(&swapper->cancel);
	done.code = swapper->error.code;
	memcpy(done.message, swapper->error.message, sizeof done.message);
	pins_destroy(swapper->pins);
	swapper->pins = NULL;
	atomic_store(&swapper->job, JOB_NONE);
	notices_post(swapper->vm->notices, &done);
	return NULL;
}

int swapper_create(struct vm *vm, struct swapper **out, struct error *err)
{
	struct swapper *swapper = calloc(1, sizeof *swapper);

	if (!swapper || gate_join(vm->gate, &swapper->lane) != 0) {
		free(swapper);
		return error_set(err, ENOMEM, "no memory for the swapper");
	}
	swapper->vm = vm;
	atomic_init(&swapper->pin_check, "");
	budget_set(&swapper->budget, BUDGET_UNLIMITED);
	pthread_mutex_init(&swapper->lock, NULL);
	left_init(&swapper->left);
	pthread_cond_init(&swapper->resumed, NULL);
	*out = swapper;
	return 0;
}

static void join_last(struct swapper *swapper)
{
	if (swapper->thread_to_join)
		pthread_join(swapper->thread, NULL);
	swapper->thread_to_join = false;
}

void swapper_stop(struct swapper *swapper)
{
	swapper_cancel(swapper);
	join_last(swapper);
}

void swapper_destroy(struct swapper *swapper)
{
	if (!swapper)
		return;
	swapper_stop(swapper);
	pins_destroy(swapper->pins);
	pthread_cond_destroy(&swapper->resumed);
	pthread_mutex_destroy(&swapper->lock);
	gate_part(swapper->vm->gate, swapper->lane);
	left_destroy(&swapper->left);
	free(swapper);
}

int swapper_start(struct swapper *swapper, enum job_kind job, const struct swap_out_options *options,
		  struct error *err)
{
	struct page_map_header *header = page_map_header(swapper->vm->map);
	int code;

	if (atomic_load(&swapper->job) != JOB_NONE)
		return error_set(err, EBUSY, "another operation is still under way");
	if (swapper->vm->snapshot && job != JOB_SWAP_IN)
		return error_set(
			err, ENOTSUP,
			"memory that came from a snapshot is the VMM's own: nothing of it can go out");
	join_last(swapper);
	swapper->options = *options;
	swapper->frozen = swapper->free_only = false;
	memset(&swapper->error, 0, sizeof swapper->error);
	memset(&swapper->counts, 0, sizeof swapper->counts);
	swapper->restored_pages = swapper->unreadable_pages = 0;
	pthread_mutex_lock(&swapper->vm->regions_lock);
	swapper->memory = swapper->vm->memory; /* only who calls us changes it, but for what is counted */
	pthread_mutex_unlock(&swapper->vm->regions_lock);
	atomic_store(&swapper->cancel, false);
	atomic_store(&swapper->progress_pages, 0);
	atomic_store(&swapper->job, job);
	atomic_store(&header->job, job); /* now: once this has returned, a successor must know of the order */
	code = pthread_create(&swapper->thread, NULL, run_job, swapper);
	if (code) {
		atomic_store(&header->job, JOB_NONE);
		atomic_store(&swapper->job, JOB_NONE);
		return error_set(err, code, "cannot start a thread: %s", strerror(code));
	}
	swapper->thread_to_join = true;
	return 0;
}

void swapper_forget_last(struct swapper *swapper)
{
	if (atomic_load(&swapper->job) == JOB_NONE)
		atomic_store(&page_map_header(swapper->vm->map)->job, JOB_NONE);
}

void swapper_continue(struct swapper *swapper)
{
	pthread_mutex_lock(&swapper->lock);
	swapper->resume = true;
	pthread_cond_broadcast(&swapper->resumed);
	pthread_mutex_unlock(&swapper->lock);
}

void swapper_cancel(struct swapper *swapper)
{
	atomic_store(&swapper->cancel, true);
}

void swapper_set_budget(struct swapper *swapper, uint64_t pages)
{
	budget_set(&swapper->budget, pages);
}

uint64_t swapper_left_pages(struct swapper *swapper, struct lost_incident *pages)
{
	struct error why;

	return left_pages(&swapper->left, pages, &why);
}

enum job_kind swapper_job(const struct swapper *swapper)
{
	return (enum job_kind)atomic_load(&swapper->job);
}

uint64_t swapper_progress_pages(const struct swapper *swapper)
{
	return atomic_load(&swapper->progress_pages);
}

const char *swapper_pin_check(const struct swapper *swapper)
{
	return atomic_load(&swapper->pin_check);
}
