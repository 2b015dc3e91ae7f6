/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Making a userfaultfd the way that a VMM does. */
#ifndef GUEST_UFFD_H
#define GUEST_UFFD_H

#include <stdbool.h>
#include <stdint.h>

enum uffd_source { UFFD_AUTO, UFFD_DEVICE, UFFD_SYSCALL };

struct uffd_options {
	enum uffd_source source;
	bool does_api;	       /* do UFFDIO_API ourselves; else the monitor will */
	uint64_t api_features; /* asked for if does_api; 0: all that the monitor can use and the kernel has */
	bool user_mode_only;   /* wrong on purpose */
};

/* A userfaultfd of the calling process, or -errno. */
int uffd_open(const struct uffd_options *options);

/* Advice for an error of uffd_open(). */
const char *uffd_advice(int err);

#endif
