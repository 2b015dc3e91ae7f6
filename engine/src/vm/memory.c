/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "vm/memory.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

#include "base/failpoint.h"
#include "base/held.h"
#include "vm/incore.h"

void memory_init(struct memory *memory)
{
	memset(memory, 0, sizeof *memory);
}

void memory_destroy(struct memory *memory)
{
	for (size_t i = 0; i < memory->regions_n; i++)
		if (memory->regions[i].fd >= 0)
			close(memory->regions[i].fd);
	memory->regions_n = 0;
}

/* A received memfd shares its offset and flags with the VMM: SEEK_DATA on it would move the VMM's own position. One whose mode the VMM
 * has changed since it was opened for us is taken as it is: that is a successor's, and its predecessor's own. */
static int reopen(int memfd)
{
	char path[64];
	int fd;

	snprintf(path, sizeof path, "/proc/self/fd/%d", memfd);
	fd = open(path, O_RDWR | O_CLOEXEC);
	if (fd < 0 && errno == EACCES && (fcntl(memfd, F_GETFL) & O_ACCMODE) == O_RDWR)
		fd = fcntl(memfd, F_DUPFD_CLOEXEC, 3);
	return fd;
}

static int no_place(struct error *err)
{
	return error_set(err, E2BIG, "there are %d regions of guest memory, and no more can be",
			 MEMORY_MAX_REGIONS);
}

static void insert(struct memory *memory, const struct region *region)
{
	size_t i = memory->regions_n++;

	for (; i > 0 && memory->regions[i - 1].page_idx > region->page_idx; i--)
		memory->regions[i] = memory->regions[i - 1];
	memory->regions[i] = *region;
}

int memory_add(struct memory *memory, int memfd, uint64_t offset_bytes, uint64_t page_idx, uint64_t pages,
	       struct error *err)
{
	struct region region;
	uint64_t size_bytes = bytes_of_pages(pages);
	struct stat status;

	if (memory->regions_n == MEMORY_MAX_REGIONS)
		return no_place(err);
	if (fstat(memfd, &status) != 0)
		return error_set(err, errno, "cannot look at the memfd %d: %s", memfd, strerror(errno));
	if (pages == 0 || (uint64_t)status.st_size < offset_bytes ||
	    (uint64_t)status.st_size - offset_bytes < size_bytes)
		return error_set(err, EINVAL,
				 "the memfd has %lld bytes, the region needs %llu at offset %llu",
				 (long long)status.st_size, (unsigned long long)size_bytes,
				 (unsigned long long)offset_bytes);
	region = (struct region){
		.fd = reopen(memfd),
		.offset_bytes = offset_bytes,
		.page_idx = page_idx,
		.pages = pages,
		.device = status.st_dev,
		.inode = status.st_ino,
		.counted_pages = pages,
	};
	if (region.fd < 0)
		return error_set(err, errno, "cannot open the memfd anew for reading and writing: %s",
				 strerror(errno));
	insert(memory, &region);
	return 0;
}

int memory_add_private(struct memory *memory, uint64_t offset_bytes, uint64_t page_idx, uint64_t pages,
		       struct error *err)
{
	if (memory->regions_n == MEMORY_MAX_REGIONS)
		return no_place(err);
	insert(memory, &(struct region){
			       .fd = -1,
			       .is_private = true,
			       .offset_bytes = offset_bytes,
			       .page_idx = page_idx,
			       .pages = pages,
		       });
	return 0;
}

void memory_remove(struct memory *memory, uint64_t page_idx)
{
	size_t i = 0;

	while (i < memory->regions_n && memory->regions[i].page_idx != page_idx)
		i++;
	if (i == memory->regions_n)
		return;
	if (memory->regions[i].fd >= 0)
		close(memory->regions[i].fd);
	memory->regions_n--;
	memmove(&memory->regions[i], &memory->regions[i + 1],
		(memory->regions_n - i) * sizeof memory->regions[0]);
}

const struct region *memory_region_of(const struct memory *memory, uint64_t page_idx)
{
	for (size_t i = 0; i < memory->regions_n; i++) {
		const struct region *region = &memory->regions[i];

		if (page_idx - region->page_idx < region->pages)
			return region;
	}
	return NULL;
}

