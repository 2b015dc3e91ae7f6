/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Where pages are while they are out. Put a page and get a slot index; get it back by that index; drop it.
 *
 * A slot index is a name, not a place: the caller learns nothing from it but that consecutive indexes are
 * read fastest together. Today a slot is 4 KiB of one unnamed file; tiers (compressed RAM, aged to disk)
 * will move a page's bytes behind an unchanged slot index.
 *
 * Nothing is left in the page cache: the file is written and read with O_DIRECT, or where the file system
 * refuses that, through the page cache with what was used thrown out again before each call returns.
 *
 * Threads: every function but store_create, store_adopt, store_open_snapshot, store_next_data,
 * store_mark_used, store_ready and store_destroy
 * may be called by any number of threads at once. store_get takes no lock. A get that races with the drop
 * of its slot gives -EIO, old or foreign bytes: a caller that lets this happen must notice it and throw the
 * result away.
 *
 * A slot that is dropped twice, or was never put, is a bug of ours that could hand one page's bytes to
 * another: the process aborts, and its successor rebuilds the store's map from the page map. */
#ifndef VMMSWAP_STORE_H
#define VMMSWAP_STORE_H

#include "base/error.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Slot indexes are below this: they fit in 32 bits, with UINT32_MAX left over to mean "none". 16 TiB of
 * pages. */
#define STORE_SLOTS_MAX ((uint64_t)UINT32_MAX)

struct store;

struct store_account {
	uint64_t used_slots;	/* slots that were put and not dropped */
	uint64_t ram_bytes;	/* held by a RAM tier; 0 as long as there is none */
	uint64_t disk_bytes;	/* blocks of the file as the file system counts them */
	uint64_t written_bytes; /* sent to the file since this struct was made */
};

/* A new, empty store: a file without a name in dir (mode 0, cannot be linked), gone when its last fd closes.
 * -errno with what to do: no such directory, no O_TMPFILE there, no permission, ... */
int store_create(const char *dir, struct store **out, struct error *err);

/* Recovery: take over the file of a store whose process has died. fd is dup'ed; the caller keeps its own.
 * Then store_mark_used() each slot that the page map holds; store_ready() makes all others free.
 * store_get() works from the start; store_put() and store_drop() only after store_ready().
 * -EINVAL: fd is not a regular file open for reading and writing. */
int store_adopt(int fd, struct store **out, struct error *err);
/* -ERANGE: beyond the file's end; -EEXIST: marked before. Both mean a damaged page map. */
int store_mark_used(struct store *store, uint64_t slot_idx);
void store_ready(struct store *store);

/* The memory file of a snapshot as a store that has a page in each slot already: page i of the file is slot i. It is read
 * through the page cache, which clones of one snapshot share, and never written: store_put() says -EROFS, store_drop()
 * forgets nothing. Once the file was written to or its length changed, store_get() says -EBADMSG. fd is dup'ed. *version:
 * what the file was when its VM registered; all zero: it registers now, and it is filled in. -EINVAL: not a regular file
 * open for reading. */
struct snapshot_version {
	uint64_t size_bytes;
	int64_t mtime_ns;
};
int store_open_snapshot(int fd, struct snapshot_version *version, struct store **out, struct error *err);

/* The first run of slots at or after slot_idx that are not a hole in the file; false if there is none. Where the file system
 * does not tell, everything is data. */
bool store_next_data(struct store *store, uint64_t slot_idx, uint64_t *start_idx, uint64_t *end_idx);

/* Before the first put. max_bytes: what the file may occupy on the disk. keep_free_bytes: what a put leaves free on the file
 * system for others, but for what other stores write in the same moment. 0: no limit. Slots that have disk blocks already are
 * used all the same. */
void store_limit(struct store *store, uint64_t max_bytes, uint64_t keep_free_bytes);

/* Closes the fd; the pages are lost unless someone else holds a dup of it. NULL is allowed. */
void store_destroy(struct store *store);

/* What people call its file, as in "the swap file". */
const char *store_file_kind(const struct store *store);

/* True if store_get() itself says so (-EBADMSG) where bytes are not what they were when the VM registered: nobody has hashes of them. */
bool store_checks_bytes(const struct store *store);

/* The store's own fd, for the fd store; valid until store_destroy(). */
int store_fd(const struct store *store);

/* Where a single page cannot be written (EIO) it is tried at another place, and the bad one is used again only once the file was
 * emptied: so who puts page by page what failed together loses no more than what does not work.
 *
 * Store n contiguous pages; page i gets slot_idx[i]. pages is page aligned. All or nothing: on error no
 * slot is taken. As few writes as free slots allow, one where they are contiguous: 2 MiB at a time is
 * fastest.
 * -ENOSPC, -EDQUOT, -EFBIG, -EIO, ... with the directory named and what to do. What was stored before
 * stays readable. A process with RLIMIT_FSIZE must ignore SIGXFSZ (Python does). */
int store_put(struct store *store, const void *pages, size_t n, uint64_t *slot_idx, struct error *err);

/* Read n slots into buf (page aligned, n pages), slot_idx[i] to page i; one read for each run of
 * consecutive slots. 0 or -errno; a short read is -EIO. On error the contents of buf are undefined. */
int store_get(struct store *store, const uint64_t *slot_idx, size_t n, void *buf);

/* Give n slots up, for others to be put there. No I/O: fault threads may call it. The disk space comes
 * back only by store_trim() or store_trim_step(). */
void store_drop(struct store *store, const uint64_t *slot_idx, size_t n);

/* Give disk space back: one extent of 2 MiB without used slots; when nothing is used and all is punched, the file's own
 * metadata. Where the file system cannot punch, 64 MiB at a time when nothing is used. false: there was none. For idle
 * moments: it waits for the disk, up to 1 ms for a punch on some, and holds up reads. */
bool store_trim_step(struct store *store);
/* All of it, for the end of a long job. */
void store_trim(struct store *store);

/* Takes no lock. Exact when no other thread is in the store. */
void store_account(const struct store *store, struct store_account *out);

#endif
