/* SPDX-License-Identifier: GPL-2.0-or-later */
/* How much guest memory is resident, found out without the lock of any inode.
 *
 * If all of a file is guest memory, the kernel's count of its blocks is the answer. If the file is larger,
 * from the start or because the VMM made it so, pages are counted one by one. That takes some 40 to 80 ms a
 * GiB, so a thread that has the time does it beforehand. lseek() would be faster, but waits for the inode's
 * lock: a thread of the VMM that calls write() on its memfd with a buffer in guest memory holds it until its
 * page faults are served. */
#ifndef VMMSWAP_RESIDENT_H
#define VMMSWAP_RESIDENT_H

#include <stdbool.h>
#include <stdint.h>

#include "vm/vm.h"

/* How many pages are resident, by the kernel's count of blocks or the last resident_count(); never more than
 * guest memory has. Private memory of a snapshot is not counted. Any thread may call this; it does not
 * wait. */
uint64_t resident_pages(struct vm *vm);

/* True if resident_pages() is only right after resident_count(): of files that are larger than guest memory,
 * and of private memory. */
bool resident_needs_count(struct vm *vm);

/* Count the pages of files that are larger than guest memory. Any thread may call this at any time. Ends
 * early once vm->stopping. */
void resident_count(struct vm *vm);

#endif
