/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "serve/fault.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "base/failpoint.h"
#include "base/held.h"
#include "serve/adopt.h"
#include "serve/event.h"
#include "serve/resolve.h"
#include "serve/server.h"
#include "vm/poison.h"

#define BATCH_MESSAGES 16
#define READY_MAX 16
#define STOP_ID UINT64_MAX
#define LIFT_RETRY_NS 1000000
#define STACK_BYTES ((size_t)256 << 10)

static void take_fault(struct server *self, const struct process *process, const struct uffd_msg *msg,
		       uint64_t now_ns)
{
	struct trace_record record = {
		.time_ns = now_ns,
		.addr = msg->arg.pagefault.address,
		.process_id = process->id,
		.flags = (uint32_t)msg->arg.pagefault.flags,
	};

	if (self->pending_n == PENDING_MAX) {
		self->overflown = true;
		return;
	}
	trace_add(self->faults->vm->trace, self->number, &record);
	self->pending[self->pending_n++] = (struct fault){
		.process_id = process->id,
		.flags = record.flags,
		.addr = record.addr & PAGE_MASK,
		.read_ns = now_ns,
	};
}

/* Read the messages of one process. All but page faults take effect before anyone else acts on a page again;
 * page faults go to the thread's list. Returns the number of messages; 0: none, or no room for more. */
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

/* If the kernel finds no free fd for a FORK event, the event stays queued, and each read fails the same
 * way. */
static int read_events(struct server *self, uint32_t process_id)
{
	int n = read_and_apply(self, process_id);

	if (n >= 0) {
		self->unreadable = false;
		return n;
	}
	if (!self->unreadable)
		notices_odd(self->faults->vm->notices, UINT64_MAX,
			    "cannot read the events of process %u: %s%s; trying again", process_id,
			    strerror(-n),
			    n == -EMFILE || n == -ENFILE ?
				    " (a child that it forked waits for LimitNOFILE= to be raised)" :
				    "");
	self->unreadable = true;
	nanosleep(&(struct timespec){ .tv_nsec = 10000000 }, NULL);
	return 0;
}

/* Try every fault on the list whose time has come. Returns the earliest time of those left; 0 if some should
 * be tried soon; UINT64_MAX if none is left. */
static uint64_t serve_pending(struct server *self)
{
	struct vm *vm = self->faults->vm;
	size_t kept_n = 0;
	uint64_t next_ns = UINT64_MAX;

	for (size_t i = 0; i < self->pending_n; i++) {
		struct fault *fault = &self->pending[i];
		uint64_t wake_ns = fault->not_before_ns;
		enum resolved result = RETRY_LATER;

		if (!wake_ns || wake_ns <= monotonic_ns()) {
			result = resolve(vm, self->lane, self->page, fault);
			wake_ns = result == RETRY_LATER ? fault->not_before_ns : 0;
		}
		if (result == RESOLVED) {
			if (fault->starved)
				atomic_fetch_sub(&vm->starved_faults, 1);
			latency_add(&vm->latencies[self->number], monotonic_ns() - fault->read_ns);
			continue;
		}
		if (wake_ns < next_ns)
			next_ns = wake_ns;
		self->pending[kept_n++] = *fault;
	}
	self->pending_n = kept_n;
	if (self->overflown && kept_n < PENDING_MAX / 2) {
		self->overflown = false;
		gate_pass(vm->gate, self->lane);
		vm_wake_all(vm);
		gate_leave(vm->gate, self->lane);
	}
	return next_ns;
}

/* EAGAIN from an ioctl: an event of some process is unread, or was read and the process has not run since.
 * The kernel does not say which process, so all are read; then we yield the CPU to the one that must run, and
 * sleep if that takes long. */
static void let_events_pass(struct server *self, unsigned round)
{
	struct vm *vm = self->faults->vm;
	uint32_t ids[64];
	size_t n = 0;

	gate_pass(vm->gate, self->lane);
	/* If there are more processes than fit, take others each round. */
	for (size_t i = 0; i < vm->spaces.n && n < sizeof ids / sizeof *ids; i++) {
		const struct process *process =
			vm->spaces.processes[(i + round * (sizeof ids / sizeof *ids)) % vm->spaces.n];

		if (!process->gone)
			ids[n++] = process->id;
	}
	gate_leave(vm->gate, self->lane);
	for (size_t i = 0; i < n; i++)
		read_events(self, ids[i]);
	if (round < 4)
		sched_yield();
	else
		nanosleep(&(struct timespec){ .tv_nsec = 20000 }, NULL);
}

