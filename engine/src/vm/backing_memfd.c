/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Shared memory: a memfd. Only this room reads and punches it.
 *
 * The file is never mapped for reading: a read through our mapping would fill the guest's holes with zeros,
 * and the guest would then read those without any event. pread() of a hole allocates nothing. Nor is the file
 * written to: own_mapping.h says why. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

#include "base/failpoint.h"
#include "base/hash.h"
#include "base/held.h"
#include "vm/backing.h"
#include "vm/incore.h"
#include "vm/own_mapping.h"
#include "vm/vm.h"

/* A received memfd shares its offset and flags with the VMM: SEEK_DATA on it would move the VMM's own
 * position. If the VMM has changed the file's mode since, we cannot open it anew, and use the fd itself:
 * it was opened for us by our predecessor. */
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

int region_of_memfd(struct region *out, int memfd, uint64_t offset_bytes, uint64_t page_idx, uint64_t pages,
		    struct error *err)
{
	uint64_t size_bytes = bytes_of_pages(pages);
	struct stat status;

	if (fstat(memfd, &status) != 0)
		return error_set(err, errno, "cannot look at the memfd %d: %s", memfd, strerror(errno));
	if (pages == 0 || (uint64_t)status.st_size < offset_bytes ||
	    (uint64_t)status.st_size - offset_bytes < size_bytes)
		return error_set(err, EINVAL,
				 "the memfd has %lld bytes, the region needs %llu at offset %llu",
				 (long long)status.st_size, (unsigned long long)size_bytes,
				 (unsigned long long)offset_bytes);
	*out = (struct region){
		.fd = reopen(memfd),
		.backing = &backing_memfd,
		.offset_bytes = offset_bytes,
		.page_idx = page_idx,
		.pages = pages,
		.device = status.st_dev,
		.inode = status.st_ino,
		.counted_pages = pages,
	};
	if (out->fd < 0)
		return error_set(err, errno, "cannot open the memfd anew for reading and writing: %s",
				 strerror(errno));
	return 0;
}

const struct backing *backing_of(const struct memory *memory, uint64_t page_idx)
{
	const struct region *region = memory_region_of(memory, page_idx);

	return region ? region->backing : &backing_memfd;
}

#define FIRST_LOOK_PAGES 32

/* How many pages from this one on have data; this one has. SEEK_HOLE would walk to the next hole, 20 ms a
 * GiB, while it holds the inode's lock. This looks only at the 2 MiB of the file that the page is in, without
 * the lock, and only as far as the run may reach: twice as far each time. A page in the host's swap is not
 * seen here, and is a run of its own. */
static uint64_t run_length(const struct region *region, uint64_t page_idx, uint64_t pages_max)
{
	uint64_t into_chunk = pages_of_bytes(region_offset_of(region, page_idx) % CHUNK_BYTES);
	uint64_t pages = CHUNK_PAGES - into_chunk < pages_max ? CHUNK_PAGES - into_chunk : pages_max;
	uint64_t n = 0, look = FIRST_LOOK_PAGES, end = 0;
	unsigned char found[CHUNK_PAGES];
	struct incore incore;
	int rc = incore_open(&incore, region, page_idx, pages);

	for (; !rc && n == end && n < pages; look *= 2) {
		end = n + look < pages ? n + look : pages;
		if (incore_find(&incore, page_idx + n, end - n, found) < 0)
			break;
		for (uint64_t from = n; n < end && (found[n - from] & 1);)
			n++;
	}
	incore_close(&incore);
	return n ? n : 1;
}

/* The first page with data at or after this one. -ENXIO: there is none in the region. */
static int seek_data(const struct region *region, uint64_t page_idx, uint64_t *data_idx)
{
	uint64_t region_end_idx = region->page_idx + region->pages;
	int rc = FAILPOINT("memory.seek");
	off_t data;

	HELD_MAY_WAIT(WAIT_INODE);
	if (page_idx >= region_end_idx || rc)
		return rc ? rc : -ENXIO;
	data = lseek(region->fd, (off_t)region_offset_of(region, page_idx), SEEK_DATA);
	if (data < 0)
		return -errno;
	*data_idx = region->page_idx + pages_of_bytes((uint64_t)data - region->offset_bytes);
	return *data_idx < region_end_idx ? 0 : -ENXIO;
}

