/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A string that grows, to write JSON into, and the little reading of JSON that the hand-off needs. */
#ifndef GUEST_TEXT_H
#define GUEST_TEXT_H

#include <stdbool.h>
#include <stddef.h>

struct text {
	char *data; /* ends in a 0 byte once something was added */
	size_t length, size;
};

void text_add(struct text *text, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* A JSON string with its quotes. */
void text_add_string(struct text *text, const char *string);

void text_clear(struct text *text);
void text_free(struct text *text);

/* The string value of a key of the one-level JSON object, unescaped as far as \" \\ and \/ go. False if there is none. */
bool json_string(const char *line, const char *key, char *value, size_t size);

#endif
