/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The threads that use guest memory. Only they touch it, so that nothing else ever waits for a page.
 * They take neither locks nor memory from the C library: a fork at any moment leaves a sound child. */
#ifndef GUEST_WORKER_H
#define GUEST_WORKER_H

#include <setjmp.h>
#include <signal.h>

#include "page.h"

struct worker {
	struct guest *guest;
	struct worker_slot *slot;
	struct job *job; /* that the operation belongs to; NULL: free work */
	int index;	 /* in its process; -1: the process's first thread, which only forks */
	uint32_t id;	 /* of the writer in page words */
	uint64_t random;
	uint64_t next_op_ns; /* when the rate allows the next one */
	int pipe_fd[2];	     /* for kernel-mode accesses */
	sigjmp_buf on_bus_error;
	volatile sig_atomic_t bus_error_expected;
	uint64_t expected[PAGE_WORDS];
	uint64_t got[PAGE_WORDS];
	uint64_t next[PAGE_WORDS];
};

static inline uint32_t worker_id(int process, int index)
{
	return (uint32_t)(process * MAX_WORKERS + index + 1);
}

void worker_init(struct worker *worker, struct guest *guest, int index);

/* Start this process's workers. 0 or -errno. */
int workers_start(struct guest *guest, unsigned workers);

/* Take over SIGBUS for the whole process. */
void workers_catch_bus_errors(void);

/* Around each access that may wait for a page. */
void op_begin(struct worker *worker, uint64_t page_idx);
void op_end(struct worker *worker);

/* Before pages are locked: if this process dies, others learn here what it may have held and was doing to it.
 * how: enum write_how or OP_REMOVE. */
void worker_intend(struct worker *worker, uint64_t page_idx, uint64_t pages, uint32_t how);

/* Tell the control thread to look. */
void guest_notify(const struct guest *guest);

uint64_t worker_random(struct worker *worker);

/* Run statement with SIGBUS turned into a jump: 0 the first time, 1 after the signal. */
#define BUS_ERROR_IN(worker) ((worker)->bus_error_expected = 1, sigsetjmp((worker)->on_bus_error, 0))
#define BUS_ERROR_OUT(worker) ((worker)->bus_error_expected = 0)

#endif
