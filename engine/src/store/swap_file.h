/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The unnamed file in the swap directory: creates it, writes it without leaving anything in the page cache,
 * and reads it. */
#ifndef VMMSWAP_SWAP_FILE_H
#define VMMSWAP_SWAP_FILE_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "store/pieces.h"

/* How its bytes are kept out of the page cache. */
enum swap_file_mode {
	FILE_DIRECT, /* O_DIRECT */
	FILE_CACHED, /* the file system refuses O_DIRECT: written back and dropped after each use */
	FILE_MEMORY, /* tmpfs: its page cache is the file, there is nothing to drop */
};

struct swap_file {
	int fd;
	enum swap_file_mode mode;
	char *dir; /* for messages only */
	/* FILE_CACHED only: one write-back at a time. The kernel reports a failed write-back to whoever asks
	 * first, so of two concurrent writers the wrong one could get the error, and the other's bytes would
	 * be lost. */
	pthread_mutex_t *write_back;
	bool stats_may_wait; /* fstat() asks somebody: FUSE, a network, or a kind not known here */
	atomic_uint_least64_t disk_bytes; /* where stats_may_wait: as of the last swap_file_measure() */
};

/* Create the file: mode 0, cannot be linked, gone when its last fd closes. On error -errno, with what to do:
 * no such directory, no O_TMPFILE there, no permission, ... */
int swap_file_create(const char *dir, struct swap_file *out, struct error *err);
/* Take over the file of a process that died; fd is dup'ed. -EINVAL: not a regular file open for reading and
 * writing. */
int swap_file_adopt(int fd, struct swap_file *out, struct error *err);
void swap_file_close(struct swap_file *file);

/* Write all pieces in one call, and change *pieces. Sizes and offsets are multiples of 4096; the memory is
 * aligned to that. 0 or -errno. *written_bytes: how many were sent, also on error. A process with
 * RLIMIT_FSIZE must ignore SIGXFSZ (Python does). */
int swap_file_write(struct swap_file *file, struct pieces *pieces, uint64_t offset_bytes,
		    uint64_t *written_bytes);
/* The same for a read. A short read is -EIO. On error the contents of the memory are undefined. */
int swap_file_read(struct swap_file *file, struct pieces *pieces, uint64_t offset_bytes);

/* What swap_file_read() does after it has read, for a caller that read by itself. */
void swap_file_was_read(const struct swap_file *file, uint64_t size_bytes, uint64_t offset_bytes);

/* How much of the disk the file takes. Never waits for the file system. */
uint64_t swap_file_disk_bytes(const struct swap_file *file);
/* After the file has become smaller. May wait for the disk, as a write does, which includes this. */
void swap_file_measure(struct swap_file *file);

/* Describes in *err why a write of size_bytes failed. Returns rc. */
int swap_file_refuse(const struct swap_file *file, uint64_t size_bytes, int rc, struct error *err);

#endif
