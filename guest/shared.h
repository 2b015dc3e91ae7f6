/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What the guest's processes know together, in anonymous shared memory apart from guest memory: the state
 * of each page, what each worker does and has counted, the processes, the jobs. */
#ifndef GUEST_SHARED_H
#define GUEST_SHARED_H

#include "content.h"

#define MAX_JOBS 8 /* at a time; one more slot is the control's own, for recovery */
#define JOB_SLOTS (MAX_JOBS + 1)
#define RECOVERY_SLOT MAX_JOBS
#define STALL_BUCKETS 32

/* A wrong page as it was found. */
struct mismatch {
	_Atomic uint32_t claimed; /* 0: none yet; 1: being filled in */
	_Atomic uint32_t ready;	  /* the rest is valid */
	uint64_t page_idx;
	uint64_t addr;		   /* in the process that read it */
	unsigned offset_bytes;	   /* of the first wrong byte in the page */
	unsigned expected, actual; /* that byte */
	uint32_t expected_version; /* 0: zeros expected */
	uint32_t actual_version;   /* what the page's header claims; 0: none */
	int process, worker;
};

/* Written by one worker, read by all. Counters run from the start of the program or the last reset-stats. */
struct worker_slot {
	_Atomic uint64_t reads, writes, kernel_ios; /* page operations that ended */
	_Atomic uint64_t verified_bytes, wrong_bytes, wrong_pages;
	_Atomic uint64_t bus_errors; /* operations ended by SIGBUS or EFAULT */
	_Atomic uint64_t longest_ns; /* longest operation */
	_Atomic uint64_t
		stall_count[STALL_BUCKETS]; /* [i]: operations of 2^i to 2^(i+1)-1 us; [0] also those below */
	_Atomic uint64_t op_start_ns;	    /* 0: between operations */
	_Atomic uint64_t op_page;	    /* what it works on, or did last */
	_Atomic uint64_t held_page, held_pages; /* what it locks, or did last, and what for: */
	_Atomic uint32_t held_how;		/* enum write_how, or OP_REMOVE */
	_Atomic uint32_t busy;			/* 0: waits for orders */
} __attribute__((aligned(64)));

#define OP_REMOVE 100u

enum process_state {
	PROCESS_FREE,
	PROCESS_STARTING,
	PROCESS_RUNNING,
	PROCESS_SILENT, /* a back-end that maps guest memory and never touches it, or a process after exec */
	PROCESS_DYING,	/* ended; what it held is not yet set right */
	PROCESS_DEAD,	/* its slot may be used again */
};

enum process_kind { KIND_MAIN, KIND_FORK, KIND_BACKEND };

struct process_slot {
	_Atomic int state;
	_Atomic int kind;
	_Atomic int pid;
	_Atomic int parent;	 /* index of the process that forked it */
	_Atomic int error;	 /* errno why it could not start */
	_Atomic uint32_t go;	 /* a back-end may touch guest memory */
	_Atomic uint64_t job_id; /* job that asked for it */
	_Atomic uint64_t base[MAX_REGIONS];
	_Atomic uint64_t dummy_page; /* 0: none */
	struct worker_slot worker[MAX_WORKERS];
};

enum job_kind {
	JOB_FILL,
	JOB_VERIFY,
	JOB_TOUCH,
	JOB_REMOVE,
	JOB_KERNEL_IO,
	JOB_CORRUPT,
	JOB_MUNMAP,
	JOB_RECOVER,
	JOB_FORK, /* this and the next by a process's first thread, not by a worker */
	JOB_EXEC,
	JOB_BACKEND, /* this and the next are only awaited */
	JOB_QUIESCE,
};

enum job_state { JOB_FREE, JOB_RUNNING };

enum remove_how { REMOVE_MADVISE, REMOVE_DONTNEED, REMOVE_FALLOCATE, REMOVE_BALLOON };

struct job {
	_Atomic int state; /* all that follows is set before JOB_RUNNING, by the control thread only */
	_Atomic int kind;
	uint64_t id;
	int process; /* index, or -1: all */
	uint64_t first_page, pages, chunk_pages;
	bool cursor_is_shared; /* processes share the work; else each does all of it */
	bool skip_untouched;
	bool is_write;	/* touch: write; kernel-io: the kernel writes to guest memory */
	bool is_either; /* remove: pages may keep their contents */
	int remove_how; /* enum remove_how */
	unsigned offset_bytes;
	uint64_t start_ns;
	bool participates[MAX_PROCESSES];

	_Atomic bool has_more[MAX_PROCESSES];	/* until somebody found nothing left to take */
	_Atomic uint64_t cursor[MAX_PROCESSES]; /* next page to take, from 0; [0] if shared */
	_Atomic uint32_t active[MAX_PROCESSES]; /* workers inside */

	_Atomic uint64_t done_pages, bytes, wrong_bytes, wrong_pages, bus_errors, longest_ns;
	_Atomic int error;     /* first errno */
	_Atomic uint32_t lost; /* processes that ended before their part was done */
	struct mismatch first_wrong;
};

struct shared {
	_Atomic uint32_t wake; /* futex: counts orders */
	_Atomic uint32_t quit;

	_Atomic uint32_t unlocked; /* futex: counts unlocks that somebody waited for */
	_Atomic uint32_t unlock_waiters;
	_Atomic uint32_t quiesce_waiters;

	_Atomic uint32_t working;
	_Atomic uint64_t rate; /* operations a second and worker; 0: as fast as it goes */
	_Atomic uint32_t write_percent, kernel_percent;
	_Atomic uint64_t hot_pages, hot_first, hot_stride; /* hot_pages 0: all pages */

	_Atomic uint64_t stats_epoch_ns; /* longest_ns counts operations begun after this */
	struct mismatch first_wrong;
	struct process_slot process[MAX_PROCESSES];
	struct job job[JOB_SLOTS];
};

#endif
