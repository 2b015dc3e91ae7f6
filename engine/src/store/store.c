/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "store/store.h"

#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/failpoint.h"
#include "base/held.h"
#include "base/units.h"
#include "store/log_tier.h"
#include "store/move.h"
#include "store/page_file.h"
#include "store/page_read.h"
#include "store/slot_name.h"
#include "store/snapshot_file.h"
#include "store/tend.h"
#include "store/writes.h"

struct store {
	struct tier *file; /* has the names below SLOT_LOG_FIRST; NULL: no tier has them */
	struct tier *log;  /* has all others; NULL: there is none, and new pages go to the file */
	struct writes writes;
};

static void use_log(struct store *store, struct tier *log)
{
	store->log = log;
	log->writes = &store->writes;
	log_of_tier(log)->writes = &store->writes;
}

static int make_store(struct tier *file, struct tier *log, struct store **out, struct error *err)
{
	struct store *store = calloc(1, sizeof *store);

	if (!store) {
		if (file)
			file->ops->destroy(file);
		if (log)
			log->ops->destroy(log);
		return error_set(err, ENOMEM, "no memory for the store");
	}
	writes_init(&store->writes);
	store->file = file;
	if (file)
		file->writes = &store->writes;
	if (log)
		use_log(store, log);
	*out = store;
	return 0;
}

int store_create(const char *dir, struct store **out, struct error *err)
{
	struct tier *file = NULL;

	int rc = page_file_create(dir, &file, err);

	return rc ? rc : make_store(file, NULL, out, err);
}

int store_adopt(int fd, struct store **out, struct error *err)
{
	struct tier *file = NULL;

	int rc = page_file_adopt(fd, &file, err);

	return rc ? rc : make_store(file, NULL, out, err);
}

int store_open_snapshot(int fd, struct snapshot_version *version, struct store **out, struct error *err)
{
	struct tier *file = NULL;

	int rc = snapshot_file_open(fd, version, &file, err);

	return rc ? rc : make_store(file, NULL, out, err);
}

int store_create_tiers(const struct log_config *config, struct store **out, struct error *err)
{
	struct tier *log = NULL;

	int rc = log_tier_create(config, &log, err);

	return rc ? rc : make_store(NULL, log, out, err);
}

int store_add_tiers(struct store *store, const struct log_config *config, struct error *err)
{
	struct tier *log = NULL;

	int rc = log_tier_create(config, &log, err);

	if (!rc)
		use_log(store, log);
	return rc;
}

void store_destroy(struct store *store)
{
	if (!store)
		return;
	if (store->file)
		store->file->ops->destroy(store->file);
	if (store->log)
		store->log->ops->destroy(store->log);
	free(store);
}

static struct tier *tier_of(const struct store *store, uint64_t slot_idx)
{
	return slot_idx < SLOT_LOG_FIRST ? store->file : store->log;
}

/* How many of the n slots, from the first on, belong to one tier. */
static size_t same_tier(const struct store *store, const uint64_t *slot_idx, size_t n)
{
	size_t run = 1;

	while (run < n && tier_of(store, slot_idx[run]) == tier_of(store, slot_idx[0]))
		run++;
	return run;
}

int store_mark_used(struct store *store, uint64_t slot_idx)
{
	struct tier *tier = tier_of(store, slot_idx);

	return tier ? tier->ops->mark_used(tier, slot_idx) : -ERANGE;
}

void store_ready(struct store *store)
{
	if (store->file)
		store->file->ops->ready(store->file);
	if (store->log)
		store->log->ops->ready(store->log);
}

void store_limit(struct store *store, uint64_t max_bytes, uint64_t keep_free_bytes)
{
	page_file_limit(store->file, max_bytes, keep_free_bytes);
}

static const struct tier_ops *ops_of(const struct store *store)
{
	return store->file ? store->file->ops : store->log->ops;
}

const char *store_file_kind(const struct store *store)
{
	return ops_of(store)->file_kind;
}

bool store_checks_bytes(const struct store *store)
{
	return ops_of(store)->checks_bytes;
}

int store_fd(const struct store *store)
{
	return store->file ? store->file->ops->fd(store->file) : -1;
}

struct store_fds store_tier_fds(const struct store *store)
{
	struct store_fds fds = { -1, -1, -1, -1 };

	if (store->log) {
		const struct log *log = log_of_tier(store->log);

		fds.segments = log->segments.fd;
		fds.ram = log->ram.fd;
		fds.disk = log->disk ? disk_tier_fd(log->disk) : -1;
		fds.key = log->seal ? seal_fd(log->seal) : -1;
	}
	return fds;
}

int store_put(struct store *store, const void *const *page, const uint64_t *owner_idx, size_t n,
	      uint64_t *slot_idx, struct error *err)
{
	struct tier *tier = store->log ? store->log : store->file;

	return n ? tier->ops->put(tier, page, owner_idx, n, slot_idx, err) : 0;
}

static int corrupt(int rc, char *page)
{
	if (!rc && FAILPOINT("store.read.corrupt"))
		page[0] ^= 1;
	return rc;
}