static uint64_t serve_all(struct server *self)
{
	uint64_t next_ns = serve_pending(self);

	for (unsigned round = 0; next_ns == 0; round++) {
		if (self->faults->stopping && round > 1000)
			break;
		event_go_on(self->faults->vm);
		let_events_pass(self, round);
		next_ns = serve_pending(self);
	}
	if (!poison_lift(self->faults->vm, self->lane) && monotonic_ns() + LIFT_RETRY_NS < next_ns)
		next_ns = monotonic_ns() + LIFT_RETRY_NS; /* the guest must run first */
	return next_ns;
}

/* poll() reports an error for a blocking uffd. The VMM shares the flag and may clear it, by mistake or with
 * intent; it harms only itself. */
static void restore_nonblock(struct server *self, uint32_t process_id)
{
	struct vm *vm = self->faults->vm;
	struct process *process;

	gate_pass(vm->gate, self->lane);
	process = address_space_find(&vm->spaces, process_id);
	if (process) {
		int flags = fcntl(process->uffd, F_GETFL);

		if (flags >= 0 && !(flags & O_NONBLOCK) &&
		    fcntl(process->uffd, F_SETFL, flags | O_NONBLOCK) == 0)
			notices_odd(vm->notices, UINT64_MAX,
				    "process %u made its userfaultfd blocking; it is non-blocking again",
				    process_id);
	}
	gate_leave(vm->gate, self->lane);
	/* slow down if it does this again and again */
	nanosleep(&(struct timespec){ .tv_nsec = 1000000 }, NULL);
}

static void serve_process(struct server *self, uint32_t process_id, uint32_t events)
{
	if (events & EPOLLERR)
		restore_nonblock(self, process_id);
	if (self->pending_n == PENDING_MAX) /* all of them wait for memory or storage, so new ones wait too */
		nanosleep(&(struct timespec){ .tv_nsec = 1000000 }, NULL);
	if (read_events(self, process_id) > 0)
		serve_all(self);
}

static int timeout_ms(uint64_t next_ns)
{
	uint64_t now_ns = monotonic_ns();

	if (next_ns == UINT64_MAX)
		return -1;
	return next_ns <= now_ns ? 0 : (int)((next_ns - now_ns) / 1000000 + 1);
}

/* Read processes that epoll has no room for. Returns when to look again; UINT64_MAX: there are none. */
static uint64_t serve_unpolled(struct server *self)
{
	uint32_t ids[64];
	size_t n = adopt_poll_again(self->faults, ids, sizeof ids / sizeof *ids);

	for (size_t i = 0; i < n; i++)
		if (read_events(self, ids[i]) > 0)
			serve_all(self);
	return n ? monotonic_ns() + ADOPT_LOOK_NS : UINT64_MAX;
}

static uint64_t earlier(uint64_t a_ns, uint64_t b_ns)
{
	return a_ns < b_ns ? a_ns : b_ns;
}

/* The next event often follows at once: a short look for it saves a sleep and a wake-up. */
static int wait_for_events(struct server *self, struct epoll_event *ready, bool served, int wait_ms)
{
	uint64_t until_ns = served ? monotonic_ns() + (uint64_t)self->faults->spin_us * 1000 : 0;
	int n = 0;

	HELD_MAY_WAIT(WAIT_TIME);
	while (self->faults->spin_us && served && n == 0 && monotonic_ns() < until_ns)
		n = epoll_wait(self->epoll_fd, ready, READY_MAX, 0);
	return n ? n : epoll_wait(self->epoll_fd, ready, READY_MAX, wait_ms);
}

