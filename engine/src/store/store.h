/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Where swapped-out pages are stored. Put a page and get a slot index; get the page by that index; drop it.
 *
 * A slot index is a name of 35 bits (slot_name.h) that says which tier has the page: names below 2^32 are
 * pages of one file, the swap file of version 0.1 or the memory file of a snapshot; those above are records
 * of the log, which begin in RAM and age to disk (log.h). A store has a file, the log, or both. If it has
 * both, new pages go to the log, and pages in the file stay there until they are dropped.
 *
 * Nothing is left in the page cache: files are written and read with O_DIRECT. Where the file system refuses
 * that, they go through the page cache, and each call drops what it used from the cache before it returns.
 *
 * Threads: any number of threads may call any function at once, except those that make a store, store_limit,
 * store_next_data, store_count_writes_in, store_mark_used, store_ready and store_destroy. store_get takes no
 * lock. A get that races with the drop of its slot gives an error, old bytes or another page's bytes: a
 * caller that lets this happen must notice it and discard the result.
 *
 * Dropping a slot twice, or one that was never put, is a bug of ours that could hand one page's bytes to
 * another: the process aborts, and its successor rebuilds the store's map from the page map. */
#ifndef VMMSWAP_STORE_H
#define VMMSWAP_STORE_H

#include "base/error.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Slot indexes of a file are below this: they fit in 32 bits, and UINT32_MAX is left to mean "none". 16 TiB
 * of pages. */
#define STORE_SLOTS_MAX ((uint64_t)UINT32_MAX)

struct page_read;
struct store;

/* What stopped a put or a move. */
enum limited_by {
	LIMITED_BY_NOTHING,
	LIMITED_BY_RAM_TIER,
	LIMITED_BY_DISK_TIER,
	LIMITED_BY_WRITE_BUDGET,
	LIMITED_BY_NO_SPACE
};

struct store_account {
	uint64_t used_slots;	/* slots that were put and not dropped */
	uint64_t ram_bytes;	/* memory of the RAM tier, as the kernel counts */
	uint64_t disk_bytes;	/* blocks of the files as the file system counts them */
	uint64_t written_bytes; /* to the files: see store_count_writes_in() */
	uint64_t same_filled_pages, raw_pages;
	uint64_t record_bytes;	    /* of all records in use, in RAM and on disk */
	enum limited_by limited_by; /* the last put or move that failed, since store_forget_limit() */
};

/* True if a put failed with this because of a limit, which limited_by of the account names, and not because
 * something is broken. */
static inline bool store_is_limit(int code)
{
	return code == ENOSPC || code == EDQUOT || code == EFBIG;
}

/* Create an empty store: a file without a name in dir (mode 0, cannot be linked), gone when its last fd
 * closes. On error -errno, with what to do: no such directory, no O_TMPFILE there, no permission, ... */
int store_create(const char *dir, struct store **out, struct error *err);

/* Recovery: take over the file of a store whose process has died. fd is dup'ed; the caller keeps its own.
 * Then call store_mark_used() for each slot in the page map; store_ready() frees all others. store_get()
 * works from the start; store_put() and store_drop() only after store_ready(). -EINVAL: fd is not a regular
 * file open for reading and writing. */
int store_adopt(int fd, struct store **out, struct error *err);
/* -ERANGE: beyond the file's end; -EEXIST: already marked. Both mean a damaged page map. */
int store_mark_used(struct store *store, uint64_t slot_idx);
void store_ready(struct store *store);

struct log_config;
/* Create a store of tiers, or take over that of a predecessor whose fds are given: see log.h. */
int store_create_tiers(const struct log_config *config, struct store **out, struct error *err);
/* Add the log to a store that has a file; new pages go to the log. In an adopted store, call this before
 * store_ready(). */
int store_add_tiers(struct store *store, const struct log_config *config, struct error *err);

/* Open the memory file of a snapshot, as a store in which every slot already has a page: page i of the file
 * is slot i. It is read through the page cache, which clones of one snapshot share, and never written:
 * store_put() returns -EROFS, store_drop() does nothing. Once the file is written to or its length changes,
 * store_get() returns -EBADMSG. fd is dup'ed. *version says what the file was when its VM registered; if it
 * is all zero, the VM registers now, and *version is filled in. -EINVAL: not a regular file open for
 * reading. */
struct snapshot_version {
	uint64_t size_bytes;
	int64_t mtime_ns;
};
int store_open_snapshot(int fd, struct snapshot_version *version, struct store **out, struct error *err);

/* Find the first run of slots at or after slot_idx that are not a hole in the file; false if there is none.
 * If the file system does not report holes, everything is data. */
bool store_next_data(struct store *store, uint64_t slot_idx, uint64_t *start_idx, uint64_t *end_idx);

/* Call before the first put. max_bytes: what the file may occupy on the disk. keep_free_bytes: what a put
 * leaves free on the file system for others, not counting what other stores write at the same moment. 0: no
 * limit. Slots that already have disk blocks are used regardless. */
void store_limit(struct store *store, uint64_t max_bytes, uint64_t keep_free_bytes);

/* Closes the fd; the pages are lost unless somebody else holds a dup of it. NULL is allowed. */
void store_destroy(struct store *store);

/* The user's name for its file, as in "the swap file". */
const char *store_file_kind(const struct store *store);

/* True if store_get() itself checks (-EBADMSG) that the bytes are what they were when the VM registered:
 * nobody has hashes of them. */
bool store_checks_bytes(const struct store *store);

