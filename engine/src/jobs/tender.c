/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "jobs/tender.h"

#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "base/stats.h"
#include "store/store.h"
#include "vm/page.h"
#include "vm/vm.h"

#define PAUSE_NS_MAX 20000000

struct tender {
	struct vm *vm;
	pthread_t thread;
	int stop_fd; /* eventfd */
	atomic_bool stopping;
};

static void clear(int fd)
{
	uint64_t count;

	while (read(fd, &count, sizeof count) < 0 && errno == EINTR)
		;
}

/* The eventfd is cleared before the store is asked: what happens after that makes it readable again. */
static void wait_for_work(struct tender *tender)
{
	struct pollfd fds[] = { { .fd = store_tend_fd(tender->vm->store), .events = POLLIN },
				{ .fd = tender->stop_fd, .events = POLLIN } };
	int64_t wait_ms;

	clear(fds[0].fd);
	wait_ms = store_tend_wait_ms(tender->vm->store);
	poll(fds, 2, wait_ms > INT_MAX ? INT_MAX : (int)wait_ms);
}

/* Page faults want the disk and the processor, too: half of the time is theirs. */
static void pause_for(uint64_t step_ns)
{
	uint64_t pause_ns = step_ns < PAUSE_NS_MAX ? step_ns : PAUSE_NS_MAX;

	nanosleep(&(struct timespec){ .tv_nsec = (long)pause_ns }, NULL);
}

static void *tend(void *argument)
{
	struct tender *tender = argument;

	while (!atomic_load(&tender->stopping)) {
		uint64_t since_ns = monotonic_ns();

		if (store_tend_step(tender->vm->store, page_relocate, tender->vm))
			pause_for(monotonic_ns() - since_ns);
		else
			wait_for_work(tender);
	}
	return NULL;
}

int tender_start(struct vm *vm, struct tender **out, struct error *err)
{
	struct tender *tender;
	int code;

	*out = NULL;
	if (store_tend_fd(vm->store) < 0)
		return 0;
	tender = calloc(1, sizeof *tender);
	if (!tender)
		return error_set(err, ENOMEM, "no memory for the engine");
	tender->vm = vm;
	tender->stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	code = tender->stop_fd < 0 ? errno : pthread_create(&tender->thread, NULL, tend, tender);
	if (code) {
		if (tender->stop_fd >= 0)
			close(tender->stop_fd);
		free(tender);
		return error_set(err, code, "cannot start a thread: %s", strerror(code));
	}
	*out = tender;
	return 0;
}

void tender_stop(struct tender *tender)
{
	uint64_t one = 1;

	if (!tender)
		return;
	atomic_store(&tender->stopping, true);
	while (write(tender->stop_fd, &one, sizeof one) < 0 && errno == EINTR)
		;
	pthread_join(tender->thread, NULL);
	close(tender->stop_fd);
	free(tender);
}
