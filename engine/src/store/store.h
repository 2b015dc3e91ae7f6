/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Where pages are while they are out. Put a page and get a slot index; get it back by that index; drop it.
 *
 * A slot index is a name of 35 bits (slot_name.h), and says which tier has the page: names below 2^32 are pages of one file, the swap
 * file of version 0.1 or the memory file of a snapshot; those above are records of the log, which begin in RAM and age to disk (log.h).
 * A store has one of the former, the log, or both: then further pages go to the log, and what is in the file stays there until it is
 * dropped.
 *
 * Nothing is left in the page cache: files are written and read with O_DIRECT, or where the file system
 * refuses that, through the page cache with what was used thrown out again before each call returns.
 *
 * Threads: every function but those that make a store, store_limit, store_next_data,
 * store_mark_used, store_ready and store_destroy
 * may be called by any number of threads at once. store_get takes no lock. A get that races with the drop
 * of its slot gives an error, old or foreign bytes: a caller that lets this happen must notice it and throw the
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

/* Slot indexes of a file are below this: they fit in 32 bits, with UINT32_MAX left over to mean "none". 16 TiB of
 * pages. */
#define STORE_SLOTS_MAX ((uint64_t)UINT32_MAX)

struct store;

/* What stopped a put, or will stop the next one. */
enum limited_by {
	LIMITED_BY_NOTHING,
	LIMITED_BY_RAM_TIER,
	LIMITED_BY_DISK_TIER,
	LIMITED_BY_WRITE_BUDGET,
	LIMITED_BY_NO_SPACE
};

struct store_account {
	uint64_t used_slots;	/* slots that were put and not dropped */
	uint64_t ram_bytes;	/* held by the RAM tier, as the kernel counts */
	uint64_t disk_bytes;	/* blocks of the files as the file system counts them */
	uint64_t written_bytes; /* sent to the files since this struct was made */
	uint64_t same_filled_pages, raw_pages;
	uint64_t record_bytes; /* of all records in use, in RAM and on disk */
	enum limited_by limited_by;
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

struct log_config;
/* A new store of tiers, or with the fds of a predecessor its successor: see log.h. */
int store_create_tiers(const struct log_config *config, struct store **out, struct error *err);
/* Further pages of a store that has a file go to the log. Before store_ready(), in an adopted one. */
int store_add_tiers(struct store *store, const struct log_config *config, struct error *err);

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

/* The store's own fds, for the fd store; valid until store_destroy(). -1: it has none. */
int store_fd(const struct store *store); /* of the file */
struct store_fds {
	int segments, ram, disk, key;
};
struct store_fds store_tier_fds(const struct store *store);

/* Where a single page cannot be written (EIO) it is tried at another place, and the bad one is used again only once the file was
 * emptied: so who puts page by page what failed together loses no more than what does not work.
 *
 * Store n contiguous pages; page i gets slot_idx[i]. pages is page aligned. owner_idx[i], below 2^40, is what store_tend_step()
 * calls page i; NULL where it is never called. All or nothing: on error no
 * slot is taken. As few writes as free slots allow, one where they are contiguous: 2 MiB at a time is
 * fastest.
 * -ENOSPC, -EDQUOT, -EFBIG, -EIO, ... with the directory named and what to do. What was stored before
 * stays readable. A process with RLIMIT_FSIZE must ignore SIGXFSZ (Python does). */
int store_put(struct store *store, const void *pages, const uint64_t *owner_idx, size_t n, uint64_t *slot_idx,
	      struct error *err);

/* Read n slots into buf (page aligned, n pages), slot_idx[i] to page i; one read for each run of
 * consecutive slots. 0 or -errno; a short read is -EIO. On error the contents of buf are undefined. */
int store_get(struct store *store, const uint64_t *slot_idx, size_t n, void *buf);

/* True if many pages may have the slot: it stands for one word that fills a page. */
bool store_slot_is_shared(uint64_t slot_idx);

/* Give n slots up, for others to be put there. No I/O: fault threads may call it. The disk space comes
 * back only by store_trim() or store_trim_step(). */
void store_drop(struct store *store, const uint64_t *slot_idx, size_t n);

/* Give disk space back: one extent of 2 MiB without used slots; when nothing is used and all is punched, the file's own
 * metadata. Where the file system cannot punch, 64 MiB at a time when nothing is used. false: there was none. For idle
 * moments: it waits for the disk, up to 1 ms for a punch on some, and holds up reads. */
bool store_trim_step(struct store *store);
/* All of it, for the end of a long job. */
void store_trim(struct store *store);

/* No page is added to what a swap-out began to fill: so that it can age. For the end of a job. */
void store_settle(struct store *store);

/* Says that the owner's page is at to_idx from now on: by one atomic change of what said from_idx. False: the page was not there any
 * more, or somebody has it in hands; nothing changed. The bytes at to_idx are in place when it is called. */
typedef bool (*relocate_page)(void *context, uint64_t owner_idx, uint64_t from_idx, uint64_t to_idx);

/* limited_by of the account is nothing, until something stops a put or a move again. */
void store_forget_limit(struct store *store);

/* One step of what the tiers need now and then: memory of dropped pages given back, pages that are old moved to disk, sparse
 * segments compacted. Takes some milliseconds, and waits for the disk. False: there is nothing to do now. One thread at a time, beside
 * all other calls. */
bool store_tend_step(struct store *store, relocate_page relocate, void *context);

/* Move one segment from RAM to disk. 0; -ENOENT: there is none; -ENOSPC and others: why not. */
int store_flush_step(struct store *store, struct error *err);

/* How many bytes may be written to disk from now on. */
#define STORE_ANY_BYTES INT64_MAX
void store_set_write_budget(struct store *store, int64_t bytes);

/* Takes no lock. Exact when no other thread is in the store. */
void store_account(const struct store *store, struct store_account *out);

#endif
