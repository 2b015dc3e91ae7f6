/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Processes that map guest memory join, move and leave. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/failpoint.h"
#include "engine_inside.h"
#include "vm/registration.h"

static int fill_process(struct engine *engine, struct process *process, const struct range *ranges,
			size_t ranges_n, struct error *err)
{
	struct vm *vm = &engine->vm;
	int rc = 0;

	process->protects = true; /* until registering says otherwise */
	for (size_t i = 0; i < ranges_n && !rc; i++) {
		const struct region *region = memory_region_of(&vm->memory, ranges[i].page_idx);

		rc = region && region->is_leaving ? -EINVAL : process_add_range(process, ranges[i]);
	}
	if (rc)
		return error_set(err, -rc, "cannot take the process's %zu ranges: %s", ranges_n,
				 strerror(-rc));
	rc = faults_watch(engine->faults, process);
	if (rc)
		return error_set(err, -rc, "cannot listen to the userfaultfd: %s", strerror(-rc));
	return vm->tracking ? register_or_refuse(vm, process, err) : 0;
}

static bool has_more(const struct process *process)
{
	const struct range *last;

	if (!process->ranges_n)
		return false;
	last = &process->ranges[process->ranges_n - 1];
	return process->released_addr < last->addr + bytes_of_pages(last->pages);
}

/* It has ended as a rule. One that lives must not wait for us for ever. True if it does, and some of its
 * memory is registered yet: so much that the rest is left to engine_release_rest(). */
static bool let_process_go(struct engine *engine, struct process *process)
{
	struct vm *vm = &engine->vm;
	bool more = vm->tracking || process->releasing;

	if (process->dummy_addr && !process->gone)
		uffd_unregister(process->uffd, process->dummy_addr, PAGE_BYTES);
	if (more)
		more = registration_release_process(vm, process, true) && has_more(process);
	if (more && !process->gone) {
		address_space_leave(&vm->spaces, process);
		vm_note_join(vm); /* what it writes from here on is not seen */
		return true;
	}
	faults_unwatch(engine->faults, process);
	address_space_remove(&vm->spaces, process->id);
	return false;
}

static struct process *find_left(const struct vm *vm)
{
	for (size_t i = 0; i < vm->spaces.n; i++)
		if (vm->spaces.processes[i]->leaving || vm->spaces.processes[i]->releasing)
			return vm->spaces.processes[i];
	return NULL;
}

/* It may have got more to unregister meanwhile: its memory was moved, or mapped again. */
static void end_release(struct engine *engine, struct process *process)
{
	if (process->leaving)
		let_process_go(engine, process);
	else
		process->releasing = !process->gone && has_more(process);
}

/* One more piece of a process that was given up, or of a child that is `releasing`. False: there is none. */
static bool release_piece(struct engine *engine, struct lane *lane)
{
	struct vm *vm = &engine->vm;
	struct process *process;
	bool found;

	FAILPOINT_HERE("leave.piece");
	gate_pass(vm->gate, lane);
	process = find_left(vm);
	found = process && registration_release_process(vm, process, process->leaving);
	if (!process)
		atomic_store(&vm->release_wanted, false);
	gate_leave(vm->gate, lane);
	if (found || !process)
		return found;
	gate_hold_alone(vm->gate);
	process = find_left(vm);
	if (process)
		end_release(engine, process);
	gate_release(vm->gate);
	return process;
}

bool release_children(struct engine *engine)
{
	struct vm *vm = &engine->vm;
	struct lane *lane;
	bool more;

	if (!atomic_load(&vm->release_wanted) || gate_join(vm->gate, &lane) != 0)
		return false;
	more = release_piece(engine, lane);
	gate_part(vm->gate, lane);
	return more;
}

int engine_release_rest(struct engine *engine, struct error *err)
{
	struct vm *vm = &engine->vm;
	struct lane *lane;

	if (gate_join(vm->gate, &lane) != 0)
		return error_set(err, ENOMEM, "no memory to unregister a process");
	while (!atomic_load(&vm->stopping) && release_piece(engine, lane))
		;
	gate_part(vm->gate, lane);
	return 0;
}

/* It is served, and not protected yet where pages are PUNCHING. */
static int begin_to_add(struct engine *engine, int own, const struct range *ranges, size_t ranges_n,
			uint32_t *process_id, struct error *err)
{
	struct vm *vm = &engine->vm;
	struct process *process = address_space_add(&vm->spaces, own);
	int rc;

	if (!process) {
		close(own);
		return error_set(err, ENOMEM, "no memory for one more process");
	}
	*process_id = process->id;
	process->outside = true;
	rc = fill_process(engine, process, ranges, ranges_n, err);
	if (rc)
		let_process_go(engine, process);
	return rc;
}

/* -EAGAIN: pages are PUNCHING, and the process cannot be protected there. */
static int end_to_add(struct engine *engine, uint32_t process_id, bool is_last, struct error *err)
{
	struct vm *vm = &engine->vm;
	struct process *process = address_space_find(&vm->spaces, process_id);

	if (vm_protect_punching(vm, process)) {
		process->outside = false;
		return 0;
	}
	if (is_last)
		let_process_go(engine, process);
	return error_set(
		err, EAGAIN,
		"a swap-out is under way, and the process cannot be write-protected: it is changing its "
		"mappings, or its userfaultfd has no write-protection; try again when the swap-out is done");
}

/* A punch takes microseconds, as does a change of mappings, unless somebody is in the way. */
#define JOIN_TRIES 200
#define JOIN_RETRY_NS 1000000

int engine_add_process(struct engine *engine, int uffd, const struct range *ranges, size_t ranges_n,
		       uint32_t *process_id, struct error *err)
{
	struct vm *vm = &engine->vm;
	int own, rc = engine_release_rest(engine, err); /* it may be one of these that comes again */

	if (rc)
		return rc;
	own = fcntl(uffd, F_DUPFD_CLOEXEC, 3);
	if (own < 0)
		return error_set(err, errno, "cannot dup the userfaultfd: %s", strerror(errno));
	gate_hold_alone(vm->gate);
	rc = begin_to_add(engine, own, ranges, ranges_n, process_id, err);
	for (int tries = 1;
	     !rc && (rc = end_to_add(engine, *process_id, tries == JOIN_TRIES, err)) == -EAGAIN &&
	     tries < JOIN_TRIES;
	     tries++, rc = 0) {
		gate_release(vm->gate);
		nanosleep(&(struct timespec){ .tv_nsec = JOIN_RETRY_NS }, NULL);
		gate_hold_alone(vm->gate);
	}
	vm_note_join(vm); /* whatever came of it: there is a process that may map guest memory */
	gate_release(vm->gate);
	return rc;
}

/* Of ranges that are to be a process's: pages at two addresses would be protected and filled at one of them;
 * a range over two regions would not end with one of them. */
static int check_range(struct vm *vm, const struct range *ranges, size_t i, struct error *err)
{
	const struct range *range = &ranges[i];
	const struct region *region = memory_region_of(&vm->memory, range->page_idx);

	if (!region || region->is_leaving ||
	    range->pages > region->page_idx + region->pages - range->page_idx)
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

int engine_remove_process(struct engine *engine, uint32_t process_id, struct error *err)
{
	struct vm *vm = &engine->vm;
	struct process *process;
	int rc = 0;

	gate_hold_alone(vm->gate);
	process = address_space_find(&vm->spaces, process_id);
	rc = process && !process->leaving ? let_process_go(engine, process) :
					    error_set(err, ESRCH, "there is no process %u", process_id);
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
