/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Serving one page fault: look the page up, claim it, fetch it, put it in place, wake, count. */
#ifndef VMMSWAP_RESOLVE_H
#define VMMSWAP_RESOLVE_H

#include "vm/vm.h"

/* A fault that is to be served, or to be tried again. */
struct fault {
	uint32_t process_id;
	uint32_t flags; /* UFFD_PAGEFAULT_FLAG_* */
	uint64_t addr;	/* page aligned, in that process */
	uint64_t read_ns;
	uint64_t not_before_ns; /* 0: now */
	uint32_t strays;	/* how often its address was not known as guest memory */
	uint32_t read_errors;	/* how often the store failed to give the page */
	bool starved;		/* counted in vm->starved_faults */
};

enum resolved {
	RESOLVED,    /* served, or another thread will wake the one that faulted */
	RETRY_SOON,  /* events of the process must be read first */
	RETRY_LATER, /* the host is out of memory, or the store could not read: try at fault->not_before_ns */
};

/* Serve a fault. lane: of the calling thread. page: a page-aligned buffer of one page, the thread's own.
 * Takes the gate. */
enum resolved resolve(struct vm *vm, struct lane *lane, void *page, struct fault *fault);

#endif
