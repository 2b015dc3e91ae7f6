/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Stop every thread of a set of processes, and let them go again whatever happens. docs/freeze.md tells why
 * this way.
 *
 * A freeze owns one OS thread, the tracer, which makes every ptrace request (the kernel takes them from no
 * other) and whose end releases whatever is still held: a thread that cannot be detached because it never
 * stopped, an exited leader, everything if the process is killed. So freeze_create() and freeze_destroy()
 * may be called from different threads. All signals are blocked in the tracer.
 *
 * While a freeze exists the process gets a SIGCHLD for each thread that stops, unless it has set
 * SA_NOCLDSTOP, and no other thread may wait for "any child" (waitpid(-1)): it would be given the frozen
 * threads' stops. */
#ifndef VMMSWAP_FREEZE_H
#define VMMSWAP_FREEZE_H

#include "base/error.h"
#include "linux/procfs.h"

#include <stddef.h>
#include <stdint.h>

struct freeze;

/* Append to `out` the processes that must be frozen now (pid_list_add). Called on the tracer thread, again
 * and again until a call made while all threads found so far stand still brings nothing new: so children
 * forked meanwhile are caught. A process that has ended may be named, one named before may be left out (it
 * stays frozen). 0 or -errno, which ends the attempt. */
typedef int freeze_list_fn(void *ctx, struct pid_list *out);

/* Freeze. On success (0) no thread of these processes runs user code or enters a system call until
 * freeze_destroy(). On failure everything runs again before this returns, and *err says which thread was
 * the reason:
 *   -ETIMEDOUT  not all stood still within timeout_ms (a thread blocked in the kernel cannot be stopped
 *               before it comes back)
 *   -EPERM      a process is traced by someone else, or may not be traced by us
 *   -EINVAL     our own process is in the set
 *   -ENOMEM, -EAGAIN, or what list() or a failpoint returned
 * Returns within timeout_ms plus the time that one list() takes plus a second. Faults of the set's threads
 * must be served meanwhile: a thread that waits for a page inside a system call stops only when it has it. */
int freeze_create(freeze_list_fn *list, void *ctx, uint32_t timeout_ms, struct freeze **out,
		  struct error *err);

/* Let everything run on and wait until it does. A signal that came meanwhile is delivered, a process that
 * was stopped by job control stays so. freeze_thaw() may be called twice; freeze_destroy() includes it
 * and accepts NULL. */
void freeze_thaw(struct freeze *freeze);
void freeze_destroy(struct freeze *freeze);

/* Since the first thread was interrupted: until now, or until the last was released once freeze_thaw() has
 * returned. */
uint64_t freeze_duration_us(const struct freeze *freeze);

/* Threads that stood still when freeze_create() returned. */
size_t freeze_task_count(const struct freeze *freeze);

#endif
