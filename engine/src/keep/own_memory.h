/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Lets a copy of a process release the memory that it was copied with. */
#ifndef VMMSWAP_OWN_MEMORY_H
#define VMMSWAP_OWN_MEMORY_H

#include <stddef.h>
#include <stdint.h>

#define OWN_MEMORY_SPANS_MAX 8

struct span {
	uintptr_t start;
	uintptr_t end;
};

/* Unmap everything except these spans (at most OWN_MEMORY_SPANS_MAX), the code and data of this program or
 * library, of libc and of the dynamic loader, the calling thread's control block, and the stack. After this,
 * call nothing that allocates and no library except libc, and in libc only what was bound when the program
 * was loaded (-z now). Memory that cannot be read or unmapped stays: this costs memory, and nothing else. */
void own_memory_keep_only(const struct span *spans, size_t spans_n);

#endif
