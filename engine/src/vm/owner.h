/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Which process works on a page map, so that a successor can tell whether it is gone.
 *
 * A thread of ours that waits for the lock of a memfd's inode cannot be killed there: it gets the lock first, and punches what it
 * was to punch, however long after the SIGKILL that is. A successor that took the page for resident meanwhile would have it
 * punched behind its back, and the guest would read zeros. So it does not begin before all threads of its predecessor have ended. */
#ifndef VMMSWAP_OWNER_H
#define VMMSWAP_OWNER_H

#include <stdbool.h>

#include "vm/page_map.h"

/* This process works on it from now on. */
void owner_take(struct page_map_header *header);

/* True while a thread of the process that took it last, if that was another one, has not ended. */
bool owner_runs(const struct page_map_header *header);

#endif
