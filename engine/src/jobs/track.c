/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "jobs/track.h"

#include <errno.h>

#include "base/failpoint.h"
#include "vm/registration.h"

void track_memory(struct swapper *swapper)
{
	struct vm *vm = swapper->vm;
	bool keeps = true;

	gate_hold_alone(vm->gate);
	for (size_t i = 0; i < vm->spaces.n; i++)
		if (!vm->spaces.processes[i]->leaving)
			register_process(vm, vm->spaces.processes[i]);
	atomic_store(&vm->tracking, true);
	atomic_store(&page_map_header(vm->map)->tracking, true);
	for (size_t i = 0; i < vm->spaces.n; i++)
		keeps = keeps && (vm->spaces.processes[i]->leaving || vm->spaces.processes[i]->protects);
	atomic_store(&vm->keeps, keeps);
	gate_release(vm->gate);
}

/* True once nothing is registered in any process. */
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

/* Nothing is out. Between two windows one part of memory is watched and another is not. A write to the
 * unwatched part is not seen, so no copy is kept. A process that forks or joins then gets all of its memory
 * registered, and is unregistered with all others; a successor registers everything anew and resumes the job.
 * A cancelled job leaves all of it registered. */
void untrack_memory(struct swapper *swapper)
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
			track_memory(swapper);
			return;
		}
	} while (more || !tracks_nothing(vm));
}

static bool is_no_matter(const struct process *process)
{
	return process->gone || process->leaving;
}

static bool all_watched(struct swapper *swapper)
{
	struct vm *vm = swapper->vm;
	bool all = true;

	gate_pass(vm->gate, swapper->lane);
	for (size_t i = 0; i < vm->spaces.n; i++)
		all = all && (is_no_matter(vm->spaces.processes[i]) || !vm->spaces.processes[i]->unwatched);
	gate_leave(vm->gate, swapper->lane);
	return all;
}

bool refuse_unwatched(struct swapper *swapper)
{
	if (all_watched(swapper))
		return false;
	error_set(
		&swapper->error, EINVAL,
		"guest memory of a process cannot be registered with its userfaultfd (the log has which): nothing may "
		"be swapped out");
	return true;
}

bool all_protect(struct swapper *swapper)
{
	struct vm *vm = swapper->vm;
	bool all = true;

	gate_pass(vm->gate, swapper->lane);
	for (size_t i = 0; i < vm->spaces.n; i++)
		all = all && (is_no_matter(vm->spaces.processes[i]) || vm->spaces.processes[i]->protects);
	gate_leave(vm->gate, swapper->lane);
	return all;
}
