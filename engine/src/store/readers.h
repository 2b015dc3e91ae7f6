/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Threads that read files for threads that must not wait: where io_uring is not allowed. They come when reads
 * are asked for, and leave when there are none for a while. */
#ifndef VMMSWAP_READERS_H
#define VMMSWAP_READERS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Reads in flight at a time, at most: a disk is asked for no more by threads, each of which costs a stack. */
#define READERS_MAX 32

/* One read of whole pages. Belongs to its owner again once it is in the owner's inbox. */
struct file_read {
	int fd;
	char *bytes; /* page aligned */
	uint64_t size_bytes, offset_bytes;
	int result;	     /* 0 or -errno */
	uint64_t done_bytes; /* of whoever reads */
	struct inbox *inbox;
	struct file_read *next;
};

struct readers;

/* Where an owner's reads are when they have ended. */
struct inbox {
	struct readers *readers;
	int event_fd; /* readable while there are some */
	struct file_read *first;
	_Atomic bool has_some; /* first != NULL, without the lock */
};

int readers_create(struct readers **out);
void readers_destroy(struct readers *readers); /* nobody's read is in flight; NULL is allowed */

/* Begin a read: file->inbox gets it when it has ended. If no thread can be had, it ends in this call. */
void readers_begin(struct readers *readers, struct file_read *file);

/* The next read that has ended; NULL: none. */
struct file_read *inbox_take(struct inbox *inbox);

#endif
