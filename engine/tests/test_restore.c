/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A swap-in that cannot put a page back says so, and keeps it. */
#include "puppet.h"

static const struct layout layout = { .memfd_pages = { 512 }, .regions = { { 0, 0, 512 } }, .full = 1 };

#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x0010
#endif

static long unmap(void *addr, long pages)
{
	return munmap(addr, (size_t)pages * PAGE_BYTES);
}

/* Only the memfd itself is left to write to, and that is forbidden. */
TEST(unmapped_and_sealed)
{
	struct puppet_order order = { .kind = ORDER_CALL, .run = unmap, .argument = 512 };
	struct notice done;
	struct rig rig;

	rig_start(&rig, &layout);
	rig_run_job(&rig, JOB_SWAP_OUT);
	CHECK_EQ(puppet_do(&rig, 0, 0, order), 0);
	CHECK_SYS(fcntl(rig.memfds[0], F_ADD_SEALS, F_SEAL_FUTURE_WRITE));
	rig_start_job(&rig, JOB_SWAP_IN);
	done = rig_await_job(&rig);
	CHECK_EQ(done.code, EIO);
	CHECK_EQ(rig_stats(&rig).swap_pages + rig_resident_pages(&rig, 0, 512), 512);
	rig_stop(&rig);
}

/* Bad twice in one round, good afterwards. */
TEST(a_read_error_that_passes)
{
	struct notice done;
	struct rig rig;

	rig_start(&rig, &layout);
	rig_run_job(&rig, JOB_SWAP_OUT);
	CHECK_OK(failpoint_arm("store.read.corrupt=EIO"));
	rig_start_job_until(&rig, JOB_SWAP_IN, "restore.copied");
	rig_disarm("store.read.corrupt");
	rig_disarm("restore.copied");
	done = rig_await_job(&rig);
	CHECK_EQ(done.code, 0);
	rig_stop(&rig);
}
