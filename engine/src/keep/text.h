/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Builds text in memory that already exists, without any library: for a process that has neither a heap nor a
 * locale. */
#ifndef VMMSWAP_TEXT_H
#define VMMSWAP_TEXT_H

#include <stddef.h>
#include <stdint.h>

/* Always ends with a zero byte; text that does not fit is left out. */
struct text {
	char *at;
	char *end;
};

static inline struct text text_in(char *memory, size_t bytes)
{
	memory[0] = '\0';
	return (struct text){ memory, memory + bytes };
}

static inline size_t text_bytes(const struct text *text, const char *start)
{
	return (size_t)(text->at - start);
}

static inline void text_add(struct text *text, const char *string)
{
	while (*string && text->at + 1 < text->end)
		*text->at++ = *string++;
	if (text->at < text->end)
		*text->at = '\0';
}

static inline void text_add_number(struct text *text, uint64_t number)
{
	char digits[24];
	char *at = digits + sizeof digits - 1;

	*at = '\0';
	do
		*--at = (char)('0' + number % 10);
	while (number /= 10);
	text_add(text, at);
}

/* Begin another string after this one. */
static inline void text_next(struct text *text)
{
	if (text->at + 1 < text->end)
		*++text->at = '\0';
}

/* The number that the leading digits make; stops at the first character that is not a digit. */
static inline uint64_t number_of(const char *digits)
{
	uint64_t number = 0;

	for (; *digits >= '0' && *digits <= '9'; digits++)
		number = number * 10 + (uint64_t)(*digits - '0');
	return number;
}

#endif
