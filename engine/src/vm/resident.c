/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "vm/resident.h"

#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/failpoint.h"
#include "vm/backing.h"
#include "vm/incore.h"

/* Since Linux 6.5; the same number everywhere. glibc's headers of Debian 12 do not have it. */
#ifndef SYS_cachestat
#define SYS_cachestat 451
#endif

struct cache_range {
	uint64_t offset_bytes, size_bytes;
};

struct cache_counts {
	uint64_t pages, dirty, under_write_back, evicted, recently_evicted;
};

/* Pages counted at a time; if counting needs a mapping, pages mapped at a time. This is less than a huge
 * page, so that khugepaged finds nothing to do: before 6.4 it fills holes with zeros in any mapping without a
 * userfaultfd. */
#define PIECE_PAGES ((uint64_t)256)
/* Where nothing was found, the next piece is twice as large: holes cost hardly anything. This many pages, if
 * all are there after all, take the kernel half a millisecond. */
#define HOLE_PAGES ((uint64_t)16384)

struct file {
	uint64_t end_pages;	/* its length */
	uint64_t pages;		/* pages that it has anywhere, beyond its end too */
	uint64_t guest_pages;	/* of its length, guest memory */
	uint64_t counted_pages; /* of these, on RAM at the last count */
};

/* Private memory: nothing tells but a walk over the page tables of its process. */
static bool counts_itself(const struct region *region)
{
	return region->backing->count;
}

static bool is_same_file(const struct region *region, const struct region *other)
{
	return region->device == other->device && region->inode == other->inode;
}

static uint64_t pages_inside(const struct region *region, uint64_t end_pages)
{
	uint64_t first = pages_of_bytes(region->offset_bytes);
	uint64_t left = end_pages > first ? end_pages - first : 0;

	return left < region->pages ? left : region->pages;
}

static uint64_t end_of(const struct region *region, struct stat *status)
{
	if (fstat(region->fd, status) != 0)
		*status = (struct stat){ 0 };
	return pages_of_bytes((uint64_t)status->st_size + PAGE_BYTES - 1);
}

/* False if the file was looked at with an earlier region, or if there is none. */
static bool look_at_file(const struct memory *memory, size_t i, struct file *out)
{
	const struct region *region = &memory->regions[i];
	struct stat status;

	if (!region_has_file(region))
		return false;
	for (size_t before = 0; before < i; before++)
		if (region_has_file(&memory->regions[before]) &&
		    is_same_file(&memory->regions[before], region))
			return false;
	*out = (struct file){ .end_pages = end_of(region, &status) };
	out->pages = pages_of_bytes((uint64_t)status.st_blocks * 512);
	for (size_t k = i; k < memory->regions_n; k++) {
		const struct region *other = &memory->regions[k];
		uint64_t inside;

		if (!region_has_file(other) || !is_same_file(other, region))
			continue;
		inside = pages_inside(other, out->end_pages);
		out->guest_pages += inside;
		out->counted_pages += other->counted_pages < inside ? other->counted_pages : inside;
	}
	return true;
}

static bool is_all_guest(const struct file *file)
{
	return file->guest_pages == file->end_pages && file->pages <= file->guest_pages;
}

uint64_t resident_pages(struct vm *vm)
{
	uint64_t pages = 0;
	struct file file;

	pthread_mutex_lock(&vm->regions_lock);
	for (size_t i = 0; i < vm->memory.regions_n; i++)
		if (counts_itself(&vm->memory.regions[i]))
			pages += vm->memory.regions[i].counted_pages;
		else if (look_at_file(&vm->memory, i, &file))
			pages += is_all_guest(&file) || file.pages < file.counted_pages ? file.pages :
											  file.counted_pages;
	pthread_mutex_unlock(&vm->regions_lock);
	return pages;
}

bool resident_needs_count(struct vm *vm)
{
	bool needed = false;
	struct file file;

	pthread_mutex_lock(&vm->regions_lock);
	for (size_t i = 0; i < vm->memory.regions_n && !needed; i++)
		needed = counts_itself(&vm->memory.regions[i]) ||
			 (look_at_file(&vm->memory, i, &file) && !is_all_guest(&file));
	pthread_mutex_unlock(&vm->regions_lock);
	return needed;
}

