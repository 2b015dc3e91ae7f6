/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The memory file of a snapshot, as a tier in which every slot already has a page: page i of the file is slot
 * i. It is read through the page cache, which clones of one snapshot share, and never written. */
#ifndef VMMSWAP_SNAPSHOT_FILE_H
#define VMMSWAP_SNAPSHOT_FILE_H

#include "store/store.h"
#include "store/tier.h"

/* See store_open_snapshot(). */
int snapshot_file_open(int fd, struct snapshot_version *version, struct tier **out, struct error *err);

#endif
