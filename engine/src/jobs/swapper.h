/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The long jobs: swap-out, swap-in, trim, flush. One runs at a time, on threads of its own. Each can be
 * cancelled after any window. */
#ifndef VMMSWAP_SWAPPER_H
#define VMMSWAP_SWAPPER_H

#include "pins/pins.h"
#include "vm/lost.h"
#include "vm/vm.h"

enum job_kind { JOB_NONE, JOB_SWAP_OUT, JOB_SWAP_IN, JOB_TRIM, JOB_FLUSH };

enum swap_mode {
	MODE_NONE,
	MODE_LIVE,   /* the guest keeps running; write-protection shows what it writes to meanwhile */
	MODE_FREEZE, /* all threads of all its processes are stopped meanwhile */
	MODE_AUTO,   /* live if every process's uffd can protect, else freeze */
};

struct swap_out_options {
	uint32_t mode; /* enum swap_mode */
	/* at least 1; each further pass takes pages that the guest used during the last one */
	uint32_t max_passes;
	uint64_t until_resident_pages; /* no further pass once this few pages are resident */
	uint64_t idle_pages_max;       /* leave so many that the guest touches all the time; wake_record.h */
	uint32_t freeze_timeout_ms;    /* abort a freeze unless all threads stop within this time */
	uint32_t freeze_limit_ms;      /* stop the threads no longer than this and one window; 0: no limit */
	struct pins_config pins;
	bool check_pins; /* false: the caller knows that nothing can pin guest memory */
};

struct swapper;

int swapper_create(struct vm *vm, struct swapper **out, struct error *err);

/* Cancel a running job and wait for its end. */
void swapper_stop(struct swapper *swapper);
void swapper_destroy(struct swapper *swapper);

/* Start a job. -EBUSY while another runs. NOTICE_JOB_DONE reports its end. A swap-out registers guest memory
 * with every process's uffd if that is not done yet. A swap-in unregisters it once all pages are back, and
 * fails with EIO while pages are poisoned. */
int swapper_start(struct swapper *swapper, enum job_kind job, const struct swap_out_options *options,
		  struct error *err);

/* Do not resume the predecessor's job, and do not leave it to a successor. */
void swapper_forget_last(struct swapper *swapper);

/* Resume a swap-out that waits after NOTICE_PROTECTED. */
void swapper_continue(struct swapper *swapper);

/* Cancel the running job. It ends within one window, and keeps what it has done. */
void swapper_cancel(struct swapper *swapper);

/* Set how many pages a swap-in may bring back from now on; then it waits to be given more. Each page is
 * charged to a cgroup, and the kernel kills processes of a cgroup that reaches its limit. UINT64_MAX, the
 * default: no limit. */
void swapper_set_budget(struct swapper *swapper, uint64_t pages);

/* The pages that the last pass of the last swap-out could not read, store or punch; see left.h. */
uint64_t swapper_left_pages(struct swapper *swapper, struct lost_incident *pages);

/* How many times, 2 ms apart, a swap-out waits at most for the guest to write less to what was protected. */
uint64_t swapper_hot_looks_max(uint64_t resident_pages);

/* How many jobs were started so far. False: one runs. */
bool swapper_is_idle(struct swapper *swapper, uint64_t *started);

/* The region is on its way out: no job that is started from now on works on it. False, and nothing has
 * changed: one was, since that many. */
bool swapper_leave_out(struct swapper *swapper, uint64_t started, uint64_t page_idx);

enum job_kind swapper_job(const struct swapper *swapper);
uint64_t swapper_progress_pages(const struct swapper *swapper);
const char *swapper_pin_check(const struct swapper *swapper);

#endif
