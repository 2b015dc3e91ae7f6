/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Inside of the store: what store_open.c makes and store.c works with. */
#ifndef VMMSWAP_STORE_FILE_H
#define VMMSWAP_STORE_FILE_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "store/slots.h"
#include "store/store.h"

/* How pages are kept out of the page cache. */
enum store_mode {
	DIRECT,	  /* O_DIRECT */
	CACHED,	  /* the file system refuses O_DIRECT: written back and dropped after each use */
	MEMORY,	  /* tmpfs: its page cache is the file, there is nothing to drop */
	SNAPSHOT, /* read only, and through the page cache: clones of one snapshot share it */
};

struct store {
	int fd;
	enum store_mode mode;
	char *place;			 /* the swap directory, or the snapshot's file; for messages only */
	struct snapshot_version version; /* SNAPSHOT only */
	uint64_t max_bytes;		 /* of disk blocks; 0: no limit */
	uint64_t keep_free_bytes;	 /* on the file system; 0: none */
	uint64_t marks_n;		 /* slots in the adopted file; marks must be below */
	/* pages can be put: false between store_adopt() and store_ready(), and for a snapshot */
	bool ready;

	pthread_mutex_t lock; /* of slots; held for microseconds, but see cut_unused_file() */
	struct slots slots;
	uint64_t condemned_n; /* taken slots without a page: they could not be written to */
	/* CACHED only: one write-back at a time. The kernel tells of a failed write-back to whoever asks
	 * first, so of two concurrent puts the wrong one could be told, and the other's pages be lost. */
	pthread_mutex_t write_back;

	atomic_uint_least64_t used_slots;
	atomic_uint_least64_t written_bytes;
	atomic_bool cannot_punch;
};

struct stat;
struct snapshot_version snapshot_version_of(const struct stat *st);

#endif
