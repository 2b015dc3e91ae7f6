/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Stops every thread of a set of processes, and lets them run again whatever happens. docs/freeze.md explains
 * the choices.
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

/* Append to `out` the processes that must be frozen (pid_list_add). The tracer thread calls it until a call,
 * made while all threads found so far are stopped, finds no new process: so children that are forked
 * meanwhile are frozen too. It may name a process that has ended, and may leave out one that it named before,
 * which stays frozen. 0; -errno ends the attempt. */
typedef int freeze_list_fn(void *ctx, struct pid_list *out);

/* Freeze. On success (0) no thread of these processes runs user code or enters a system call until
 * freeze_thaw(). On failure all threads run again before this returns, and *err names the thread that was the
 * reason:
 *   -ETIMEDOUT  not all threads stopped within timeout_ms (a thread that is blocked in the kernel stops when
 *               it returns from there)
 *   -EPERM      a process is traced by someone else, or may not be traced by us
 *   -EINVAL     our own process is in the set
 *   -ENOMEM, -EAGAIN, or what list() or a failpoint returned
 * Returns within timeout_ms, plus the time of one list(), plus a second. Serve the page faults of these
 * threads meanwhile: a thread that waits for a page inside a system call stops only when it has the page. */
int freeze_create(freeze_list_fn *list, void *ctx, uint32_t timeout_ms, struct freeze **out,
		  struct error *err);

/* Let all threads continue, and wait until they do. Signals that came meanwhile are delivered. A process that
 * was stopped by job control stays stopped. freeze_thaw() may be called twice; freeze_destroy() includes it,
 * and accepts NULL. */
void freeze_thaw(struct freeze *freeze);
void freeze_destroy(struct freeze *freeze);

/* Time since the first thread was interrupted; once freeze_thaw() has returned, until the last thread was
 * released. */
uint64_t freeze_duration_us(const struct freeze *freeze);

/* How many threads were stopped when freeze_create() returned. */
size_t freeze_task_count(const struct freeze *freeze);

#endif