int store_get(struct store *store, const uint64_t *slot_idx, size_t n, void *buf)
{
	char *pages = buf;
	int rc = 0;

	for (size_t i = 0, run; i < n; i += run) {
		struct tier *tier = tier_of(store, slot_idx[i]);
		int run_rc;

		run = same_tier(store, slot_idx + i, n - i);
		run_rc = tier ? tier->ops->get(tier, slot_idx + i, run, pages + bytes_of_pages(i)) : -EIO;
		rc = rc ? rc : run_rc;
	}
	return n ? corrupt(rc, pages) : rc;
}

void store_keep_buffers(struct store *store, bool keeps)
{
	if (store->log)
		images_keep(&log_of_tier(store->log)->images, keeps);
}

int store_begin_read(struct store *store, uint64_t slot_idx, void *page, struct page_read *read)
{
	struct tier *tier = tier_of(store, slot_idx);

	return tier ? corrupt(tier->ops->begin_read(tier, slot_idx, page, read), page) : -EIO;
}

void store_was_read(struct store *store, const struct page_read *read)
{
	struct tier *tier = tier_of(store, read->slot_idx);

	tier->ops->was_read(tier, read);
}

int store_end_read(struct store *store, const struct page_read *read, int result, void *bytes, void *room,
		   void **page)
{
	struct tier *tier = tier_of(store, read->slot_idx);
	char *found = bytes;
	int rc = tier->ops->end_read(tier, read, result, bytes, room, &found);

	*page = found;
	return corrupt(rc, found);
}

bool store_next_data(struct store *store, uint64_t slot_idx, uint64_t *start_idx, uint64_t *end_idx)
{
	int fd = store_fd(store);
	off_t data = lseek(fd, (off_t)bytes_of_pages(slot_idx), SEEK_DATA), hole;

	if (data < 0 && errno == ENXIO)
		return false;
	hole = data < 0 ? -1 : lseek(fd, data, SEEK_HOLE);
	*start_idx = data < 0 ? slot_idx : pages_of_bytes((uint64_t)data);
	*end_idx = hole < 0 ? STORE_SLOTS_MAX : pages_of_bytes((uint64_t)hole + PAGE_BYTES - 1);
	return true;
}

void store_drop(struct store *store, const uint64_t *slot_idx, size_t n)
{
	for (size_t i = 0, run; i < n; i += run) {
		struct tier *tier = tier_of(store, slot_idx[i]);

		run = same_tier(store, slot_idx + i, n - i);
		if (!tier)
			abort();
		tier->ops->drop(tier, slot_idx + i, run);
	}
}

bool store_slot_is_shared(uint64_t slot_idx)
{
	return slot_is_fill(slot_idx);
}

bool store_trim_step(struct store *store)
{
	HELD_MAY_WAIT(WAIT_WRITE);
	return (store->log && store->log->ops->trim_step(store->log)) ||
	       (store->file && store->file->ops->trim_step(store->file));
}

void store_trim(struct store *store)
{
	while (store_trim_step(store))
		;
}

void store_settle(struct store *store)
{
	if (store->log)
		log_seal_open(log_of_tier(store->log));
}

void store_forget_limit(struct store *store)
{
	if (store->log)
		atomic_store(&log_of_tier(store->log)->limited_by, LIMITED_BY_NOTHING);
	if (store->file)
		page_file_forget_limit(store->file);
}

bool store_tend_step(struct store *store, relocate_page relocate, void *context)
{
	HELD_MAY_WAIT(WAIT_WRITE);
	return store->log && log_tend_step(log_of_tier(store->log), relocate, context);
}

int store_tend_fd(const struct store *store)
{
	return store->log ? log_of_tier(store->log)->tend_fd : -1;
}

int64_t store_tend_wait_ms(struct store *store)
{
	return store->log ? log_tend_wait_ms(log_of_tier(store->log)) : -1;
}

void store_host_is_short(struct store *store, bool is_short)
{
	if (store->log)
		log_host_is_short(log_of_tier(store->log), is_short);
}

int store_flush_step(struct store *store, struct error *err)
{
	HELD_MAY_WAIT(WAIT_WRITE);
	return store->log ? log_flush_step(log_of_tier(store->log), err) : -ENOENT;
}

void store_limit_writes(struct store *store, uint64_t max_bytes)
{
	struct log *log = store->log ? log_of_tier(store->log) : NULL;

	if (atomic_exchange(&store->writes.max_bytes, max_bytes) >= max_bytes || !log)
		return;
	atomic_store(&log->move_again_s, 0);
	log_wake_tender(log);
}

void store_count_writes_in(struct store *store, _Atomic uint64_t *written_bytes)
{
	store->writes.written_bytes = written_bytes;
}

void store_account(const struct store *store, struct store_account *out)
{
	*out = (struct store_account){ .written_bytes = atomic_load(store->writes.written_bytes) };
	if (store->file)
		store->file->ops->account(store->file, out);
	if (store->log)
		store->log->ops->account(store->log, out);
}
