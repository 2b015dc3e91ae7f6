/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Swap-in of one chunk: the pages that are out come back in runs, beside the demand faults, which may take any page over. */
#ifndef VMMSWAP_RESTORE_H
#define VMMSWAP_RESTORE_H

#include "vm/vm.h"

struct restorer {
	struct vm *vm;
	struct lane *lane;
	char *buffer; /* CHUNK_BYTES, page aligned */
	uint64_t restored_pages;
	uint64_t unreadable_pages; /* stay out: the store did not give their bytes */
};

/* How many pages of [page_idx, end_idx) are out and free to be taken. */
uint64_t restore_wanted(const struct vm *vm, uint64_t page_idx, uint64_t end_idx);

/* Bring back what is out in [*page_idx, end_idx), at most CHUNK_PAGES, until *budget_pages pages were. *page_idx is then where it
 * ended, and *budget_pages what is left. Pages that cannot be read are counted and left, others still come. -ENOMEM: the VMM's
 * processes have no memory left for it; -EAGAIN as in evict_protect(). What was not restored is out as before. */
int restore_chunk(struct restorer *restorer, uint64_t *page_idx, uint64_t end_idx, uint64_t *budget_pages,
		  struct error *err);

#endif
