/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The engine's part in wake-ups. */
#include <errno.h>
#include <signal.h>

#include "engine_inside.h"
#include "jobs/replay.h"

int wake_create(struct engine *engine, const struct engine_config *config, struct error *err)
{
	int rc = config->wake_fd < 0 ? wake_record_create(&engine->vm.wake, err) :
				       wake_record_adopt(config->wake_fd, &engine->vm.wake, err);

	if (!rc)
		rc = replay_create(&engine->vm, !config->no_uring, &engine->replay, err);
	if (rc || config->fault_around_pages < 2)
		return rc;
	engine->vm.nearby = nearby_create(config->fault_around_pages);
	replay_set_budget(engine->replay, 0);
	return engine->vm.nearby ? 0 : error_set(err, ENOMEM, "no memory for the engine");
}

void wake_read_stats(const struct wake_record *record, struct engine_stats *out)
{
	struct wake_stats wake;

	wake_record_stats(record, &wake);
	out->wake_set_pages = wake.set_pages;
	out->idle_set_pages = wake.idle_pages;
	out->prefetched_pages = wake.prefetched_pages;
	out->wasted_pages = wake.wasted_pages;
	out->wake_ms = wake.wake_ms;
	out->touched_pages = wake.touched_pages;
	out->waking = wake.is_waking;
}

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

bool engine_wake_is_ordered(const struct engine *engine)
{
	struct wake_stats stats;

	wake_record_stats(engine->vm.wake, &stats);
	return stats.is_ordered;
}

int engine_wake_fd(const struct engine *engine)
{
	return wake_record_fd(engine->vm.wake);
}
