/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The VMM's side of the hand-off to vmmswap-monitor, as a VMM with an event loop would do it: nothing here
 * waits. docs/examples/handoff.c shows the same without a loop and without other processes. */
#ifndef GUEST_HANDOFF_H
#define GUEST_HANDOFF_H

#include "page.h"
#include "text.h"

enum handoff_state {
	HANDOFF_NONE,	     /* not asked for */
	HANDOFF_CONNECTING,  /* nobody listens, or the peer went away before `ready`: tried again at
				retry_at_ns */
	HANDOFF_REGISTERING, /* register was sent */
	HANDOFF_READY,
	HANDOFF_REFUSED, /* error and message say why */
	HANDOFF_LOST,	 /* the connection ended after `ready` */
};

extern const char *const handoff_state_names[];

struct handoff {
	struct guest *guest;
	const char *path; /* NULL: no monitor */
	const char *pins; /* "true", "false", or NULL: say nothing */
	unsigned tries, tries_left;

	enum handoff_state state;
	uint64_t retry_at_ns; /* 0: no retry planned */
	char name[128], error[128], message[512];

	int asked;		    /* process whose reply is awaited; 0: register; -1: none */
	bool to_add[MAX_PROCESSES]; /* add-process has to be sent */
	int uffd_of[MAX_PROCESSES]; /* of announced back-ends; 0: none */
	char received[4096];	    /* start of a line */
	size_t received_length;
};

/* Make the userfaultfd and the dummy page, connect, register. True if the state has changed. */
bool handoff_start(struct handoff *handoff);

/* The socket is readable; the time of retry_at_ns has come. True if the state has changed. */
bool handoff_readable(struct handoff *handoff);
bool handoff_retry(struct handoff *handoff);

/* A back-end wants to take part; the hand-off owns its uffd from here. */
void handoff_add_process(struct handoff *handoff, int process, int uffd);

/* The process is gone: close its uffd. */
void handoff_forget_process(struct handoff *handoff, int process);

/* Close the connection, nothing else. */
void handoff_disconnect(struct handoff *handoff);

#endif