/* How many pages from this one on, which has data, have data. SEEK_HOLE would walk on to the next hole, 20 ms a GiB, with the lock
 * of the inode; this looks at no more than the 2 MiB of the file that the page is in, without it. What is in the host's swap is
 * not seen here, and is a run of its own. */
static uint64_t run_length(const struct region *region, uint64_t page_idx, uint64_t pages_max)
{
	uint64_t into_chunk = pages_of_bytes(region_offset_of(region, page_idx) % CHUNK_BYTES), n = 1;
	uint64_t pages = CHUNK_PAGES - into_chunk < pages_max ? CHUNK_PAGES - into_chunk : pages_max;
	unsigned char found[CHUNK_PAGES];
	struct incore incore;

	found[0] = 0;
	if (incore_open(&incore, region, page_idx, pages) == 0 &&
	    incore_find(&incore, page_idx, pages, found) < 0)
		found[0] = 0;
	incore_close(&incore);
	while ((found[0] & 1) && n < pages && (found[n] & 1))
		n++;
	return n;
}

bool memory_next_data(const struct region *region, uint64_t page_idx, uint64_t *start_idx, uint64_t *end_idx,
		      int *rc)
{
	uint64_t region_end_idx = region->page_idx + region->pages;
	off_t data;

	HELD_MAY_WAIT(WAIT_INODE);
	*rc = FAILPOINT("memory.seek");
	if (page_idx >= region_end_idx || region->is_private || *rc)
		return false;
	data = lseek(region->fd, (off_t)region_offset_of(region, page_idx), SEEK_DATA);
	if (data < 0) {
		*rc = errno == ENXIO ? 0 : -errno;
		return false;
	}
	*start_idx = region->page_idx + pages_of_bytes((uint64_t)data - region->offset_bytes);
	if (*start_idx >= region_end_idx)
		return false;
	*end_idx = *start_idx + run_length(region, *start_idx, region_end_idx - *start_idx);
	return true;
}

bool memory_has_data(const struct region *region, uint64_t page_idx, uint64_t pages)
{
	off_t data;

	HELD_MAY_WAIT(WAIT_INODE);
	data = lseek(region->fd, (off_t)region_offset_of(region, page_idx), SEEK_DATA);
	return data >= 0 && (uint64_t)data < region_offset_of(region, page_idx) + bytes_of_pages(pages);
}

void memory_await_lock(const struct region *region, uint64_t page_idx)
{
	HELD_MAY_WAIT(WAIT_INODE);
	lseek(region->fd, (off_t)region_offset_of(region, page_idx), SEEK_DATA);
}

bool memory_is_hole(const struct region *region, uint64_t page_idx)
{
	return !memory_has_data(region, page_idx, 1);
}

uint64_t memory_total_pages(const struct memory *memory)
{
	uint64_t pages = 0;

	for (size_t i = 0; i < memory->regions_n; i++)
		pages += memory->regions[i].pages;
	return pages;
}

int memory_read(const struct region *region, uint64_t page_idx, uint64_t pages, void *buf)
{
	uint64_t offset_bytes = region_offset_of(region, page_idx), left_bytes = bytes_of_pages(pages);
	char *to = buf;
	int rc = FAILPOINT("memory.read");

	if (rc)
		return rc;
	while (left_bytes) {
		ssize_t got = pread(region->fd, to, left_bytes, (off_t)offset_bytes);

		if (got < 0 && errno == EINTR)
			continue;
		if (got < 0)
			return -errno;
		if (got == 0)
			return -ERANGE;
		to += got;
		offset_bytes += (uint64_t)got;
		left_bytes -= (uint64_t)got;
	}
	return 0;
}

bool memory_is_sealed(const struct region *region)
{
	int seals = region->is_private ? 0 : fcntl(region->fd, F_GET_SEALS);

	return seals > 0 && (seals & (F_SEAL_WRITE | F_SEAL_FUTURE_WRITE));
}

int memory_punch(const struct region *region, uint64_t page_idx, uint64_t pages)
{
	int rc = FAILPOINT("memory.punch");

	HELD_MAY_WAIT(WAIT_PUNCH);
	if (rc)
		return rc;
	while (fallocate(region->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
			 (off_t)region_offset_of(region, page_idx), (off_t)bytes_of_pages(pages)) != 0)
		if (errno != EINTR)
			return -errno;
	return 0;
}
