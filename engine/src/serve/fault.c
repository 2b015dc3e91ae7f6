/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "serve/fault.h"

#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "base/held.h"
#include "linux/time_slice.h"
#include "serve/adopt.h"
#include "serve/event.h"
#include "serve/reading.h"
#include "vm/poison.h"

#define READY_MAX 16
#define STOP_ID UINT64_MAX
#define READS_ID (UINT64_MAX - 1)
#define HELP_ID (UINT64_MAX - 2)
#define STACK_BYTES ((size_t)256 << 10)
#define SERVE_AT_ONCE 16 /* new faults, before those that wait for another try have their turn */
#define SUBMIT_AT_ONCE 4 /* reads begun by one system call */
#define AGAIN_NS 1000000
#define REST_NS 1000000000
#define LIFT_RETRY_NS 1000000

static void add_outcome(struct server *self, struct fault *fault, enum resolved result)
{
	struct vm *vm = self->faults->vm;

	switch (result) {
	case RESOLVED:
		if (fault->starved)
			atomic_fetch_sub(&vm->starved_faults, 1);
		latency_add(&vm->latencies[self->number], monotonic_ns() - fault->read_ns);
		return;
	case READING:
		return;
	case RETRY_SOON:
		self->reads_events_first = true;
		/* fall through */
	case RETRY_LATER:
	case AWAIT_FETCH:
		fault->awaits_fetch = result == AWAIT_FETCH;
		if (result != RETRY_LATER)
			fault->not_before_ns = 0;
		self->pending[self->pending_n++] = *fault;
		return;
	}
}

/* Whatever becomes of a fault that is taken, there is a place for it. */
static bool has_room(const struct server *self)
{
	return self->pending_n + self->means.fetches->in_use_n < TAKEN_MAX;
}

static bool end_fetches(struct server *self)
{
	struct fetches *fetches = self->means.fetches;
	struct fetch *fetch;
	bool any = false;

	while ((fetch = fetches_ended(fetches))) {
		struct fault fault;

		add_outcome(self, &fault, resolve_fetched(self->faults->vm, &self->means, fetch, &fault));
		any = true;
	}
	return any;
}

/* Pages that have been read, and new faults: one at a time, so that no other thread is idle meanwhile. */
static bool serve_new(struct server *self)
{
	bool any = false;

	for (size_t n = 0; n < SERVE_AT_ONCE; n++) {
		struct fault fault;

		any = end_fetches(self) || any;
		if (!has_room(self) || !take_from_queue(self, &fault))
			break;
		add_outcome(self, &fault, resolve(self->faults->vm, &self->means, &fault));
		any = true;
		if (self->means.fetches->begun_n >= SUBMIT_AT_ONCE)
			fetches_submit(self->means.fetches);
	}
	return any;
}

static bool is_due(const struct server *self, const struct fault *fault)
{
	if (fault->awaits_fetch)
		return fetches_have_room(self->means.fetches);
	return !fault->not_before_ns || fault->not_before_ns <= monotonic_ns();
}

/* Try every fault again whose time has come. Returns the earliest time of those left; 0 if some should be
 * tried soon; UINT64_MAX if none is left, or a fetch must end first. */
static uint64_t serve_pending(struct server *self)
{
	size_t n = self->pending_n;
	uint64_t next_ns = UINT64_MAX;

	self->pending_n = 0;
	for (size_t i = 0; i < n; i++) {
		struct fault fault = self->pending[i];

		if (is_due(self, &fault))
			add_outcome(self, &fault, resolve(self->faults->vm, &self->means, &fault));
		else
			self->pending[self->pending_n++] = fault;
	}
	for (size_t i = 0; i < self->pending_n; i++)
		if (!self->pending[i].awaits_fetch && self->pending[i].not_before_ns < next_ns)
			next_ns = self->pending[i].not_before_ns;
	return next_ns;
}

static uint64_t earlier(uint64_t a_ns, uint64_t b_ns)
{
	return a_ns < b_ns ? a_ns : b_ns;
}

/* Try everything once. Returns when to look again. *any: something was done. */
static uint64_t serve_once(struct server *self, bool *any)
{
	uint64_t next_ns;

	*any = serve_new(self);
	next_ns = serve_pending(self);
	*any = end_fetches(self) || *any; /* also reads that failed at once, which wake nobody up */
	if (!fetches_submit(self->means
				    .fetches)) /* last: the rest of a read that was cut short waits for it */
		next_ns = earlier(next_ns, monotonic_ns() + AGAIN_NS);
	return next_ns;
}

