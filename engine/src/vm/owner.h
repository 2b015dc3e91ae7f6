/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Which process works on a page map, so that a successor can tell whether it has ended.
 *
 * A thread of ours that waits for the lock of a memfd's inode cannot be killed there. It gets the lock first
 * and punches its hole, however long after the SIGKILL that is. If a successor took the page for resident
 * meanwhile, the hole would come later and the guest would read zeros. So a successor waits until all threads
 * of its predecessor have ended. */
#ifndef VMMSWAP_OWNER_H
#define VMMSWAP_OWNER_H

#include <stdbool.h>

#include "vm/page_map.h"

/* Note that this process works on the page map from now on. */
void owner_take(struct page_map_header *header);

/* True while the process that took the map last is another one and has a thread that has not ended. */
bool owner_runs(const struct page_map_header *header);

#endif
