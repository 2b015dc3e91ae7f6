/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Swap-out, and trim, which is a swap-out that writes nothing. */
#include <errno.h>
#include <string.h>
#include <time.h>

#include "base/failpoint.h"
#include "base/held.h"
#include "freeze/freeze.h"
#include "jobs/freeze_vm.h"
#include "jobs/job.h"
#include "jobs/move_out.h"
#include "jobs/track.h"
#include "vm/folios.h"
#include "vm/page.h"
#include "vm/resident.h"

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

static uint64_t pages_until_idle(const struct vm *vm, uint64_t page_idx, uint64_t end_idx)
{
	uint64_t idx = page_idx;

	while (idx < end_idx && !wake_record_is_idle(vm->wake, idx))
		idx++;
	return idx - page_idx;
}

/* A page that stays is not protected with its neighbours: the guest is about to write to it. */
static int protect(struct evictor *evictor, const struct window *window, struct error *err)
{
	uint64_t end_idx = window->page_idx + window->pages;
	struct window part;
	int rc = 0;

	for (uint64_t idx = window->page_idx, n; idx < end_idx && !rc; idx += n + 1) {
		n = pages_until_idle(evictor->vm, idx, end_idx);
		window_part(window, idx, n, &part);
		rc = n ? evict_protect(evictor, &part, err) : 0;
	}
	return rc;
}

/* Everything is protected before anything is evicted. Pages that the guest writes to all the time then leave
 * the operation by one cheap write-protect fault each, before their turn comes. Protecting just before
 * evicting took such pages out and had to read each back (a thread with 2 % of memory as its hot set got 1.7
 * % of its speed). A detector of pins that needs time between the two steps also gets it. Each call protects
 * one window, so the guest stops for no longer than that takes. */
static void *protect_worker(void *argument)
{
	struct worker *worker = argument;
	struct swapper *swapper = worker->swapper;
	struct evictor evictor = evictor_of(worker);
	struct window window;

	while (job_goes_on(swapper) && !job_was_joined(swapper) && job_next_window(swapper, true, &window)) {
		struct error error = { 0 };

		lost_look_in(swapper->vm, worker->lane, &window);
		if (protect(&evictor, &window, &error))
			job_fail(swapper, &error);
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

	while (job_next_window(swapper, true, &window)) {
		struct error error = { 0 };

		if (!job_goes_on(swapper) || job_was_joined(swapper))
			evict_abandon(&evictor, &window);
		else if (swapper->vm->mover ? move_out(&evictor, &window, swapper->joined, &error) :
					      evict_protected(&evictor, &window, swapper->joined, &error))
			job_fail(swapper, &error);
		atomic_fetch_add(&swapper->progress_pages, window.pages);
	}
	add_counts(swapper, &evictor.counts);
	return NULL;
}

static int choose_mode(struct swapper *swapper, enum swap_mode *mode)
{
	*mode = swapper->vm->mover ? MODE_LIVE : swapper->options.mode;
	if (*mode == MODE_AUTO)
		*mode = all_protect(swapper) ? MODE_LIVE : MODE_FREEZE;
	if (*mode == MODE_LIVE && !swapper->vm->mover && !all_protect(swapper))
		return error_set(
			&swapper->error, ENOTSUP,
			"swap-out of a running guest needs write-protection by userfaultfd, which this kernel (or "
			"the VMM's userfaultfd) does not offer for shared memory: set Mode=freeze or Mode=auto");
	return 0;
}

/* Pins made before the freeze or the protection are visible from then on; the weakest detector only waits and
 * hopes. */
static int prepare_pin_check(struct swapper *swapper)
{
	pins_destroy(swapper->pins);
	swapper->pins = NULL;
	if (swapper->vm->mover || !swapper->options.check_pins) {
		atomic_store(&swapper->pin_check, swapper->vm->mover ? "move" : "none");
		return 0;
	}
	int rc = pins_create(&swapper->options.pins, &swapper->pins, &swapper->error);

	atomic_store(&swapper->pin_check, pins_kind(swapper->pins));
	return rc;
}

/* Wait for swapper_continue(), for the time limit (0: none), or until the job is cancelled. */
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

/* Pages that the guest writes to all the time leave the operation now, page by page, for as long as there are
 * many: each costs some 15 us here. If it is evicted first, it costs a read from a disk that is busy with our
 * own writes (half a millisecond). An idle guest makes us wait for one look. */
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

	for (uint64_t look = 0; look < looks_max && job_goes_on(swapper); look++) {
		uint64_t before = atomic_load(&swapper->vm->writes_seen);

		FAILPOINT_HERE("swapper.looked");
		nanosleep(&(struct timespec){ .tv_nsec = HOT_LOOK_NS }, NULL);
		if (atomic_load(&swapper->vm->writes_seen) - before < HOT_WRITES_A_LOOK)
			return;
	}
}