/* All that can be done now. Returns when to look again; UINT64_MAX: when something happens.
 *
 * A fault that is to be tried again soon needs that events are read. It may be in flight by the time that
 * this is looked at, so it is not asked of what is pending: else it would be tried without end, and the event
 * never read. */
static uint64_t serve_all(struct server *self)
{
	bool any = true;
	uint64_t next_ns;

	for (unsigned round = 0; (next_ns = serve_once(self, &any)) == 0 || any;) {
		if (self->faults->stopping && round > 1000)
			break;
		if (!self->reads_events_first)
			continue;
		self->reads_events_first = false;
		event_go_on(self->faults->vm);
		let_events_pass(self, round++);
	}
	if (!poison_lift(self->faults->vm, self->means.lane))
		next_ns = earlier(next_ns, monotonic_ns() + LIFT_RETRY_NS); /* the guest must run first */
	return next_ns;
}

static void serve_process(struct server *self, uint32_t process_id, uint32_t events, uint64_t seen)
{
	if (events & EPOLLERR)
		restore_nonblock(self, process_id);
	if (self->faults->queue_n == QUEUE_MAX) /* all wait for memory or storage, so new ones wait too */
		nanosleep(&(struct timespec){ .tv_nsec = 1000000 }, NULL);
	read_events(self, process_id, seen);
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
		read_events(self, ids[i], READ_ANYWAY);
	return n ? monotonic_ns() + ADOPT_LOOK_NS : UINT64_MAX;
}

/* Nap, if another thread listens alone, and then look for what nobody has read. Nothing of ours may end
 * meanwhile. */
static bool nap(struct server *self, struct epoll_event *ready, uint64_t next_ns, int *n)
{
	struct faults *faults = self->faults;
	uint32_t silent;

	if (next_ns != UINT64_MAX || self->means.fetches->in_use_n ||
	    !listeners_nap(&faults->listeners, self->number, &faults->reads_n, &silent))
		return false;
	*n = epoll_wait(self->epoll_fd, ready, READY_MAX, 0);
	if (*n > 0 && ready[0].data.u64 < HELP_ID)
		listeners_stuck(&faults->listeners, silent);
	return true;
}

/* The next event often follows at once: a short look for it saves a sleep and a wake-up. */
static int wait_for_events(struct server *self, struct epoll_event *ready, bool served, int wait_ms)
{
	uint64_t until_ns = served ? monotonic_ns() + (uint64_t)self->faults->config.spin_us * 1000 : 0;
	int n = 0;

	HELD_MAY_WAIT(WAIT_TIME);
	while (self->faults->config.spin_us && served && n == 0 && monotonic_ns() < until_ns)
		n = epoll_wait(self->epoll_fd, ready, READY_MAX, 0);
	return n ? n : epoll_wait(self->epoll_fd, ready, READY_MAX, wait_ms);
}

/* Nothing is left that waits for a device: with it, our buffers would go while they are written to. */
static void end_all(struct server *self)
{
	struct pollfd waiting = { .fd = reads_fd(self->means.fetches->reads), .events = POLLIN };

	while (event_go_on(self->faults->vm))
		;
	serve_all(self);
	HELD_MAY_WAIT(WAIT_TIME);
	while (self->means.fetches->in_use_n) {
		poll(&waiting, 1, 1000);
		serve_all(self);
	}
}

/* Call the next one first, if there is work for it. */
static void come_to_help(struct faults *faults)
{
	eventfd_t value;

	eventfd_read(faults->help_fd, &value);
	if (faults->queue_n > 1)
		call_for_help(faults);
}

static void *serve(void *argument)
{
	struct server *self = argument;
	struct faults *faults = self->faults;
	struct epoll_event ready[READY_MAX];
	bool served = false;

	time_slice_shorten();
	while (!faults->stopping) {
		uint64_t next_ns = event_go_on(faults->vm) ? 0 : serve_unpolled(self), seen;
		int n;

		next_ns = earlier(serve_all(self), next_ns);
		if (!nap(self, ready, next_ns, &n)) {
			if (fetches_hold_memory(self->means.fetches))
				next_ns = earlier(next_ns, monotonic_ns() + REST_NS);
			n = wait_for_events(self, ready, served, timeout_ms(next_ns));
			if (n == 0)
				fetches_rest(self->means.fetches);
		}
		seen = atomic_load(&faults->reads_n);
		served = false;
		for (int i = 0; i < n; i++) {
			served = ready[i].data.u64 != STOP_ID;
			if (ready[i].data.u64 == HELP_ID)
				come_to_help(faults);
			else if (ready[i].data.u64 < HELP_ID)
				serve_process(self, (uint32_t)ready[i].data.u64, ready[i].events, seen);
		}
	}
	end_all(self);
	return NULL;
}

