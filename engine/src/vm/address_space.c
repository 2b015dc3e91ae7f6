/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "vm/address_space.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/failpoint.h"
#include "base/held.h"

static uint64_t range_end(const struct range *range)
{
	return range->addr + bytes_of_pages(range->pages);
}

static void process_free(struct process *process)
{
	close(process->uffd);
	free(process->ranges);
	free(process);
}

static void drop_spares(struct address_spaces *spaces)
{
	for (; spaces->spares_n; spaces->spares_n--) {
		free(spaces->spares[spaces->spares_n - 1]->ranges);
		free(spaces->spares[spaces->spares_n - 1]);
	}
}

void address_spaces_destroy(struct address_spaces *spaces)
{
	for (size_t i = 0; i < spaces->n; i++)
		process_free(spaces->processes[i]);
	drop_spares(spaces);
	free(spaces->processes);
	memset(spaces, 0, sizeof *spaces);
}

static bool have_room(struct address_spaces *spaces, size_t processes_n)
{
	size_t room = spaces->room ? spaces->room * 2 : 8 + ADDRESS_SPACE_SPARES;
	struct process **grown;

	if (spaces->room - spaces->n >= processes_n)
		return true;
	grown = realloc(spaces->processes, room * sizeof *grown);
	if (!grown)
		return false;
	spaces->processes = grown;
	spaces->room = room;
	return true;
}

static struct process *new_process(size_t ranges_n)
{
	struct process *process = calloc(1, sizeof *process);

	if (!process)
		return NULL;
	process->ranges = ranges_n ? calloc(ranges_n, sizeof *process->ranges) : NULL;
	process->ranges_room = ranges_n;
	if (ranges_n && !process->ranges) {
		free(process);
		return NULL;
	}
	return process;
}

size_t address_space_reserve(struct address_spaces *spaces, size_t processes_n, size_t ranges_n)
{
	HELD_NEEDS(HELD_GATE_ALONE);
	if (ranges_n > spaces->spares_ranges) {
		drop_spares(spaces);
		spaces->spares_ranges = ranges_n;
	}
	while (spaces->spares_n < processes_n) {
		struct process *spare =
			FAILPOINT("spaces.reserve") ? NULL : new_process(spaces->spares_ranges);

		if (!spare)
			break;
		spaces->spares[spaces->spares_n++] = spare;
	}
	if (!have_room(spaces, spaces->spares_n))
		return 0;
	return spaces->spares_n < processes_n ? spaces->spares_n : processes_n;
}

struct process *address_space_add(struct address_spaces *spaces, int uffd)
{
	struct process *process;

	HELD_NEEDS(HELD_GATE_ALONE);
	if (!have_room(spaces, 1))
		return NULL;
	process = spaces->spares_n ? spaces->spares[--spaces->spares_n] : new_process(0);
	if (!process)
		return NULL;
	process->id = spaces->next_id++;
	process->uffd = uffd;
	spaces->processes[spaces->n++] = process;
	atomic_fetch_add(&spaces->living, 1);
	return process;
}

void address_space_leave(struct address_spaces *spaces, struct process *process)
{
	HELD_NEEDS(HELD_GATE_ALONE);
	if (!process->gone)
		atomic_fetch_sub(&spaces->living, 1);
	process->leaving = process->outside = true;
}

void address_space_remove(struct address_spaces *spaces, uint32_t id)
{
	HELD_NEEDS(HELD_GATE_ALONE);
	for (size_t i = 0; i < spaces->n; i++) {
		if (spaces->processes[i]->id != id)
			continue;
		if (!spaces->processes[i]->gone && !spaces->processes[i]->leaving)
			atomic_fetch_sub(&spaces->living, 1);
		process_free(spaces->processes[i]);
		memmove(&spaces->processes[i], &spaces->processes[i + 1],
			(spaces->n - i - 1) * sizeof *spaces->processes);
		spaces->n--;
		return;
	}
}

struct process *address_space_find(const struct address_spaces *spaces, uint32_t id)
{
	for (size_t i = 0; i < spaces->n; i++)
		if (spaces->processes[i]->id == id)
			return spaces->processes[i];
	return NULL;
}

static int insert_at(struct process *process, size_t place, struct range range)
{
	if (process->ranges_n == process->ranges_room) {
		size_t room = process->ranges_room ? process->ranges_room * 2 : 4;
		struct range *grown = realloc(process->ranges, room * sizeof *grown);

		if (!grown)
			return -ENOMEM;
		process->ranges = grown;
		process->ranges_room = room;
	}
	memmove(&process->ranges[place + 1], &process->ranges[place],
		(process->ranges_n - place) * sizeof *process->ranges);
	process->ranges[place] = range;
	process->released_addr = 0;
	process->ranges_n++;
	return 0;
}

static void delete_at(struct process *process, size_t place)
{
	process->ranges_n--;
	memmove(&process->ranges[place], &process->ranges[place + 1],
		(process->ranges_n - place) * sizeof *process->ranges);
}

int process_add_range(struct process *process, struct range range)
{
	size_t place = 0;

	while (place < process->ranges_n && range_end(&process->ranges[place]) <= range.addr)
		place++;
	if (place < process->ranges_n && process->ranges[place].addr < range_end(&range))
		return -EEXIST;
	return insert_at(process, place, range);
}

