/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A small VMM for the engine's tests: a process of its own whose threads know what each byte of their memory
 * must be. */
#ifndef VMMSWAP_TEST_VMM_H
#define VMMSWAP_TEST_VMM_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#define VMM_REGIONS 2
#define VMM_WORKERS_MAX 8

/* With private memory, which a thread of the VMM moves, in place of memfds. Its children have none of it. */
#ifndef TEST_PRIVATE
#define TEST_PRIVATE false
#endif

/* In memory shared with the test; the counters are the VMM's, `run` the test's. */
struct vmm_shared {
	_Atomic bool run, quit;
	_Atomic uint32_t idle_workers;
	/* check all pages once when the round grows; each worker counts up */
	_Atomic uint32_t check_round, checked;
	_Atomic uint64_t operations;
	_Atomic uint64_t wrong_pages;
	_Atomic uint64_t first_wrong_page, first_wrong_value, first_wrong_wanted;
	_Atomic uint64_t verified_pages;   /* every byte of these was looked at and right */
	_Atomic uint64_t longest_stall_ns; /* of one thread, for one page: looked at, written or given up */
	_Atomic uint64_t returned_pages;   /* given up while `lossy`, and back with their last contents */
	_Atomic uint64_t base_addr[VMM_REGIONS];
	_Atomic uint64_t dummy_addr;
	_Atomic int32_t uffd;
	/* how many children the VMM shall fork in all; it does so between operations */
	_Atomic uint32_t forks;
	_Atomic uint32_t forked;
	_Atomic uint32_t children; /* 0: children live on; otherwise all but the newest so many end */
	_Atomic bool lossy;	   /* monitors are being killed: see struct worker */
	/* workers also give pages up: MADV_REMOVE, MADV_DONTNEED after a punch, fallocate */
	_Atomic bool give_up;
	_Atomic bool read_only;
};

struct vmm {
	pid_t pid;
	int pidfd;
	int uffd;		 /* fetched from the VMM */
	int memfds[VMM_REGIONS]; /* -1: of private memory */
	int mailbox;		 /* of private memory; else -1 */
	uint64_t pages[VMM_REGIONS];
	uint32_t workers;
	struct vmm_shared *shared;
};

/* A few pages repeat one word. Set it before vmm_start(). */
extern bool vmm_repeats_words;

/* Start it: two memfds of pages_0 and pages_1 pages, filled (every eighth page is left zero), a uffd with API
 * done, an idle pool of workers. Exits the test on failure. */
void vmm_start(struct vmm *vmm, uint64_t pages_0, uint64_t pages_1, uint32_t workers);
void vmm_stop(struct vmm *vmm);

void vmm_run(struct vmm *vmm);	 /* workers read and write at random */
void vmm_idle(struct vmm *vmm);	 /* returns when all stand still */
void vmm_check(struct vmm *vmm); /* every worker checks every byte of its pages; returns when done */
uint64_t vmm_resident_pages(const struct vmm *vmm);

#endif
