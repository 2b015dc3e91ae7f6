/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The thread that attach plants into a VMM that does not know of it. engine/planted/code/ has its code. */
#ifndef VMMSWAP_PLANTED_H
#define VMMSWAP_PLANTED_H

#include <stdint.h>

/* What attach has put into the VMM, for whoever removes it: in the mailbox's page, so that a successor finds
 * it. A VMM that changes it harms itself alone. */
#define VMMSWAP_PLANTING_OFFSET 2048
struct vmmswap_planting {
	uint64_t area_addr; /* code, stack, and scratch; 0: the VMM runs the thread itself */
	uint64_t area_bytes;
	uint64_t mailbox_addr;
	int32_t mailbox_fd; /* the VMM's numbers */
	int32_t uffd;
};

/* Position-independent, at most a page. The first byte is the thread's entry. */
extern const uint8_t vmmswap_planted_code[];
extern const uint32_t vmmswap_planted_code_bytes; /* 0: there is none for this machine */

#endif