static int watch_own(struct server *self, int fd, uint64_t id)
{
	struct epoll_event event = { .events = id == HELP_ID ? EPOLLIN | EPOLLEXCLUSIVE : EPOLLIN,
				     .data.u64 = id };

	return epoll_ctl(self->epoll_fd, EPOLL_CTL_ADD, fd, &event) ? -errno : 0;
}

static int create_server(struct faults *faults, bool uring)
{
	struct server *self = calloc(1, sizeof *self);
	int rc;

	if (!self)
		return -ENOMEM;
	*self = (struct server){
		.faults = faults, .number = faults->n, .epoll_fd = -1, .means.page = MAP_FAILED
	};
	faults->servers[faults->n++] = self;
	self->means.page = mmap(NULL, PAGE_BYTES, PROT_READ | PROT_WRITE,
				MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	if (self->means.page == MAP_FAILED)
		return -errno;
	if (gate_join(faults->vm->gate, &self->means.lane) != 0)
		return -ENOMEM;
	rc = fetches_create(faults->readers, uring, &self->means.fetches);
	if (rc)
		return rc;
	self->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	if (self->epoll_fd < 0)
		return -errno;
	rc = watch_own(self, faults->stop_fd, STOP_ID);
	/* Also those that listen: one that is woken late finds nothing to read, and sleeps while the queue is
	 * full. */
	if (!rc && faults->listeners.n < faults->vm->fault_threads_n)
		rc = watch_own(self, faults->help_fd, HELP_ID);
	return rc ? rc : watch_own(self, reads_fd(self->means.fetches->reads), READS_ID);
}

static void destroy_server(struct server *self)
{
	if (self->epoll_fd >= 0)
		close(self->epoll_fd);
	if (self->means.page != MAP_FAILED)
		munmap(self->means.page, PAGE_BYTES);
	fetches_destroy(self->means.fetches);
	gate_part(self->faults->vm->gate, self->means.lane);
	free(self);
}

int faults_create(struct vm *vm, const struct faults_config *config, struct faults **out, struct error *err)
{
	struct faults *faults = calloc(1, sizeof *faults + vm->fault_threads_n * sizeof *faults->servers);
	int rc;

	if (!faults)
		return error_set(err, ENOMEM, "no memory for the fault threads");
	faults->vm = vm;
	faults->config = *config;
	pthread_mutex_init(&faults->reading, NULL);
	pthread_mutex_init(&faults->queue_lock, NULL);
	rc = readers_create(&faults->readers);
	faults->stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	faults->help_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (!rc && (faults->stop_fd < 0 || faults->help_fd < 0))
		rc = -errno;
	listeners_start(&faults->listeners,
			vm->fault_threads_n < LISTENERS_MAX ? vm->fault_threads_n : LISTENERS_MAX);
	while (!rc && faults->n < vm->fault_threads_n)
		rc = create_server(faults, !config->no_uring);
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
		if (faults->servers[i]->started)
			pthread_join(faults->servers[i]->thread, NULL);
		faults->servers[i]->started = false;
	}
}

void faults_destroy(struct faults *faults)
{
	if (!faults)
		return;
	faults_stop(faults);
	for (size_t i = 0; i < faults->n; i++)
		destroy_server(faults->servers[i]);
	readers_destroy(faults->readers);
	if (faults->stop_fd >= 0)
		close(faults->stop_fd);
	if (faults->help_fd >= 0)
		close(faults->help_fd);
	pthread_mutex_destroy(&faults->reading);
	pthread_mutex_destroy(&faults->queue_lock);
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
		struct server *self = faults->servers[i];
		pthread_attr_t attr;
		int code;

		pthread_attr_init(&attr);
		pthread_attr_setstacksize(&attr, STACK_BYTES);
		if (faults->config.pin)
			pin_attribute(&attr, i);
		code = pthread_create(&self->thread, &attr, serve, self);
		pthread_attr_destroy(&attr);
		if (code)
			return error_set(err, code, "cannot start a fault thread: %s", strerror(code));
		self->started = true;
	}
	return 0;
}
