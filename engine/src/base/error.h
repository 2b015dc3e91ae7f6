/* SPDX-License-Identifier: GPL-2.0-or-later */
/* An error that a person can act on: a code for programs, a sentence for people. */
#ifndef VMMSWAP_ERROR_H
#define VMMSWAP_ERROR_H

#define ERROR_MESSAGE_BYTES 256

struct error {
	int code;			   /* positive errno; 0: no error */
	char message[ERROR_MESSAGE_BYTES]; /* what was wrong, with the value, and what to do */
};

/* Fill *err (which may be NULL) and return -code, so that a failing function can end in
 * `return error_set(err, ENOSPC, "...")`. The code must be positive. */
int error_set(struct error *err, int code, const char *format, ...) __attribute__((format(printf, 3, 4)));

#endif
