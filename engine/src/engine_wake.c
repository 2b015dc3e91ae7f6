/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The engine's part in wake-ups. */
#include <errno.h>
#include <signal.h>

#include "engine_inside.h"
#include "jobs/replay.h"

int engine_wake(struct engine *engine, bool is_ordered, struct error *err)
{
	sigset_t all, before;
	int rc;

	if (swapper_job(engine->swapper) != JOB_NONE)
		return error_set(err, EBUSY, "another operation is still under way");
	if (is_ordered)
		wake_record_wake(engine->vm.wake);
	sigfillset(&all);
	pthread_sigmask(SIG_BLOCK, &all, &before);
	rc = replay_start(engine->replay, err);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	return rc;
}

void engine_cancel_wake(struct engine *engine)
{
	replay_cancel(engine->replay);
}

void engine_set_wake_budget(struct engine *engine, uint64_t pages)
{
	replay_set_budget(engine->replay, pages);
}

bool engine_settle_wake(struct engine *engine)
{
	return wake_record_settle(engine->vm.wake);
}

bool engine_was_replaying(const struct engine *engine)
{
	struct wake_stats stats;

	wake_record_stats(engine->vm.wake, &stats);
	return stats.is_replaying;
}

int engine_wake_fd(const struct engine *engine)
{
	return wake_record_fd(engine->vm.wake);
}
