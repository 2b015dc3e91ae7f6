/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The control thread: reads orders from standard input, one a line, and writes JSON, one object a line.
 *
 * It answers each line at once with {"reply":N,...} (N counts lines from 1). What takes time is a job: the
 * reply names it, and {"event":"done","job":ID,...} follows when it is done. Several jobs may run at a
 * time. It never touches guest memory, so it answers while every worker waits for a page. */
#ifndef GUEST_CONTROL_H
#define GUEST_CONTROL_H

#include "handoff.h"
#include "job.h"

struct control {
	struct guest *guest;
	struct handoff handoff;
	struct text out;
	uint64_t lines; /* read so far */
	bool recovery_waits;
	bool has_ended; /* end of standard input, or quit */
};

/* Serve until standard input ends. */
void control_run(struct control *control);

/* Write an event: begin, add members, end. */
struct text *control_event(struct control *control, const char *name);
void control_send(struct control *control);

/* commands.c: obey one line. */
void command_run(struct control *control, char *line);
extern const char command_help[];

/* hostile.c: what a bad VMM may do. 0 or errno; ENOENT for an unknown name. */
int hostile_run(struct guest *guest, char *const *words, int count);

#endif
