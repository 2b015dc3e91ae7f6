/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "serve/reading.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>

#include "base/failpoint.h"
#include "base/relax.h"
#include "serve/adopt.h"
#include "serve/event.h"

#define BATCH_MESSAGES 16

static bool add_to_queue(struct faults *faults, const struct fault *fault)
{
	bool has_room;

	pthread_mutex_lock(&faults->queue_lock);
	has_room = faults->queue_n < QUEUE_MAX;
	if (has_room) {
		faults->queue[(faults->queue_from + faults->queue_n) % QUEUE_MAX] = *fault;
		faults->queue_n++;
	} else {
		faults->overflown = true;
	}
	pthread_mutex_unlock(&faults->queue_lock);
	return has_room;
}

/* Whoever had no room faults again, once there is some. */
static void wake_overflown(struct server *self)
{
	struct vm *vm = self->faults->vm;

	if (!atomic_exchange(&self->faults->overflown, false))
		return;
	gate_pass(vm->gate, self->means.lane);
	vm_wake_all(vm);
	gate_leave(vm->gate, self->means.lane);
}

bool take_from_queue(struct server *self, struct fault *fault)
{
	struct faults *faults = self->faults;
	bool has_some;

	if (!atomic_load_explicit(&faults->queue_n, memory_order_relaxed) &&
	    !atomic_load_explicit(&faults->overflown, memory_order_relaxed))
		return false;
	pthread_mutex_lock(&faults->queue_lock);
	has_some = faults->queue_n;
	if (has_some) {
		*fault = faults->queue[faults->queue_from];
		faults->queue_from = (faults->queue_from + 1) % QUEUE_MAX;
		faults->queue_n--;
	}
	pthread_mutex_unlock(&faults->queue_lock);
	if (faults->queue_n < QUEUE_MAX / 2 && faults->overflown)
		wake_overflown(self);
	return has_some;
}

static void take_fault(struct server *self, const struct process *process, const struct uffd_msg *msg,
		       uint64_t now_ns)
{
	struct trace_record record = {
		.time_ns = now_ns,
		.addr = msg->arg.pagefault.address,
		.process_id = process->id,
		.flags = (uint32_t)msg->arg.pagefault.flags,
	};
	struct fault fault = {
		.process_id = process->id,
		.flags = record.flags,
		.addr = record.addr & PAGE_MASK,
		.read_ns = now_ns,
	};

	if (add_to_queue(self->faults, &fault))
		trace_add(self->faults->vm->trace, self->number, &record);
}

/* All but page faults take effect before anyone else acts on a page again. Returns the number of messages, or
 * -errno. */
static int read_and_apply(struct server *self, uint32_t process_id)
{
	struct vm *vm = self->faults->vm;
	struct uffd_msg msgs[BATCH_MESSAGES];
	struct process *process;
	int n = 0;

	FAILPOINT_HERE("fault.reading");
	gate_hold_alone(vm->gate);
	process = address_space_find(&vm->spaces, process_id);
	if (process) {
		size_t room = adopt_reserve(vm, process, BATCH_MESSAGES);

		n = room ? uffd_read(process->uffd, msgs, room) : -ENOMEM;
	}
	for (int i = 0; i < n; i++) {
		if (msgs[i].event == UFFD_EVENT_PAGEFAULT) {
			take_fault(self, process, &msgs[i], monotonic_ns());
		} else if (msgs[i].event == UFFD_EVENT_FORK) {
			FAILPOINT_HERE("fault.fork-read");
			adopt_child(self->faults, process, (int)msgs[i].arg.fork.ufd);
		} else {
			event_apply(vm, process, &msgs[i]);
		}
	}
	gate_release(vm->gate);
	return n;
}

void call_for_help(struct faults *faults)
{
	if (faults->listeners.n < faults->n)
		eventfd_write(faults->help_fd, 1);
}

/* If the kernel finds no free fd for a FORK event, the event stays queued, and each read fails the same
 * way. */
static void report_unreadable(struct server *self, uint32_t process_id, int n)
{
	if (!atomic_exchange(&self->unreadable, true))
		notices_odd(self->faults->vm->notices, UINT64_MAX,
			    "cannot read the events of process %u: %s%s; trying again", process_id,
			    strerror(-n),
			    n == -EMFILE || n == -ENFILE ?
				    " (a child that it forked waits for LimitNOFILE= to be raised)" :
				    "");
	nanosleep(&(struct timespec){ .tv_nsec = 10000000 }, NULL);
}

/* Whoever reads is done in microseconds, and has then put faults into the queue for us. */
static void lock_soon(pthread_mutex_t *lock)
{
	for (unsigned spins = 0; spins < RELAX_SPINS; spins++) {
		if (pthread_mutex_trylock(lock) == 0)
			return;
		relax();
	}
	pthread_mutex_lock(lock);
}

void read_events(struct server *self, uint32_t process_id, uint64_t seen)
{
	struct faults *faults = self->faults;
	size_t queued_n;
	int n = 0;

	lock_soon(&faults->reading);
	queued_n = faults->queue_n;
	if (seen == READ_ANYWAY || seen == faults->reads_n || faults->last_read_id != process_id) {
		atomic_fetch_add(&faults->reads_n, 1);
		faults->last_read_id = process_id;
		n = read_and_apply(self, process_id);
		if (n > 0)
			listeners_note(&faults->listeners, (size_t)n + queued_n, monotonic_ns());
	}
	pthread_mutex_unlock(&faults->reading);
	if (n > 0 && faults->queue_n > faults->listeners.n)
		call_for_help(faults);
	if (n < 0)
		report_unreadable(self, process_id, n);
	else if (n > 0)
		self->unreadable = false;
}

void let_events_pass(struct server *self, unsigned round)
{
	struct vm *vm = self->faults->vm;
	uint32_t ids[64];
	size_t n = 0;

	gate_pass(vm->gate, self->means.lane);
	/* If there are more processes than fit, take others each round. */
	for (size_t i = 0; i < vm->spaces.n && n < sizeof ids / sizeof *ids; i++) {
		const struct process *process =
			vm->spaces.processes[(i + round * (sizeof ids / sizeof *ids)) % vm->spaces.n];

		if (!process->gone)
			ids[n++] = process->id;
	}
	gate_leave(vm->gate, self->means.lane);
	for (size_t i = 0; i < n; i++)
		read_events(self, ids[i], READ_ANYWAY);
	if (round < 4)
		sched_yield();
	else
		nanosleep(&(struct timespec){ .tv_nsec = 20000 }, NULL);
}

/* poll() reports an error for a blocking uffd. The VMM shares the flag and may clear it, by mistake or with
 * intent; it harms only itself. */
void restore_nonblock(struct server *self, uint32_t process_id)
{
	struct vm *vm = self->faults->vm;
	struct process *process;

	gate_pass(vm->gate, self->means.lane);
	process = address_space_find(&vm->spaces, process_id);
	if (process) {
		int flags = fcntl(process->uffd, F_GETFL);

		if (flags >= 0 && !(flags & O_NONBLOCK) &&
		    fcntl(process->uffd, F_SETFL, flags | O_NONBLOCK) == 0)
			notices_odd(vm->notices, UINT64_MAX,
				    "process %u made its userfaultfd blocking; it is non-blocking again",
				    process_id);
	}
	gate_leave(vm->gate, self->means.lane);
	/* slow down if it does this again and again */
	nanosleep(&(struct timespec){ .tv_nsec = 1000000 }, NULL);
}
