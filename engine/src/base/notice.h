/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Notices: rare things that the engine's threads report to Python, in order, with an eventfd. */
#ifndef VMMSWAP_NOTICE_H
#define VMMSWAP_NOTICE_H

#include <stdint.h>

#include "base/error.h"

enum notice_kind {
	NOTICE_PROCESS_FORKED = 1, /* process_id, parent_id, fd */
	NOTICE_PROCESS_GONE,	   /* process_id */
	/* process_id: it moved or unmapped guest memory; posted once until its ranges are read */
	NOTICE_PROCESS_MOVED,
	/* job, code, cancelled, message; limited_by with code 0: a limit stopped it, message says which */
	NOTICE_JOB_DONE,
	NOTICE_PAGE_POISONED, /* page_idx, message */
	NOTICE_PAGE_HEALED,   /* page_idx */
	/* code, message: a swap-out has ended and left pages resident for this reason; engine_left_pages()
	 * says which */
	NOTICE_PAGES_LEFT,
	NOTICE_PAGES_LOST, /* lost_take() says which (vm/lost.h); posted once until that is called */
	/* page_idx: a page fault waits because there is no memory; posted once until
	 * engine_end_starvation() */
	NOTICE_FAULTS_STARVED,
	NOTICE_WAKING,	    /* the guest touches what it touched at earlier wake-ups; once for each wake-up */
	NOTICE_REPLAY_DONE, /* code, cancelled, message */
	NOTICE_PROTECTED,   /* a swap-out with pins.qmp_drained waits for engine_continue_job() */
	/* message, page_idx: something odd that the VMM or another process did, for people to know */
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
	uint32_t limited_by; /* enum limited_by */
	uint64_t page_idx;
	char message[ERROR_MESSAGE_BYTES];
};

struct notices;

int notices_create(struct notices **out);
void notices_destroy(struct notices *notices);

/* Readable while there is something to take. */
int notices_fd(const struct notices *notices);

/* NOTICE_ODD is dropped if NOTICES_MAX notices wait already, so that a hostile VMM cannot fill our memory, or
 * if there is no memory. Other notices are never dropped: there are some spare ones, and when they are used
 * up the process ends, and a successor finds out how things are. */
#define NOTICES_MAX 1024
void notices_post(struct notices *notices, const struct notice *notice);
void notices_odd(struct notices *notices, uint64_t page_idx, const char *format, ...)
	__attribute__((format(printf, 3, 4)));

/* Take the oldest notice: 1, or 0 if there is none. */
int notices_take(struct notices *notices, struct notice *out);

#endif
