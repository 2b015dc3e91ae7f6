/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "linux/tracee.h"

#include <errno.h>
#include <sys/ptrace.h>

int tracee_write(pid_t tid, uint64_t addr, const uint64_t *words, size_t n)
{
	for (size_t i = 0; i < n; i++)
		if (ptrace(PTRACE_POKEDATA, tid, (void *)(uintptr_t)(addr + i * sizeof *words),
			   (void *)(uintptr_t)words[i]) != 0)
			return -errno;
	return 0;
}