/* The store's own fds, for the fd store; valid until store_destroy(). -1: it has none. */
int store_fd(const struct store *store); /* of the file */
struct store_fds {
	int segments, ram, disk, key;
};
struct store_fds store_tier_fds(const struct store *store);

/* Store n pages; page[i], page aligned, gets slot_idx[i]. owner_idx[i], below 2^40, is the name of page i in
 * calls from store_tend_step(); NULL if the pages are never relocated. All or nothing: on error no slot is
 * taken. However the pages lie in memory, it makes as few writes as the free slots allow, and one if they are
 * contiguous: 2 MiB at a time is fastest. -ENOSPC, -EDQUOT, -EFBIG, -EIO, ...: *err names the directory and
 * says what to do; of a limit, see store_is_limit(). Pages stored before stay readable. A process with
 * RLIMIT_FSIZE must ignore SIGXFSZ (Python does).
 *
 * If a single page cannot be written (EIO), the put tries another place, and the bad place is not used again
 * until the file is emptied. So if a put of several pages fails, a caller that puts them one by one loses
 * only those that cannot be written. */
int store_put(struct store *store, const void *const *page, const uint64_t *owner_idx, size_t n,
	      uint64_t *slot_idx, struct error *err);

/* Read n slots into buf (page aligned, n pages), slot_idx[i] into page i. Reads from disk are sorted, and
 * those that lie near each other are merged. 0 or -errno; a short read is -EIO. On error the contents of buf
 * are undefined. */
int store_get(struct store *store, const uint64_t *slot_idx, size_t n, void *buf);

/* A long job begins to read, or has ended: what store_get() needs memory for is kept from one call to the
 * next, or is given back. */
void store_keep_buffers(struct store *store, bool keeps);

/* Begin to read one slot (page_read.h). 0: no device was needed, and the page is in *page. 1: read
 * read->size_bytes at read->offset_bytes of read->fd, call store_was_read(), and store_end_read() if the page
 * is wanted still. -errno. It waits for no device: what is in RAM, or in a file on tmpfs, it reads itself.
 * page: page aligned. */
int store_begin_read(struct store *store, uint64_t slot_idx, void *page, struct page_read *read);

/* A read of a device has ended, whatever became of it: what was read must not stay in the page cache. read:
 * size_bytes at offset_bytes, also of many pages and what lies between; slot_idx is of one of them. */
void store_was_read(struct store *store, const struct page_read *read);

/* End a read that store_begin_read() began. result: 0 if all of it was read, else -errno. bytes: what was
 * read, page aligned; room: one page, page aligned, that does not overlap it. *page: the page, in one of the
 * two. 0 or -errno; what is said above of a get that races with the drop of its slot is true until here. */
int store_end_read(struct store *store, const struct page_read *read, int result, void *bytes, void *room,
		   void **page);

/* True if many pages may share the slot: it stands for one word that fills a page. */
bool store_slot_is_shared(uint64_t slot_idx);

/* Free n slots, so that other pages can be put there. No I/O: fault threads may call it. Only store_trim() or
 * store_trim_step() releases the disk space. */
void store_drop(struct store *store, const uint64_t *slot_idx, size_t n);

/* Release disk space: one extent of 2 MiB without used slots; or the file's own metadata, once nothing is
 * used and all is punched. If the file system cannot punch: 64 MiB at a time, once nothing is used. False:
 * there was nothing to release. For idle moments: it waits for the disk, on some up to 1 ms for a punch, and
 * delays reads. */
bool store_trim_step(struct store *store);
/* Release all of it. For the end of a long job. */
void store_trim(struct store *store);

/* Seal what a swap-out began to fill, so that it can age: no more pages are added to it. For the end of a
 * job. */
void store_settle(struct store *store);

/* Change the owner's page from from_idx to to_idx, by one atomic change of the page's word. False: the page
 * is no longer at from_idx, or somebody is working on it; nothing changed. The bytes at to_idx are in place
 * when this is called. */
typedef bool (*relocate_page)(void *context, uint64_t owner_idx, uint64_t from_idx, uint64_t to_idx);

/* Reset limited_by of the account to nothing, until a limit stops a put or a move again. */
void store_forget_limit(struct store *store);

/* One step of the tiers' maintenance (tend.h): release memory of dropped pages, move pages to disk, compact
 * sparse segments. Takes some milliseconds, and waits for the disk. False: there is nothing to do now. Beside
 * any other call. */
bool store_tend_step(struct store *store, relocate_page relocate, void *context);

/* How long there will be nothing to do for store_tend_step(), unless store_tend_fd() becomes readable before;
 * -1: until it does. store_tend_fd() is -1 if the store has no tiers. */
int64_t store_tend_wait_ms(struct store *store);
int store_tend_fd(const struct store *store);

/* The host is short of memory, or no longer: while it is, all that can move goes to disk. */
void store_host_is_short(struct store *store, bool is_short);

/* Move one segment from RAM to disk. 0; -ENOENT: there is none; -ENOSPC and others: it could not be moved. */
int store_flush_step(struct store *store, struct error *err);

/* No byte is written to disk that would bring written_bytes of the account over max_bytes. UINT64_MAX: no
 * limit. */
void store_limit_writes(struct store *store, uint64_t max_bytes);

/* Count bytes written to disk there: in memory that outlives the process. What stands there is added to. */
void store_count_writes_in(struct store *store, _Atomic uint64_t *written_bytes);

/* Takes no lock. Exact when no other thread is in the store. */
void store_account(const struct store *store, struct store_account *out);

#endif
