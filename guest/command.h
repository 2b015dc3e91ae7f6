/* SPDX-License-Identifier: GPL-2.0-or-later */
/* One order from standard input: its words, its options, and why it cannot be obeyed. */
#ifndef GUEST_COMMAND_H
#define GUEST_COMMAND_H

#include "control.h"

#define COMMAND_MAX_WORDS 16
#define ALL_PROCESSES (-1)

struct command {
	struct control *control;
	char *word[COMMAND_MAX_WORDS]; /* words without =, the name first */
	int words;
	char *option[COMMAND_MAX_WORDS]; /* key=value */
	int options;
	const char *wrong; /* why it cannot be obeyed */
	int err;	   /* or its errno */
	uint64_t job_id;   /* started */
};

/* Cut a line into words and options. */
void command_split(struct command *command, char *line);

/* Say why the order is refused. Only the first reason counts. */
void command_refuse(struct command *command, const char *reason);

/* The word as a number of at most `most`. If it is none, the order is refused, and this is 0. */
uint64_t command_number(struct command *command, int idx, uint64_t most);
bool command_has_word(const struct command *command, int idx, const char *word);

/* The value of key=value, or NULL; the same as a number; by= as a process number or ALL_PROCESSES. Without
 * the option: otherwise. */
const char *command_option(const struct command *command, const char *key);
uint64_t command_number_option(struct command *command, const char *key, uint64_t otherwise, uint64_t most);
int command_by_option(struct command *command, int otherwise);

#endif