bool process_has_range(const struct process *process, const struct range *range)
{
	for (size_t i = 0; i < process->ranges_n; i++)
		if (memcmp(&process->ranges[i], range, sizeof *range) == 0)
			return true;
	return false;
}

int process_copy_ranges(struct process *to, const struct process *from)
{
	for (size_t i = 0; i < from->ranges_n; i++) {
		int rc = process_add_range(to, from->ranges[i]);

		if (rc)
			return rc;
	}
	to->protects = from->protects;
	to->minor = from->minor;
	to->dummy_addr = from->dummy_addr;
	return 0;
}

int process_forget(struct process *process, uint64_t start_addr, uint64_t end_addr)
{
	for (size_t i = 0; i < process->ranges_n;) {
		struct range old = process->ranges[i];

		if (range_end(&old) <= start_addr || old.addr >= end_addr) {
			i++;
			continue;
		}
		delete_at(process, i);
		if (old.addr < start_addr) {
			struct range left = { old.addr, old.page_idx, pages_of_bytes(start_addr - old.addr) };
			int rc = insert_at(process, i++, left);

			if (rc)
				return rc;
		}
		if (range_end(&old) > end_addr) {
			uint64_t skipped = pages_of_bytes(end_addr - old.addr);
			struct range right = { end_addr, old.page_idx + skipped, old.pages - skipped };
			int rc = insert_at(process, i++, right);

			if (rc)
				return rc;
		}
	}
	return 0;
}

int process_move(struct process *process, uint64_t from_addr, uint64_t to_addr, uint64_t size_bytes)
{
	struct process moved = { .uffd = -1 };
	int rc = 0;

	for (size_t i = 0; i < process->ranges_n && !rc; i++) {
		struct range old = process->ranges[i];
		uint64_t start = old.addr > from_addr ? old.addr : from_addr;
		uint64_t end =
			range_end(&old) < from_addr + size_bytes ? range_end(&old) : from_addr + size_bytes;

		if (start < end)
			rc = process_add_range(&moved,
					       (struct range){ start - from_addr + to_addr,
							       old.page_idx +
								       pages_of_bytes(start - old.addr),
							       pages_of_bytes(end - start) });
	}
	if (!rc)
		rc = process_forget(process, from_addr, from_addr + size_bytes);
	if (!rc)
		rc = process_forget(process, to_addr, to_addr + size_bytes);
	for (size_t i = 0; i < moved.ranges_n && !rc; i++)
		rc = process_add_range(process, moved.ranges[i]);
	free(moved.ranges);
	return rc;
}

void process_forget_pages(struct process *process, uint64_t page_idx, uint64_t pages)
{
	for (size_t i = 0; i < process->ranges_n;) {
		if (process->ranges[i].page_idx - page_idx < pages)
			delete_at(process, i);
		else
			i++;
	}
}

bool process_page_at(const struct process *process, uint64_t addr, uint64_t *page_idx)
{
	size_t low = 0, high = process->ranges_n;

	while (low < high) {
		size_t middle = (low + high) / 2;
		const struct range *range = &process->ranges[middle];

		if (addr < range->addr) {
			high = middle;
		} else if (addr >= range_end(range)) {
			low = middle + 1;
		} else {
			*page_idx = range->page_idx + pages_of_bytes(addr - range->addr);
			return true;
		}
	}
	return false;
}

uint64_t process_addr_of(const struct process *process, uint64_t page_idx, uint64_t pages_n, uint64_t *addr)
{
	for (size_t i = 0; i < process->ranges_n; i++) {
		const struct range *range = &process->ranges[i];
		uint64_t into = page_idx - range->page_idx;

		if (into >= range->pages)
			continue;
		*addr = range->addr + bytes_of_pages(into);
		return range->pages - into < pages_n ? range->pages - into : pages_n;
	}
	return 0;
}

struct mapped mapped_everywhere(const struct address_spaces *spaces, uint64_t page_idx, uint64_t pages)
{
	uint64_t end_idx = page_idx + pages;

	return (struct mapped){
		.spaces = spaces, .page_idx = page_idx, .next_idx = end_idx, .end_idx = end_idx
	};
}

struct mapped mapped_in(struct process *process, uint64_t page_idx, uint64_t pages)
{
	return (struct mapped){
		.process = process, .page_idx = page_idx, .next_idx = page_idx, .end_idx = page_idx + pages
	};
}

static bool next_in_process(struct mapped *at)
{
	while (at->next_idx < at->end_idx && !at->process->gone) {
		at->pages = process_addr_of(at->process, at->next_idx, at->end_idx - at->next_idx, &at->addr);
		at->next_idx += at->pages ? at->pages : 1;
		if (at->pages)
			return true;
	}
	return false;
}

bool mapped_next(struct mapped *at)
{
	while (!next_in_process(at)) {
		if (!at->spaces || at->next_process == at->spaces->n)
			return false;
		at->process = at->spaces->processes[at->next_process++];
		at->next_idx = at->page_idx;
	}
	return true;
}
