/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "text.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "common.h"

void text_add(struct text *text, const char *format, ...)
{
	va_list args;

	va_start(args, format);
	int length = vsnprintf(text->data + text->length, text->size - text->length, format, args);
	va_end(args);
	if (length < 0 || (size_t)length >= text->size - text->length)
		die(0, "a reply or message is longer than %zu bytes", text->size);
	text->length += (size_t)length;
}

void text_add_string(struct text *text, const char *string)
{
	text_add(text, "\"");
	for (; *string; string++) {
		unsigned char byte = (unsigned char)*string;

		if (byte == '"' || byte == '\\')
			text_add(text, "\\%c", byte);
		else if (byte < 0x20 || byte >= 0x7f)
			text_add(text, "\\u%04x", byte);
		else
			text_add(text, "%c", byte);
	}
	text_add(text, "\"");
}

void text_clear(struct text *text)
{
	text->length = 0;
}

static const char *skip_space(const char *at)
{
	return at + strspn(at, " \t\r\n");
}

/* The text after the colon of this key, NULL if the key is not there. */
static const char *find_value(const char *line, const char *key)
{
	size_t length = strlen(key);

	for (const char *at = strchr(line, '"'); at; at = strchr(at + 1, '"')) {
		if (strncmp(at + 1, key, length) || at[1 + length] != '"')
			continue;
		const char *colon = skip_space(at + length + 2);
		if (*colon == ':')
			return skip_space(colon + 1);
	}
	return NULL;
}

bool json_string(const char *line, const char *key, char *value, size_t size)
{
	const char *at = find_value(line, key);
	size_t length = 0;

	if (!at || *at++ != '"')
		return false;
	for (; *at && *at != '"'; at++) {
		if (*at == '\\' && at[1])
			at++;
		if (length + 1 < size)
			value[length++] = *at;
	}
	value[length] = '\0';
	return *at == '"';
}
