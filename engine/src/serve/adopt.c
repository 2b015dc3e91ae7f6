/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "serve/adopt.h"

#include <errno.h>
#include <string.h>
#include <sys/epoll.h>

#include "base/failpoint.h"
#include "serve/server.h"
#include "vm/registration.h"

int faults_watch(struct faults *faults, const struct process *process)
{
	struct epoll_event event = { .events = EPOLLIN, .data.u64 = process->id };
	int rc = FAILPOINT("adopt.watch");

	for (size_t i = 0; i < faults->listeners.n && !rc; i++)
		if (epoll_ctl(faults->servers[i]->epoll_fd, EPOLL_CTL_ADD, process->uffd, &event) != 0 &&
		    errno != EEXIST) /* from an earlier try */
			rc = -errno;
	return rc;
}

void faults_unwatch(struct faults *faults, const struct process *process)
{
	for (size_t i = 0; i < faults->listeners.n; i++)
		epoll_ctl(faults->servers[i]->epoll_fd, EPOLL_CTL_DEL, process->uffd, NULL);
}

/* Each event before the FORK may split two ranges. */
size_t adopt_reserve(struct vm *vm, const struct process *process, size_t n)
{
	return address_space_reserve(&vm->spaces, n, process->ranges_n + 2 * n);
}

/* The child maps what its parent maps, and the kernel copied registrations, protection and markers to it. */
void adopt_child(struct faults *faults, const struct process *parent, int uffd)
{
	struct vm *vm = faults->vm;
	struct notice notice = { .kind = NOTICE_PROCESS_FORKED, .parent_id = parent->id, .fd = uffd };
	struct process *child = address_space_add(&vm->spaces, uffd);
	int rc;

	process_copy_ranges(child, parent); /* there is memory for both */
	rc = faults_watch(faults, child);
	if (rc) {
		child->unpolled = true;
		atomic_store(&faults->unpolled, true);
		notices_odd(vm->notices, UINT64_MAX,
			    "a forked child of process %u is served more slowly: epoll has no room for "
			    "its userfaultfd (%s; fs.epoll.max_user_watches)",
			    parent->id, strerror(-rc));
	}
	notice.process_id = child->id;
	notices_post(vm->notices, &notice); /* first: registering may find the process gone */
	/* its writes so far are not seen; or it is not watched, and a running swap-out must end */
	if (!register_child(vm, child) || !child->protects || child->unwatched) {
		vm_protect_punching(vm, child);
		vm_note_join(vm);
	}
}

size_t adopt_poll_again(struct faults *faults, uint32_t *ids, size_t room)
{
	struct vm *vm = faults->vm;
	size_t n = 0;

	if (!atomic_load_explicit(&faults->unpolled, memory_order_relaxed))
		return 0;
	gate_hold_alone(vm->gate);
	for (size_t i = 0; i < vm->spaces.n && n < room; i++) {
		struct process *process = vm->spaces.processes[i];

		if (!process->unpolled || process->gone)
			continue;
		process->unpolled = faults_watch(faults, process) != 0;
		if (process->unpolled)
			ids[n++] = process->id;
	}
	atomic_store(&faults->unpolled, n > 0);
	gate_release(vm->gate);
	return n;
}
