/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Uncompressed pages in one unnamed file, 4 KiB per slot: the store of version 0.1. Slots are numbered from
 * 0. */
#ifndef VMMSWAP_PAGE_FILE_H
#define VMMSWAP_PAGE_FILE_H

#include "store/store.h"
#include "store/tier.h"

int page_file_create(const char *dir, struct tier **out, struct error *err);

/* Take over the file of a process that died; fd is dup'ed. Then mark the slots in use. */
int page_file_adopt(int fd, struct tier **out, struct error *err);

/* See store_forget_limit(). Of a file that this made, as the next function. */
void page_file_forget_limit(struct tier *tier);

/* See store_limit(). */
void page_file_limit(struct tier *tier, uint64_t max_bytes, uint64_t keep_free_bytes);

#endif
