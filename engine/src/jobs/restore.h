/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Swap-in of one window. Pages come back in runs, while demand faults are served and may take over any
 * page. */
#ifndef VMMSWAP_RESTORE_H
#define VMMSWAP_RESTORE_H

#include "vm/vm.h"

struct restorer {
	struct vm *vm;
	struct lane *lane;
	char *buffer; /* CHUNK_BYTES, page aligned */
	uint64_t restored_pages;
	uint64_t unreadable_pages; /* stay out, as the store could not read them */
};

/* How many pages of [page_idx, end_idx) are out and not claimed. */
uint64_t restore_wanted(const struct vm *vm, uint64_t page_idx, uint64_t end_idx);

/* Bring back the pages of [*page_idx, end_idx), at most CHUNK_PAGES, that are out, but no more than
 * *budget_pages. *page_idx becomes the page where it ended, and *budget_pages what is left. Pages that cannot
 * be read are counted and stay out; others still come back. -ENOMEM: the VMM's processes have no memory left.
 * -EAGAIN: as in evict_protect(). On error, other pages are out as before. */
int restore_chunk(struct restorer *restorer, uint64_t *page_idx, uint64_t end_idx, uint64_t *budget_pages,
		  struct error *err);

#endif
