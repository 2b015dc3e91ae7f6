/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "wake/wake_record.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "base/held.h"
#include "wake/wake_layout.h"

static const char MAGIC[8] = "VMMSWAPW";
#define VERSION 2

/* More touches during a swap-out are not noted: there must be room for those of the wake-up. */
#define LEAVING_TOUCHES_MAX (WAKE_PAGES_MAX / 8)

uint64_t wake_now_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

void wake_forget(struct wake_record *record, uint64_t offset_bytes, uint64_t size_bytes)
{
	fallocate(record->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)offset_bytes,
		  (off_t)size_bytes);
}

void wake_members(struct wake_record *record, uint32_t which, bool is_set)
{
	const struct wake_entry *entries = wake_set(record, which);
	uint32_t n = atomic_load(&record->header->set_n[which]);

	for (uint32_t i = 0; i < n; i++) {
		if (!is_set || ((entries[i].flags & ENTRY_WOKE) && entries[i].idle_times < IDLE_TIMES_KNOWN))
			wake_put_bit(record->members, entries[i].page_idx, is_set);
		if (!is_set || (entries[i].flags & ENTRY_STAYS))
			wake_put_bit(record->stays, entries[i].page_idx, is_set);
		if (!is_set || (entries[i].flags & ENTRY_HELD))
			wake_put_bit(record->held, entries[i].page_idx, is_set);
	}
}

static bool is_whole(struct wake_record *record)
{
	const struct wake_header *header = record->header;
	uint32_t which = atomic_load(&header->current);
	uint32_t n;

	if (memcmp(header->magic, MAGIC, sizeof MAGIC) != 0 || header->version != VERSION || which > 1 ||
	    atomic_load(&header->phase) > WAKE_LEAVING)
		return false;
	n = atomic_load(&header->set_n[which]);
	if (n > WAKE_PAGES_MAX)
		return false;
	for (uint32_t i = 0; i < n; i++)
		if (wake_set(record, which)[i].page_idx > TOUCH_PAGE_MASK)
			return false;
	return true;
}

static void begin_anew(struct wake_record *record)
{
	wake_forget(record, 0, WAKE_FILE_BYTES);
	memcpy(record->header->magic, MAGIC, sizeof MAGIC);
	record->header->version = VERSION;
}

