/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Swap-in of one chunk: the pages that are out come back in runs, beside the demand faults, which may take any page over. */
#ifndef VMMSWAP_RESTORE_H
#define VMMSWAP_RESTORE_H

#include "vm/vm.h"

struct restorer {
	struct vm *vm;
	size_t lane;
	char *buffer; /* CHUNK_BYTES, page aligned */
	uint64_t restored_pages;
	uint64_t unreadable_pages; /* stay out: the store did not give their bytes */
};

/* Bring back what is STORED in [page_idx, page_idx + pages), at most CHUNK_PAGES. Pages that cannot be read are counted and
 * left, others still come. -ENOMEM: the VMM's processes have no memory left for it; -EAGAIN as in evict_protect(). What was
 * not restored is out as before. */
int restore_chunk(struct restorer *restorer, uint64_t page_idx, uint64_t pages, struct error *err);

#endif
