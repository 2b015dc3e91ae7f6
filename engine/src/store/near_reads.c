/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "store/near_reads.h"

#include <stdlib.h>
#include <string.h>

#include "store/read_file.h"

/* A disk reads what lies between in less time than it takes to begin another read. */
#define GAP_BYTES_MAX ((uint64_t)32 << 10)

struct place {
	int fd;
	uint64_t from_bytes, end_bytes;
	size_t i; /* the caller's page */
};

static int by_place(const void *left, const void *right)
{
	const struct place *a = left, *b = right;

	if (a->fd != b->fd)
		return a->fd < b->fd ? -1 : 1;
	return a->from_bytes < b->from_bytes ? -1 : a->from_bytes > b->from_bytes;
}

/* The places of those pages that a device has, in order. */
static size_t find_places(struct near_reads *self, struct place *places)
{
	size_t n = 0;

	for (size_t i = 0; i < self->n; i++) {
		const struct page_read *read = &self->read[i];

		if (self->result[i] == 1)
			places[n++] = (struct place){ read->fd, read->offset_bytes,
						      read->offset_bytes + read->size_bytes, i };
	}
	qsort(places, n, sizeof *places, by_place);
	return n;
}

/* How many places, from the first on, one read covers. *gaps_bytes: what may still lie between. */
static size_t near_run(const struct place *places, size_t n, uint64_t *end_bytes, uint64_t *gaps_bytes)
{
	size_t run = 1;

	*end_bytes = places->end_bytes;
	for (; run < n && places[run].fd == places->fd; run++) {
		uint64_t gap_bytes =
			places[run].from_bytes > *end_bytes ? places[run].from_bytes - *end_bytes : 0;

		if (gap_bytes > GAP_BYTES_MAX || gap_bytes > *gaps_bytes)
			break;
		*gaps_bytes -= gap_bytes;
		if (places[run].end_bytes > *end_bytes)
			*end_bytes = places[run].end_bytes;
	}
	return run;
}

/* Gaps were read, too, and pages that nobody wants any more. */
static void run_was_read(const struct near_run *run)
{
	const struct page_read read = { .slot_idx = run->slot_idx,
					.fd = run->file.fd,
					.offset_bytes = run->file.offset_bytes,
					.size_bytes = run->file.size_bytes };

	store_was_read(run->of->store, &read);
}

static void begin_run(struct near_reads *self, struct reads *reads, struct near_run *run)
{
	struct pieces pieces;

	if (reads) {
		self->pending_n++;
		reads_begin(reads, &run->file);
		return;
	}
	pieces_of_one(&pieces, run->file.bytes, run->file.size_bytes);
	run->file.result = read_file(run->file.fd, &pieces, run->file.offset_bytes);
	run_was_read(run);
}

void near_reads_find(struct near_reads *self, const uint64_t *slot_idx, size_t n)
{
	self->n = n;
	self->runs_n = self->pending_n = 0;
	for (size_t i = 0; i < n; i++)
		self->result[i] = store_begin_read(self->store, slot_idx[i], self->pages + bytes_of_pages(i),
						   &self->read[i]);
}

void near_reads_begin(struct near_reads *self, struct reads *reads)
{
	struct place places[NEAR_PAGES_MAX];
	uint64_t gaps_bytes = NEAR_GAPS_BYTES, end_bytes;
	char *raw = self->raw;
	size_t places_n = find_places(self, places);

	for (size_t i = 0, pages; i < places_n; i += pages) {
		struct near_run *run = &self->runs[self->runs_n];

		pages = near_run(places + i, places_n - i, &end_bytes, &gaps_bytes);
		for (size_t k = 0; k < pages; k++)
			self->run[places[i + k].i] = (uint8_t)self->runs_n;
		run->of = self;
		run->slot_idx = self->read[places[i].i].slot_idx;
		run->file.fd = places[i].fd;
		run->file.bytes = raw;
		run->file.offset_bytes = places[i].from_bytes;
		run->file.size_bytes = end_bytes - places[i].from_bytes;
		raw += run->file.size_bytes;
		self->runs_n++;
		begin_run(self, reads, run);
	}
}

void near_reads_run_ended(struct file_read *file)
{
	struct near_run *run = (struct near_run *)file;

	run_was_read(run);
	run->of->pending_n--;
}

int near_reads_end(struct near_reads *self, size_t i)
{
	const struct file_read *file = &self->runs[self->run[i]].file;
	char *place = self->pages + bytes_of_pages(i), *bytes;
	const struct page_read *read = &self->read[i];
	void *page;

	if (self->result[i] != 1)
		return self->result[i];
	bytes = file->bytes + (read->offset_bytes - file->offset_bytes);
	self->result[i] = store_end_read(self->store, read, file->result, bytes, place, &page);
	if (!self->result[i] && page != place)
		memcpy(place, page, PAGE_BYTES);
	return self->result[i];
}
