/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "store/log_tier.h"

#include <errno.h>
#include <stdlib.h>

#include "base/units.h"
#include "store/compact.h"

struct log_tier {
	struct tier tier;
	struct log *log;
	bool ready;
};

struct log *log_of_tier(struct tier *tier)
{
	return ((struct log_tier *)tier)->log;
}

static int mark_used(struct tier *tier, uint64_t slot_idx)
{
	return log_mark_used(log_of_tier(tier), slot_idx);
}

static void ready(struct tier *tier)
{
	struct log_tier *self = (struct log_tier *)tier;

	if (!self->ready)
		log_recovered(self->log);
	self->ready = true;
}

/* Each thread has a writer: while there are no more threads than writers, no two threads wait for each
 * other. */
static size_t own_writer(void)
{
	static _Atomic size_t next;
	static _Thread_local size_t own;

	if (!own)
		own = 1 + atomic_fetch_add(&next, 1) % LOG_COMPACTOR;
	return own - 1;
}

#define PIECE_PAGES ((size_t)64)

static int put(struct tier *tier, const void *const *page, const uint64_t *owner_idx, size_t n,
	       uint64_t *slot_idx, struct error *err)
{
	struct log_tier *self = (struct log_tier *)tier;
	struct page_to_put puts[PIECE_PAGES];
	size_t done = 0, piece = 0, put_n = 0;

	if (!self->ready)
		return error_set(err, EINVAL,
				 "the store is not ready: its used slots are still being marked");
	for (; done < n && put_n == piece; done += put_n) {
		piece = n - done < PIECE_PAGES ? n - done : PIECE_PAGES;
		for (size_t i = 0; i < piece; i++)
			puts[i] = (struct page_to_put){
				.page = page[done + i],
				.owner = owner_idx ? owner_idx[done + i] : 0,
			};
		put_n = log_put(self->log, own_writer(), puts, piece, err);
		for (size_t i = 0; i < put_n; i++)
			slot_idx[done + i] = puts[i].slot_idx;
	}
	if (done == n)
		return 0;
	for (size_t i = 0; i < done; i++)
		log_drop(self->log, slot_idx[i]);
	/* Too little memory is a limit like any other: what does not go out stays where it is. */
	if (err->code == ENOMEM) {
		err->code = ENOSPC;
		atomic_store(&self->log->limited_by,
			     self->log->disk ? LIMITED_BY_NO_SPACE : LIMITED_BY_RAM_TIER);
	}
	return -err->code;
}

static int get(struct tier *tier, const uint64_t *slot_idx, size_t n, void *buf)
{
	int codes[CHUNK_PAGES], rc = 0;

	if (n == 1)
		return log_get(log_of_tier(tier), slot_idx[0], buf);
	for (size_t i = 0, part; i < n; i += part) {
		part = n - i < CHUNK_PAGES ? n - i : CHUNK_PAGES;
		log_get_many(log_of_tier(tier), slot_idx + i, part, (char *)buf + bytes_of_pages(i), codes);
		for (size_t k = 0; k < part; k++)
			rc = rc ? rc : codes[k];
	}
	return rc;
}

static int begin_read(struct tier *tier, uint64_t slot_idx, void *page, struct page_read *read)
{
	return log_begin_read(log_of_tier(tier), slot_idx, page, read);
}

static void was_read(struct tier *tier, const struct page_read *read)
{
	disk_tier_was_read(log_of_tier(tier)->disk, read);
}

static int end_read(struct tier *tier, const struct page_read *read, int result, char *bytes, char *room,
		    char **page)
{
	*page = room;
	return log_end_read(log_of_tier(tier), read, result, bytes, room);
}

static void drop(struct tier *tier, const uint64_t *slot_idx, size_t n)
{
	for (size_t i = 0; i < n; i++)
		log_drop(log_of_tier(tier), slot_idx[i]);
}

static bool trim_step(struct tier *tier)
{
	struct log *log = log_of_tier(tier);
	bool is_more;

	if (!((struct log_tier *)tier)->ready)
		return false;
	/* What the tender has in its hands now is released when it is done. */
	pthread_mutex_lock(&log->tend_lock);
	is_more = log_tidy_step(log);
	pthread_mutex_unlock(&log->tend_lock);
	return is_more;
}

static void account(struct tier *tier, struct store_account *out)
{
	struct log_account log;

	log_account(log_of_tier(tier), &log);
	out->used_slots += log.records + log.fill_pages;
	out->ram_bytes += log.ram_bytes;
	out->disk_bytes += log.disk_bytes;
	out->same_filled_pages += log.fill_pages;
	out->raw_pages += log.raw_records;
	out->record_bytes += log.record_bytes;
	if (atomic_load(&log_of_tier(tier)->limited_by))
		out->limited_by = atomic_load(&log_of_tier(tier)->limited_by);
}

static int no_fd(const struct tier *tier)
{
	(void)tier;
	return -1;
}

static void destroy(struct tier *tier)
{
	log_destroy(log_of_tier(tier));
	free(tier);
}

static const struct tier_ops ops = {
	.file_kind = "swap",
	.checks_bytes = false,
	.mark_used = mark_used,
	.ready = ready,
	.put = put,
	.get = get,
	.begin_read = begin_read,
	.was_read = was_read,
	.end_read = end_read,
	.drop = drop,
	.trim_step = trim_step,
	.account = account,
	.fd = no_fd,
	.destroy = destroy,
};

int log_tier_create(const struct log_config *config, struct tier **out, struct error *err)
{
	struct log_tier *self = calloc(1, sizeof *self);
	int rc;

	if (!self)
		return error_set(err, ENOMEM, "no memory for the store");
	self->tier.ops = &ops;
	rc = log_create(config, &self->log, err);
	if (rc) {
		free(self);
		return rc;
	}
	self->ready = config->segments_fd < 0;
	*out = &self->tier;
	return 0;
}