/* Let I/O into guest memory that began before the protection finish: whoever reads our notices drains the
 * VMM's block layer, or we just wait. Requests made from now on fault. */
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
	job_rewind(swapper);
	if (!swapper->vm->mover) { /* else nothing is protected */
		job_run_workers(swapper, 1, protect_worker);
		if (!swapper->frozen)
			let_hot_pages_out(swapper);
	}
	if (swapper->pins && job_goes_on(swapper)) {
		let_io_end(swapper);
		pins_begin_pass(swapper->pins);
	}
	job_rewind(swapper);
	job_run_workers(swapper, 1, evict_worker);
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
		if (!job_goes_on(swapper) || job_was_joined(swapper) || pages_taken(swapper) == before ||
		    resident_now(swapper->vm) <= swapper->options.until_resident_pages)
			break;
	}
}

/* Make all passes, or stop when a process joins. That process may be unwatched, may lack what the mode needs,
 * and is not frozen: the next call checks all of this anew. */
static void swap_out_once(struct swapper *swapper)
{
	struct page_map_header *header = page_map_header(swapper->vm->map);
	struct freeze *freeze = NULL;
	enum swap_mode mode;
	uint64_t pause_us;

	job_begin_with_all(swapper);
	if (refuse_unwatched(swapper) || choose_mode(swapper, &mode))
		return;
	swapper->frozen = mode == MODE_FREEZE;
	if (swapper->frozen && freeze_vm(swapper, &freeze))
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

/* How often processes may join in all, and how often in a row before anything more is swapped out. */
#define JOINS_MAX 1000
#define FRUITLESS_JOINS_MAX 20

static void swap_out_until_nobody_joins(struct swapper *swapper)
{
	unsigned fruitless = 0;

	for (unsigned joins = 0; joins < JOINS_MAX && fruitless < FRUITLESS_JOINS_MAX; joins++) {
		uint64_t before = pages_taken(swapper);

		swap_out_once(swapper);
		if (!job_goes_on(swapper) || !job_was_joined(swapper))
			return;
		fruitless = pages_taken(swapper) == before ? fruitless + 1 : 0;
	}
	error_set(&swapper->error, EAGAIN,
		  "processes that map guest memory join faster than it can be swapped out: %llu pages are "
		  "out; try again later",
		  (unsigned long long)atomic_load(&swapper->vm->stored_pages));
}

/* Report the pages left behind. It is an error only if nothing could be swapped out. */
static void tell_left(struct swapper *swapper)
{
	struct notice notice = { .kind = NOTICE_PAGES_LEFT };
	struct lost_incident pages;
	struct error why;

	atomic_store(&page_map_header(swapper->vm->map)->left_pages,
		     left_pages(&swapper->left, &pages, &why));
	if (!pages.pages || !job_goes_on(swapper))
		return;
	if (!pages_taken(swapper)) {
		swapper->error = why;
		return;
	}
	notice.code = why.code;
	memcpy(notice.message, why.message, sizeof notice.message);
	notices_post(swapper->vm->notices, &notice);
}

/* Where folios may have many pages, one page that stays would keep all of its 2 MiB. */
static void learn_wake_up(struct swapper *swapper)
{
	struct vm *vm = swapper->vm;
	bool may_stay;

	folios_look(vm, &swapper->memory);
	may_stay = vm->mover || !atomic_load(&vm->large_folios);
	wake_record_fold(vm->wake);
	wake_record_choose_idle(vm->wake, may_stay ? swapper->options.idle_pages_max : 0);
	wake_record_begin_leaving(vm->wake);
}

void swap_out(struct swapper *swapper)
{
	struct page_map_header *header = page_map_header(swapper->vm->map);

	if (!swapper->vm->tracking)
		track_memory(swapper);
	if (refuse_unwatched(swapper)) {
		if (!pages_out(swapper->vm))
			untrack_memory(swapper);
		return;
	}
	if (prepare_pin_check(swapper) || move_back_left(swapper->vm, swapper->lane, &swapper->error))
		return;
	atomic_store(&header->copied_pages, 0);
	atomic_store(&header->zeroed_pages, 0);
	atomic_store(&header->redundant_pages, 0);
	atomic_store(&header->pause_us, 0);
	left_begin(&swapper->left);
	job_forget_limit(swapper);
	learn_wake_up(swapper);
	swap_out_until_nobody_joins(swapper);
	wake_record_begin(swapper->vm->wake);
	store_settle(swapper->vm->store);
	atomic_store(&header->pinned_pages, swapper->counts.pinned_pages);
	tell_left(swapper);
	job_note_limit(swapper);
}

void trim(struct swapper *swapper)
{
	/* Of private memory there are no kept copies. */
	if (swapper->vm->tracking && !swapper->vm->mover && !prepare_pin_check(swapper)) {
		swapper->free_only = true;
		for (unsigned joins = 0;
		     joins == 0 || (job_was_joined(swapper) && joins < FRUITLESS_JOINS_MAX); joins++) {
			job_begin_with_all(swapper);
			pass_over_memory(swapper);
		}
	}
	store_trim(swapper->vm->store);
}