static bool next_data(const struct region *region, uint64_t page_idx, uint64_t *start_idx, uint64_t *end_idx,
		      int *rc)
{
	*rc = seek_data(region, page_idx, start_idx);
	if (*rc) {
		*rc = *rc == -ENXIO ? 0 : *rc;
		return false;
	}
	*end_idx = *start_idx + run_length(region, *start_idx, region->page_idx + region->pages - *start_idx);
	return true;
}

/* mincore() does not see pages in the host's swap, so each gap is asked about by lseek(). */
static int find_data(const struct region *region, uint64_t page_idx, uint64_t pages,
		     uint64_t data[CHUNK_PAGES / 64])
{
	unsigned char found[CHUNK_PAGES];
	struct incore incore;
	int rc = incore_open(&incore, region, page_idx, pages);

	if (!rc && incore_find(&incore, page_idx, pages, found) < 0)
		rc = -EAGAIN;
	incore_close(&incore);
	for (uint64_t i = 0, data_idx; !rc && i < pages; i++) {
		if (!(found[i] & 1)) {
			rc = seek_data(region, page_idx + i, &data_idx);
			if (rc || data_idx >= page_idx + pages)
				break;
			i = data_idx - page_idx;
		}
		data[i / 64] |= (uint64_t)1 << i % 64;
	}
	return rc == -ENXIO ? 0 : rc;
}

static bool is_hole(const struct region *region, uint64_t page_idx)
{
	off_t offset = (off_t)region_offset_of(region, page_idx), data;

	HELD_MAY_WAIT(WAIT_INODE);
	data = lseek(region->fd, offset, SEEK_DATA);
	return data < 0 || data >= offset + (off_t)PAGE_BYTES;
}

/* The page is there, so that the kernel finds data at once. */
static void await_others(const struct region *region, uint64_t page_idx)
{
	HELD_MAY_WAIT(WAIT_INODE);
	lseek(region->fd, (off_t)region_offset_of(region, page_idx), SEEK_DATA);
}

static int read_pages(const struct region *region, uint64_t page_idx, uint64_t pages, void *buf)
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

/* A hole is a write, too. */
static bool may_leave(const struct region *region)
{
	int seals = fcntl(region->fd, F_GET_SEALS);

	return seals < 0 || !(seals & (F_SEAL_WRITE | F_SEAL_FUTURE_WRITE));
}

static int leave_begin(struct leaving *leaving, const struct region *region, uint64_t page_idx,
		       uint64_t pages, struct error *err)
{
	int rc = incore_open(&leaving->incore, region, page_idx, pages);

	leaving->region = region;
	return rc ? error_set(err, -rc, "cannot look at what is in guest memory: %s%s", strerror(-rc),
			      rc == -EACCES ? " (has its memfd been given another mode or owner?)" : "") :
		    0;
}

static void leave_end(struct leaving *leaving)
{
	incore_close(&leaving->incore);
}

static int punch(const struct region *region, uint64_t page_idx, uint64_t pages)
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

/* True if a page that is present after its punch stays. Zeros mean that it was a part of a large folio that
 * something referenced, and was zeroed in place. Writers still wait, and we have the bytes: put them back.
 * Readers may have seen zeros in between, so this is reported. Other bytes were written to the file by
 * somebody else, and are the truth. mincore() may report a hole as present (incore.h): it reads as zeros too,
 * and is only a hole. */
static bool repair(struct vm *vm, const struct region *region, uint64_t page_idx, const char *bytes)
{
	_Alignas(PAGE_BYTES) char there[PAGE_BYTES];
	bool zeroed = read_pages(region, page_idx, 1, there) == 0 && page_is_zero(there);

	if (zeroed && (page_is_zero(bytes) || !own_mapping_region_overwrite(region, page_idx, bytes)))
		return false;
	notices_odd(
		vm->notices, page_idx, "%s",
		zeroed ?
			"a page was still there after its hole was punched; its bytes were put back, but the guest "
			"may have read zeros: please report this with the kernel's version" :
			"a page was written while its hole was punched: something writes to the memfd itself, or maps "
			"it without a userfaultfd");
	return true;
}

