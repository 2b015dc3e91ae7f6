/* SPDX-License-Identifier: GPL-2.0-or-later */
/* How much of guest memory is on RAM, asked without the lock of any inode.
 *
 * Where the regions of a file are all of it, the kernel's count of its blocks says so at once. Files may be larger than what
 * of them is guest memory, from the start or because the VMM makes them so; then pages are counted one by one, which takes
 * some 40 to 80 ms a GiB, and whoever has the time does that beforehand. lseek() would be faster, but waits for the inode's lock:
 * a thread of the VMM that write()s to its memfd from guest memory holds that until its page faults are served. */
#ifndef VMMSWAP_RESIDENT_H
#define VMMSWAP_RESIDENT_H

#include <stdbool.h>
#include <stdint.h>

#include "vm/vm.h"

/* By the kernel's count of blocks, or the last resident_count(); never more than there are pages of guest memory. Private memory
 * is not counted. At once, on any thread. */
uint64_t resident_pages(struct vm *vm);

/* Whether resident_pages() needs a count to be right. */
bool resident_needs_count(struct vm *vm);

/* Count what needs it, on any thread, beside everything else; ends early once vm->stopping. */
void resident_count(struct vm *vm);

#endif
