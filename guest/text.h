/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Writing JSON into a buffer, and the little reading of JSON that the hand-off needs.
 *
 * Nothing here, nor anything else that the control thread calls, takes memory from malloc() or uses stdio:
 * glibc's fork() holds the locks of both while it waits for the monitor to read UFFD_EVENT_FORK, and the
 * control thread must answer meanwhile. */
#ifndef GUEST_TEXT_H
#define GUEST_TEXT_H

#include <stdbool.h>
#include <stddef.h>

struct text {
	char *data;  /* ends in a 0 byte once something was added */
	size_t size; /* of the buffer; the program ends if it does not suffice */
	size_t length;
};

void text_add(struct text *text, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* A JSON string with its quotes. */
void text_add_string(struct text *text, const char *string);

void text_clear(struct text *text);

/* The string value of a key of the one-level JSON object, unescaped as far as \" \\ and \/ go. False if
 * there is none. */
bool json_string(const char *line, const char *key, char *value, size_t size);

#endif
