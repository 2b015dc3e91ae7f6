/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What the guest says about itself: members of JSON objects, each with a leading comma. Reads counters
 * only, never guest memory. */
#ifndef GUEST_REPORT_H
#define GUEST_REPORT_H

#include "handoff.h"

void report_status(struct text *text, struct guest *guest, const struct handoff *handoff);
void report_handoff(struct text *text, const struct handoff *handoff);
void report_regions(struct text *text, struct guest *guest);
void report_memory(struct text *text, struct guest *guest);
void report_processes(struct text *text, struct guest *guest);
void report_threads(struct text *text, struct guest *guest);
void report_job(struct text *text, struct guest *guest, const struct job *job);

/* Counters and first mismatch from zero. */
void report_reset(struct guest *guest);

extern const char *const job_names[];

#endif
