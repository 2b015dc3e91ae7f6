/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A copy of a process gives back the memory that it was copied with. */
#ifndef VMMSWAP_OWN_MEMORY_H
#define VMMSWAP_OWN_MEMORY_H

#include <stddef.h>
#include <stdint.h>

#define OWN_MEMORY_SPANS_MAX 8

struct span {
	uintptr_t start;
	uintptr_t end;
};

/* Unmap everything but these spans, OWN_MEMORY_SPANS_MAX at most, this program's or library's own code and data, libc's and the dynamic loader's, the calling
 * thread's control block, and the stack. Afterwards nothing that allocates may be called, nothing but libc, and in libc only what
 * was bound when the program was loaded (-z now). What cannot be read or unmapped stays: it costs memory, and no more. */
void own_memory_keep_only(const struct span *spans, size_t spans_n);

#endif
