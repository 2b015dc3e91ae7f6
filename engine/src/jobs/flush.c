/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Flush: all that is out and on RAM moves to disk. Guest memory is not touched. */
#include <errno.h>

#include "base/failpoint.h"
#include "jobs/job.h"

static uint64_t ram_bytes(struct swapper *swapper)
{
	struct store_account account;

	store_account(swapper->vm->store, &account);
	return account.ram_bytes;
}

/* As a part of all pages: what is reported counts pages. */
static void report_progress(struct swapper *swapper, uint64_t first_bytes)
{
	uint64_t pages = memory_total_pages(&swapper->memory), left_bytes = ram_bytes(swapper);

	if (left_bytes < first_bytes)
		atomic_store(&swapper->progress_pages,
			     (uint64_t)((double)pages * (double)(first_bytes - left_bytes) /
					(double)first_bytes));
}

void flush(struct swapper *swapper)
{
	uint64_t first_bytes = ram_bytes(swapper);
	struct error error;
	int rc = 0;

	job_forget_limit(swapper);
	while (!rc && job_goes_on(swapper)) {
		rc = store_flush_step(swapper->vm->store, &error);
		FAILPOINT_HERE("flush.moved");
		report_progress(swapper, first_bytes);
	}
	if (rc && rc != -ENOENT)
		job_fail(swapper, &error);
	job_note_limit(swapper);
}