static void *serve(void *argument)
{
	struct server *self = argument;
	struct epoll_event ready[READY_MAX];
	bool served = false;

	while (!self->faults->stopping) {
		uint64_t next_ns = event_go_on(self->faults->vm) ? 0 : serve_unpolled(self);
		int n = wait_for_events(self, ready, served, timeout_ms(earlier(serve_all(self), next_ns)));

		served = false;
		for (int i = 0; i < n; i++) {
			if (ready[i].data.u64 == STOP_ID)
				continue;
			serve_process(self, (uint32_t)ready[i].data.u64, ready[i].events);
			served = true;
		}
	}
	while (event_go_on(self->faults->vm))
		;
	serve_all(self);
	return NULL;
}

static int create_server(struct faults *faults, size_t number)
{
	struct server *self = &faults->servers[number];
	struct epoll_event event = { .events = EPOLLIN, .data.u64 = STOP_ID };

	*self = (struct server){ .faults = faults, .number = number, .epoll_fd = -1, .page = MAP_FAILED };
	self->page = mmap(NULL, PAGE_BYTES, PROT_READ | PROT_WRITE,
			  MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	if (self->page == MAP_FAILED)
		return -errno;
	if (gate_join(faults->vm->gate, &self->lane) != 0)
		return -ENOMEM;
	self->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	if (self->epoll_fd < 0 || epoll_ctl(self->epoll_fd, EPOLL_CTL_ADD, faults->stop_fd, &event) != 0)
		return -errno;
	return 0;
}

int faults_create(struct vm *vm, bool pin, uint32_t spin_us, struct faults **out, struct error *err)
{
	struct faults *faults = calloc(1, sizeof *faults + vm->fault_threads_n * sizeof *faults->servers);
	int rc = 0;

	if (!faults)
		return error_set(err, ENOMEM, "no memory for the fault threads");
	faults->vm = vm;
	faults->pin = pin;
	faults->spin_us = spin_us;
	faults->stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (faults->stop_fd < 0)
		rc = -errno;
	while (!rc && faults->n < vm->fault_threads_n)
		rc = create_server(faults, faults->n++);
	if (rc) {
		faults_destroy(faults);
		return error_set(err, -rc, "cannot set up the fault threads: %s", strerror(-rc));
	}
	*out = faults;
	return 0;
}

void faults_stop(struct faults *faults)
{
	faults->stopping = true;
	if (faults->stop_fd >= 0)
		eventfd_write(faults->stop_fd, 1);
	for (size_t i = 0; i < faults->n; i++) {
		if (faults->servers[i].started)
			pthread_join(faults->servers[i].thread, NULL);
		faults->servers[i].started = false;
	}
}

void faults_destroy(struct faults *faults)
{
	if (!faults)
		return;
	faults_stop(faults);
	for (size_t i = 0; i < faults->n; i++) {
		if (faults->servers[i].epoll_fd >= 0)
			close(faults->servers[i].epoll_fd);
		if (faults->servers[i].page != MAP_FAILED)
			munmap(faults->servers[i].page, PAGE_BYTES);
		gate_part(faults->vm->gate, faults->servers[i].lane);
	}
	if (faults->stop_fd >= 0)
		close(faults->stop_fd);
	free(faults);
}

/* The idx-th CPU that this process may run on. */
static void pin_attribute(pthread_attr_t *attr, size_t idx)
{
	cpu_set_t allowed, one;

	if (sched_getaffinity(0, sizeof allowed, &allowed) != 0)
		return;
	for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
		if (!CPU_ISSET(cpu, &allowed) || idx--)
			continue;
		CPU_ZERO(&one);
		CPU_SET(cpu, &one);
		pthread_attr_setaffinity_np(attr, sizeof one, &one);
		return;
	}
}

int faults_start(struct faults *faults, struct error *err)
{
	for (size_t i = 0; i < faults->n; i++) {
		struct server *self = &faults->servers[i];
		pthread_attr_t attr;
		int code;

		pthread_attr_init(&attr);
		pthread_attr_setstacksize(&attr, STACK_BYTES);
		if (faults->pin)
			pin_attribute(&attr, i);
		code = pthread_create(&self->thread, &attr, serve, self);
		pthread_attr_destroy(&attr);
		if (code)
			return error_set(err, code, "cannot start a fault thread: %s", strerror(code));
		self->started = true;
	}
	return 0;
}