static int take_out(struct vm *vm, struct leaving *leaving, uint64_t page_idx, uint64_t pages,
		    const char *bytes, bool stays[CHUNK_PAGES], struct error *err)
{
	unsigned char found[CHUNK_PAGES];
	int rc = punch(leaving->region, page_idx, pages), there;

	if (rc)
		return error_set(err, -rc, "cannot punch guest memory out of its memfd: %s%s", strerror(-rc),
				 rc == -EPERM ? " (is it sealed against writing?)" : "");
	FAILPOINT_HERE("evict.punched");
	there = incore_find(&leaving->incore, page_idx, pages, found);
	if (there <= 0) /* -errno: not known, so each is looked at */
		memset(found, there < 0, pages);
	for (uint64_t i = 0; i < pages; i++)
		stays[i] =
			(found[i] & 1) && repair(vm, leaving->region, page_idx + i, bytes + i * PAGE_BYTES);
	return 0;
}

/* Waits for no lock. A page that was stored is not all zeros, and a hole is. */
static bool reads_as_zeros(const struct region *region, uint64_t page_idx)
{
	_Alignas(PAGE_BYTES) char page[PAGE_BYTES];

	return pread(region->fd, page, sizeof page, (off_t)region_offset_of(region, page_idx)) !=
		       (ssize_t)sizeof page ||
	       page_is_zero(page);
}

static bool has_landed(const struct region *region, uint64_t page_idx)
{
	return !reads_as_zeros(region, page_idx) || own_mapping_region_has_page(region, page_idx);
}

/* 0, -ENOMEM, or -EIO. Opened inside the gate: it waits for nobody. */
static int open_own_mapping(struct vm *vm, struct own_mapping *own, uint64_t page_idx)
{
	const struct region *region = memory_region_of(&vm->memory, page_idx);
	int rc = own->base ? 0 : own_mapping_open(own, region, own->page_idx, own->pages);

	if (rc && rc != -ENOMEM)
		notices_odd(vm->notices, own->page_idx,
			    "guest memory that no process maps cannot be filled: %s%s", strerror(-rc),
			    rc == -EPERM ? " (is its memfd sealed against writing?)" : "");
	return rc && rc != -ENOMEM ? -EIO : rc;
}

/* The file has it, whoever maps it. */
static int put_unmapped(struct vm *vm, struct own_mapping *own, uint64_t page_idx, const void *page,
			bool refused)
{
	int rc = open_own_mapping(vm, own, page_idx);

	(void)refused;
	if (rc)
		return rc;
	switch (own_mapping_fill(own, page_idx, page)) {
	case UFFD_EXISTS:
		vm_found_present(vm, page_idx);
		return 0;
	case UFFD_DONE:
	case UFFD_BEYOND: /* the VMM shrank its memfd: the page is given up */
		return 0;
	case UFFD_NO_MEMORY:
		return -ENOMEM;
	default:
		return -EIO;
	}
}

/* Without write-protection where there is none, which `protects` then says. */
static enum uffd_outcome register_range(struct process *process, const struct range *range)
{
	uint64_t size_bytes = bytes_of_pages(range->pages);
	enum uffd_outcome outcome =
		uffd_register_shared(process->uffd, range->addr, size_bytes, process->protects);

	/* What is not guest memory is refused either way, and says nothing of write-protection. */
	if (outcome == UFFD_REFUSED && process->protects) {
		outcome = uffd_register_shared(process->uffd, range->addr, size_bytes, false);
		/* none to be had on this kernel: missing faults alone */
		process->protects = outcome != UFFD_DONE;
	}
	return outcome;
}

static enum uffd_outcome unregister_inherited(const struct process *child, const struct range *range)
{
	return uffd_unregister_shared(child->uffd, range->addr, bytes_of_pages(range->pages));
}

const struct backing backing_memfd = {
	.next_data = next_data,
	.find_data = find_data,
	.first_data = seek_data,
	.is_hole = is_hole,
	.has_page = own_mapping_region_has_page,
	.has_landed = has_landed,
	.may_leave = may_leave,
	.read = read_pages,
	.leave_begin = leave_begin,
	.await_others = await_others,
	.take_out = take_out,
	.leave_end = leave_end,
	.put_unmapped = put_unmapped,
	.register_range = register_range,
	.unregister_inherited = unregister_inherited,
};