/* Does not count pages that were allocated and never written to. -errno if that cannot be found out. */
static int count_mapped(const struct region *region, uint64_t page_idx, uint64_t pages)
{
	unsigned char found[CHUNK_PAGES];
	struct incore incore;
	int counted = incore_open(&incore, region, page_idx, pages);

	if (!counted)
		counted = incore_find(&incore, page_idx, pages, found);
	incore_close(&incore);
	return counted;
}

/* Reduces `pages` to as many as were counted. */
static int64_t count_piece(const struct region *region, uint64_t first, uint64_t *pages)
{
	struct cache_range range = { region->offset_bytes + bytes_of_pages(first), bytes_of_pages(*pages) };
	struct cache_counts counts;

	if (!FAILPOINT("resident.cachestat") && syscall(SYS_cachestat, region->fd, &range, &counts, 0) == 0)
		return (int64_t)counts.pages;
	/* An older kernel, or a sandbox that does not allow the call. */
	if (*pages > PIECE_PAGES)
		*pages = PIECE_PAGES;
	return count_mapped(region, region->page_idx + first, *pages);
}

static uint64_t next_piece(uint64_t pages, int64_t found)
{
	if (found)
		return PIECE_PAGES;
	return pages < HOLE_PAGES ? 2 * pages : HOLE_PAGES;
}

/* The first file-backed region at or after page_idx. The caller holds the lock. */
static struct region *next_region(struct vm *vm, uint64_t page_idx)
{
	for (size_t i = 0; i < vm->memory.regions_n; i++)
		if (vm->memory.regions[i].page_idx >= page_idx &&
		    (region_has_file(&vm->memory.regions[i]) || counts_itself(&vm->memory.regions[i])))
			return &vm->memory.regions[i];
	return NULL;
}

/* Release the lock between two pieces. */
static void count_region(struct vm *vm, uint64_t page_idx)
{
	uint64_t counted = 0, done = 0, pages = 1, piece = PIECE_PAGES;
	bool known = true; /* if false, keep the last count */
	struct region *region = NULL;

	while (done < pages && !atomic_load(&vm->stopping)) {
		struct stat status;

		pthread_mutex_lock(&vm->regions_lock);
		region = next_region(vm, page_idx);
		if (region && region->page_idx == page_idx) {
			pages = pages_inside(region, end_of(region, &status));
			if (done < pages) {
				uint64_t n = pages - done < piece ? pages - done : piece;
				int64_t found = count_piece(region, done, &n);

				known = known && found >= 0;
				counted += found > 0 ? (uint64_t)found : 0;
				piece = next_piece(piece, found);
				done += n;
			}
			if (done >= pages && known)
				region->counted_pages = counted;
		} else {
			done = pages;
		}
		pthread_mutex_unlock(&vm->regions_lock);
	}
}

/* Outside of the lock: it takes the mmap lock of the process. */
static void count_private(struct vm *vm, struct region region)
{
	const uint64_t piece_pages = 64 * PIECE_PAGES;
	int64_t counted = 0, found = 0;
	struct region *now;

	for (uint64_t done = 0; done < region.pages && found >= 0; done += piece_pages) {
		if (atomic_load(&vm->stopping))
			return;
		found = region.backing->count(&region, region.page_idx + done,
					      region.pages - done < piece_pages ? region.pages - done :
										  piece_pages);
		counted += found;
	}
	pthread_mutex_lock(&vm->regions_lock);
	now = next_region(vm, region.page_idx);
	if (found >= 0 && now && now->page_idx == region.page_idx && now->pages == region.pages)
		now->counted_pages = (uint64_t)counted;
	pthread_mutex_unlock(&vm->regions_lock);
}

void resident_count(struct vm *vm)
{
	uint64_t page_idx = 0;

	while (resident_needs_count(vm) && !atomic_load(&vm->stopping)) {
		struct region *region, copy = { 0 };

		pthread_mutex_lock(&vm->regions_lock);
		region = next_region(vm, page_idx);
		if (region)
			copy = *region;
		pthread_mutex_unlock(&vm->regions_lock);
		if (!region)
			return;
		if (counts_itself(&copy))
			count_private(vm, copy);
		else
			count_region(vm, copy.page_idx);
		page_idx = copy.page_idx + 1;
	}
}
