/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Puts pages that are in scratch back into guest memory. */
#ifndef VMMSWAP_MOVE_BACK_H
#define VMMSWAP_MOVE_BACK_H

#include "vm/vm.h"

/* Put those of the pages that are still MOVED back from a place in scratch; window_page: which page of the
 * place the first one is. 0: none of them is MOVED any more. -errno: why one still is. */
int move_back(struct vm *vm, struct lane *lane, int place, uint64_t page_idx, uint64_t window_page,
	      uint64_t pages);

/* Empty a place in which nothing is MOVED any more, and give it up. On error it is left as it is. Once the
 * VMM's thread is gone, nobody can empty it, and nobody moves anything there: 0. */
int move_back_end(struct vm *vm, int place);

#endif
