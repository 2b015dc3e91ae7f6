/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The long jobs: swap-out, swap-in, trim. One at a time, on threads of their own; each can be turned back at any chunk. */
#ifndef VMMSWAP_SWAPPER_H
#define VMMSWAP_SWAPPER_H

#include "pins/pins.h"
#include "vm/lost.h"
#include "vm/vm.h"

enum job_kind { JOB_NONE, JOB_SWAP_OUT, JOB_SWAP_IN, JOB_TRIM };

enum swap_mode {
	MODE_NONE,
	MODE_LIVE,   /* the guest runs on; write-protection tells what it touches meanwhile */
	MODE_FREEZE, /* all threads of all its processes stand still meanwhile */
	MODE_AUTO,   /* live where every process's uffd can protect, else freeze */
};

struct swap_out_options {
	uint32_t mode; /* enum swap_mode */
	/* at least 1; further ones take what the guest used during those before */
	uint32_t max_passes;
	uint64_t until_resident_pages; /* no further pass once no more than these are resident */
	uint32_t freeze_timeout_ms;    /* until all stand still */
	uint32_t freeze_limit_ms; /* how long they stand still at most, but for one chunk; 0: without limit */
	struct pins_config pins;
	bool check_pins; /* false: the caller knows that nothing can pin guest memory */
};

struct swapper;

int swapper_create(struct vm *vm, struct swapper **out, struct error *err);

/* Turns a running job back and waits for it. */
void swapper_stop(struct swapper *swapper);
void swapper_destroy(struct swapper *swapper);

/* Start a job: -EBUSY while another runs. NOTICE_JOB_DONE tells its end. Swap-out registers guest memory with every
 * process's uffd if that is not done yet; swap-in unregisters it once all is back, and fails with EIO while pages are
 * poisoned. */
int swapper_start(struct swapper *swapper, enum job_kind job, const struct swap_out_options *options,
		  struct error *err);

/* What a predecessor was doing is not gone on with: a successor need not know of it. */
void swapper_forget_last(struct swapper *swapper);

/* A swap-out that waits after NOTICE_PROTECTED goes on. */
void swapper_continue(struct swapper *swapper);

/* The running job ends within one chunk; what it has done stays done. */
void swapper_cancel(struct swapper *swapper);

/* A swap-in brings back no more pages than this from now on, then waits to be given more:
 * each page is charged to a cgroup that may be near its limit, where the kernel kills. UINT64_MAX, the default: no limit. */
void swapper_set_budget(struct swapper *swapper, uint64_t pages);

/* Of the last swap-out's last pass: pages that could not be read, stored or punched; see left.h. */
uint64_t swapper_left_pages(struct swapper *swapper, struct lost_incident *pages);

/* How often a swap-out looks at most, every 2 ms, whether the guest still writes to much of what was protected. */
uint64_t swapper_hot_looks_max(uint64_t resident_pages);

enum job_kind swapper_job(const struct swapper *swapper);
uint64_t swapper_progress_pages(const struct swapper *swapper);
const char *swapper_pin_check(const struct swapper *swapper);

#endif
