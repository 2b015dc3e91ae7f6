/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Memory of a thread that the calling thread traces, and that stands still. */
#ifndef VMMSWAP_TRACEE_H
#define VMMSWAP_TRACEE_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/* Write n words of 8 bytes, whatever may be written to there by the process itself. 0 or -errno; -ESRCH: it
 * is no tracee of ours. */
int tracee_write(pid_t tid, uint64_t addr, const uint64_t *words, size_t n);

#endif
