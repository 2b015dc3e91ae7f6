/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Orders from the control thread to the workers of all processes. A worker that waits for a page holds up
 * its own part of its own job and nothing else. */
#ifndef GUEST_JOB_H
#define GUEST_JOB_H

#include "worker.h"

/* Control thread: a free slot with everything zero, or NULL if MAX_JOBS run. */
struct job *job_new(struct shared *shared, int kind);

/* Control thread: let job->process (-1: all that run) take part, and start. */
void job_start(struct shared *shared, struct job *job);

/* Control thread: nobody works on it and nothing is left. Participants that ended count as done. */
bool job_is_complete(struct shared *shared, struct job *job);

/* Control thread: give the slot back. */
void job_free(struct job *job);

/* Worker: do one piece of one job. False if there is none for it. */
bool jobs_step(struct worker *worker);

/* Worker that waits for a page: set right what dead processes held, if that is ordered. */
void jobs_recover(struct worker *worker);

#endif