/* NULL: no address space. */
static _Atomic uint8_t *map_bits(void)
{
	void *bits = mmap(NULL, MEMBERS_BYTES, PROT_READ | PROT_WRITE,
			  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	return bits == MAP_FAILED ? NULL : bits;
}

static void unmap_bits(_Atomic uint8_t *bits)
{
	if (bits)
		munmap((void *)bits, MEMBERS_BYTES);
}

static int map_file(int fd, struct wake_record **out, struct error *err)
{
	struct wake_record *record = calloc(1, sizeof *record);

	if (!record) {
		close(fd);
		return error_set(err, ENOMEM, "no memory for the record of wake-ups");
	}
	record->fd = fd;
	pthread_mutex_init(&record->lock, NULL);
	record->seed = wake_now_ms() * 0x9e3779b97f4a7c15 | 1;
	record->base = mmap(NULL, WAKE_FILE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0);
	record->members = map_bits();
	record->stays = map_bits();
	record->held = map_bits();
	record->header = (struct wake_header *)record->base;
	if (record->base == MAP_FAILED || !record->members || !record->stays || !record->held) {
		wake_record_destroy(record);
		return error_set(err, ENOMEM, "no address space for the record of wake-ups");
	}
	*out = record;
	return 0;
}

int wake_record_create(struct wake_record **out, struct error *err)
{
	int fd = memfd_create("vmmswap wake record", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	int rc;

	if (fd < 0)
		return error_set(err, errno, "cannot create the memfd of the record of wake-ups: %s",
				 strerror(errno));
	if (ftruncate(fd, (off_t)WAKE_FILE_BYTES) != 0 ||
	    fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) != 0) {
		rc = error_set(err, errno, "cannot size the record of wake-ups: %s", strerror(errno));
		close(fd);
		return rc;
	}
	rc = map_file(fd, out, err);
	if (!rc)
		begin_anew(*out);
	return rc;
}

/* A file that could shrink under our mapping would kill us. */
static bool can_be_mapped(int fd)
{
	int seals = fcntl(fd, F_GET_SEALS);

	return seals >= 0 && (seals & F_SEAL_SHRINK) && lseek(fd, 0, SEEK_END) == (off_t)WAKE_FILE_BYTES;
}

int wake_record_adopt(int fd, struct wake_record **out, struct error *err)
{
	int own, rc;

	if (!can_be_mapped(fd))
		return wake_record_create(out, err);
	own = fcntl(fd, F_DUPFD_CLOEXEC, 3);
	if (own < 0)
		return error_set(err, errno, "cannot dup the record of wake-ups: %s", strerror(errno));
	rc = map_file(own, out, err);
	if (rc)
		return rc;
	if (!is_whole(*out))
		begin_anew(*out);
	wake_members(*out, atomic_load(&(*out)->header->current), true);
	return 0;
}

void wake_record_destroy(struct wake_record *record)
{
	if (!record)
		return;
	if (record->base != MAP_FAILED)
		munmap(record->base, WAKE_FILE_BYTES);
	unmap_bits(record->members);
	unmap_bits(record->stays);
	unmap_bits(record->held);
	pthread_mutex_destroy(&record->lock);
	close(record->fd);
	free(record);
}

int wake_record_fd(const struct wake_record *record)
{
	return record->fd;
}

static void clear_cycle(struct wake_header *header)
{
	atomic_store(&header->touches_n, 0);
	atomic_store(&header->leaving_n, 0);
	atomic_store(&header->noted_n, 0);
	atomic_store(&header->woke, 0);
	atomic_store(&header->ordered, 0);
	atomic_store(&header->spoiled, 0);
	atomic_store(&header->offered_n, 0);
	atomic_store(&header->held_n, 0);
	atomic_store(&header->idle_from_ms, 0);
	atomic_store(&header->idle_until_ms, 0);
	atomic_store(&header->waking_at, 0);
	atomic_store(&header->calm_at, 0);
	atomic_store(&header->again_at, 0);
}

void wake_record_begin_leaving(struct wake_record *record)
{
	HELD_MAY_WAIT(WAIT_TIME);
	pthread_mutex_lock(&record->lock);
	clear_cycle(record->header);
	atomic_store(&record->header->phase, WAKE_LEAVING);
	pthread_mutex_unlock(&record->lock);
}

void wake_record_begin(struct wake_record *record)
{
	struct wake_header *header = record->header;
	uint32_t touches_n;

	HELD_MAY_WAIT(WAIT_TIME);
	pthread_mutex_lock(&record->lock);
	if (atomic_load(&header->phase) != WAKE_LEAVING)
		clear_cycle(header);
	touches_n = atomic_load(&header->touches_n);
	atomic_store(&header->leaving_n, touches_n);
	atomic_store(&header->idle_from_ms, wake_now_ms());
	atomic_store(&record->burst_n, 0);
	atomic_store(&header->phase, WAKE_IDLE);
	pthread_mutex_unlock(&record->lock);
}

static bool begin_waking(struct wake_record *record, uint64_t from_ms, uint32_t pages_before)
{
	struct wake_header *header = record->header;
	uint32_t idle = WAKE_IDLE, touches_n = atomic_load(&header->touches_n);
	uint32_t waking_at = touches_n > pages_before ? touches_n - pages_before : 0;

	if (!atomic_compare_exchange_strong(&header->phase, &idle, WAKE_WAKING))
		return false;
	atomic_store(&header->wake_from_ms, from_ms);
	atomic_store(&header->wake_until_ms, from_ms ? wake_now_ms() : 0);
	atomic_store(&header->waking_at, waking_at);
	atomic_store(&header->held_touched_n, 0);
	atomic_store(&header->idle_until_ms, from_ms ? from_ms : wake_now_ms());
	if (!atomic_exchange(&header->woke, 1))
		atomic_store(&header->woke_at, waking_at);
	else if (!atomic_load(&header->again_at))
		atomic_store(&header->again_at, waking_at);
	return true;
}

bool wake_record_wake(struct wake_record *record)
{
	if (!begin_waking(record, 0, 0))
		return false;
	atomic_store(&record->header->ordered, 1);
	return true;
}

static void note_waking(struct wake_header *header, uint64_t at_ms)
{
	uint64_t none = 0;

	if (!atomic_load_explicit(&header->wake_from_ms, memory_order_relaxed))
		atomic_compare_exchange_strong(&header->wake_from_ms, &none, at_ms);
	atomic_store_explicit(&header->wake_until_ms, at_ms, memory_order_relaxed);
}

/* Times have 32 bits here. */
static bool is_within(uint64_t at_ms, uint32_t since_ms, uint32_t limit_ms)
{
	return (uint32_t)at_ms - since_ms <= limit_ms;
}

/* True if touch number n, of this page, is one too many for an idle guest. */
static bool wakes_up(struct wake_record *record, uint64_t page_idx, uint32_t n, uint64_t at_ms)
{
	_Atomic uint64_t *touches = wake_touches(record);
	uint32_t k, since_ms;

	if (n >= WAKE_ANY_PAGES + atomic_load_explicit(&record->header->leaving_n, memory_order_relaxed) &&
	    n < WAKE_PAGES_MAX) {
		since_ms =
			(uint32_t)(atomic_load_explicit(&touches[n - WAKE_ANY_PAGES], memory_order_relaxed) >>
				   TOUCH_MS_SHIFT);
		if (is_within(at_ms, since_ms, WAKE_ANY_MS))
			return begin_waking(record, at_ms - ((uint32_t)at_ms - since_ms), WAKE_ANY_PAGES);
	}
	if (!wake_has_bit(record->members, page_idx))
		return false;
	k = atomic_fetch_add(&record->burst_n, 1);
	since_ms = atomic_exchange(&record->burst_ms[k % WAKE_BURST_PAGES], (uint32_t)at_ms);
	return k >= WAKE_BURST_PAGES && is_within(at_ms, since_ms, WAKE_BURST_MS) &&
	       begin_waking(record, at_ms - ((uint32_t)at_ms - since_ms), WAKE_BURST_PAGES + 1);
}

bool wake_record_touch(struct wake_record *record, uint64_t page_idx, bool missing, bool write)
{
	struct wake_header *header = record->header;
	uint32_t phase = atomic_load_explicit(&header->phase, memory_order_relaxed), n;
	uint64_t at_ms;

	if (phase == WAKE_OFF || phase == WAKE_SETTLED || page_idx > TOUCH_PAGE_MASK)
		return false;
	at_ms = wake_now_ms();
	n = atomic_load_explicit(&header->touches_n, memory_order_relaxed);
	if (phase == WAKE_LEAVING && n >= LEAVING_TOUCHES_MAX)
		return false;
	if (n < WAKE_PAGES_MAX)
		n = atomic_fetch_add(&header->touches_n, 1);
	if (n < WAKE_PAGES_MAX)
		atomic_store_explicit(&wake_touches(record)[n],
				      at_ms << TOUCH_MS_SHIFT | TOUCH_VALID | (write ? TOUCH_WRITE : 0) |
					      page_idx,
				      memory_order_relaxed);
	if (!missing || phase == WAKE_LEAVING)
		return false;
	if (phase == WAKE_WAKING) {
		note_waking(header, at_ms);
		if (wake_has_bit(record->held, page_idx))
			atomic_fetch_add(&header->held_touched_n, 1);
		return false;
	}
	return wakes_up(record, page_idx, n, at_ms);
}

void wake_record_spoil(struct wake_record *record)
{
	struct wake_header *header = record->header;
	uint64_t none = 0;

	atomic_store(&header->spoiled, 1);
	atomic_compare_exchange_strong(&header->idle_until_ms, &none, wake_now_ms());
	atomic_store(&header->stays_n, 0); /* nothing is out that they could differ from */
	atomic_store(&header->phase, WAKE_OFF);
}

uint64_t wake_random(struct wake_record *record)
{
	record->seed ^= record->seed << 13;
	record->seed ^= record->seed >> 7;
	record->seed ^= record->seed << 17;
	return record->seed;
}

void wake_record_stats(const struct wake_record *record, struct wake_stats *out)
{
	const struct wake_header *header = record->header;

	*out = (struct wake_stats){
		.set_pages = atomic_load(&header->set_n[atomic_load(&header->current) & 1]),
		.idle_pages = atomic_load(&header->stays_n),
		.touched_pages = wake_faults_after(header, atomic_load(&header->leaving_n)),
		.prefetched_pages = atomic_load(&header->prefetched_pages),
		.wasted_pages = atomic_load(&header->wasted_pages),
		.wake_ms = atomic_load(&header->last_wake_ms),
		.is_waking = atomic_load(&header->phase) == WAKE_WAKING,
		.is_replaying = atomic_load(&header->replaying),
		.is_ordered = atomic_load(&header->ordered),
	};
	if (out->is_waking)
		out->wake_ms = wake_span_ms(header);
}
