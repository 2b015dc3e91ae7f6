/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What the engine's threads have to tell whoever runs it: rare things, in order, behind an eventfd. */
#ifndef VMMSWAP_NOTICE_H
#define VMMSWAP_NOTICE_H

#include <stdint.h>

#include "base/error.h"

enum notice_kind {
	NOTICE_PROCESS_FORKED = 1, /* process_id, parent_id, fd */
	NOTICE_PROCESS_GONE,	   /* process_id */
	/* process_id: it has guest memory elsewhere, or less of it; once until that is read */
	NOTICE_PROCESS_MOVED,
	NOTICE_JOB_DONE,      /* job, code, cancelled, message */
	NOTICE_PAGE_POISONED, /* page_idx, message */
	NOTICE_PAGE_HEALED,   /* page_idx */
	/* code, message: a swap-out has ended, and left pages behind for this reason: engine_left_pages() has which */
	NOTICE_PAGES_LEFT,
	NOTICE_PAGES_LOST, /* lost_take() has which (vm/lost.h); once until that was called */
	/* page_idx: there is no memory for it, and a page fault waits; once until engine_end_starvation() */
	NOTICE_FAULTS_STARVED,
	NOTICE_PROTECTED, /* a swap-out with pins.qmp_drained waits for engine_continue_job() */
	/* message, page_idx: something that the VMM or a stranger did, which a person must know */
	NOTICE_ODD,
};

struct notice {
	uint32_t kind; /* enum notice_kind */
	uint32_t process_id;
	uint32_t parent_id;
	int32_t fd;
	uint32_t job; /* enum job_kind */
	int32_t code; /* positive errno, 0: none */
	uint32_t cancelled;
	uint64_t page_idx;
	char message[ERROR_MESSAGE_BYTES];
};

struct notices;

int notices_create(struct notices **out);
void notices_destroy(struct notices *notices);

/* Readable while there is something to take. */
int notices_fd(const struct notices *notices);

/* Beyond NOTICES_MAX waiting, NOTICE_ODD is dropped (a hostile VMM must not fill our memory), and so it is without memory; others
 * never are: there are some spare ones, and when they are used up the process ends, for a successor to find how things are. */
#define NOTICES_MAX 1024
void notices_post(struct notices *notices, const struct notice *notice);
void notices_odd(struct notices *notices, uint64_t page_idx, const char *format, ...)
	__attribute__((format(printf, 3, 4)));

/* 1 and the oldest one, or 0. */
int notices_take(struct notices *notices, struct notice *out);

#endif
