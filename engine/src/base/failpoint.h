/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Named places where a test makes the engine die, stall or fail.
 *
 * Compiled in with -DVMMSWAP_FAILPOINTS, otherwise each use is the constant 0.
 *
 *	int rc = FAILPOINT("store.write");      // a negative errno asked for by the test, else 0
 *	if (rc)
 *		return rc;
 *	FAILPOINT_HERE("swapper.marked");       // a place that cannot fail: kill and stall only
 *
 * A test arms them with text, from the environment (VMMSWAP_FAILPOINTS=...) or failpoint_arm():
 *
 *	NAME=ACTION[@SKIP][;NAME=ACTION...]
 *
 * ACTION is `kill` (SIGKILL ourselves), `segv`, `stop` (SIGSTOP ourselves), `stall` (wait until the point is
 * disarmed), `sleep:MS`, `ERRNO` such as `ENOSPC` (every time), `once:ERRNO`,
 * `times:N:ERRNO`, or `count`.
 * SKIP hits pass first without effect. */
#ifndef VMMSWAP_FAILPOINT_H
#define VMMSWAP_FAILPOINT_H

#include <stddef.h>
#include <stdint.h>

#ifdef VMMSWAP_FAILPOINTS
int failpoint_hit(const char *name);
#define FAILPOINT(name) failpoint_hit(name)
#define FAILPOINT_HERE(name) ((void)failpoint_hit(name))
#else
#define FAILPOINT(name) 0
#define FAILPOINT_HERE(name) ((void)0)
#endif

/* Arm points from text as above, replacing what was armed under the same names; "NAME=off" disarms. 0, or
 * -EINVAL (nothing changed) for text that is not of that form or an unknown name, or -ENOTSUP in a release
 * build. */
int failpoint_arm(const char *text);

/* How often the point was reached since the process started; 0 for an unknown name. */
uint64_t failpoint_hits(const char *name);

/* Every name that the engine knows, one a call, NULL past the end: for `vmmswap-monitor --list-failpoints`.
 * The table stands in failpoint.c; failpoint_hit() of a name that is not in it aborts. */
const char *failpoint_name(size_t idx);

#endif
