/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "command.h"

#include <string.h>

void command_refuse(struct command *command, const char *reason)
{
	if (!command->wrong)
		command->wrong = reason;
}

uint64_t command_number(struct command *command, int idx, uint64_t most)
{
	uint64_t value;

	if (idx >= command->words || !parse_size(command->word[idx], &value) || value > most) {
		command_refuse(command, "a number is missing, not a number, or too large; see help");
		return 0;
	}
	return value;
}

bool command_has_word(const struct command *command, int idx, const char *word)
{
	return idx < command->words && !strcmp(command->word[idx], word);
}

const char *command_option(const struct command *command, const char *key)
{
	size_t length = strlen(key);

	for (int i = 0; i < command->options; i++)
		if (!strncmp(command->option[i], key, length) && command->option[i][length] == '=')
			return command->option[i] + length + 1;
	return NULL;
}

uint64_t command_number_option(struct command *command, const char *key, uint64_t otherwise, uint64_t most)
{
	const char *text = command_option(command, key);
	uint64_t value = otherwise;

	if (text && (!parse_size(text, &value) || value > most)) {
		command_refuse(command, "the value of an option is not a number or too large; see help");
		return otherwise;
	}
	return value;
}

int command_by_option(struct command *command, int otherwise)
{
	const char *text = command_option(command, "by");
	uint64_t process;

	if (!text)
		return otherwise;
	if (!strcmp(text, "all"))
		return ALL_PROCESSES;
	if (!strcmp(text, "main"))
		return 0;
	if (!parse_size(text, &process) || process >= MAX_PROCESSES ||
	    atomic_load(&command->control->guest->shared->process[process].state) != PROCESS_RUNNING) {
		command_refuse(command, "by= must be all, main, or the number of a running process");
		return otherwise;
	}
	return (int)process;
}

void command_split(struct command *command, char *line)
{
	char *word;

	while ((word = strsep(&line, " \t\r"))) {
		if (!*word)
			continue;
		if (command->words == COMMAND_MAX_WORDS || command->options == COMMAND_MAX_WORDS) {
			command_refuse(command, "too many words");
			return;
		}
		if (strchr(word, '='))
			command->option[command->options++] = word;
		else
			command->word[command->words++] = word;
	}
}
