// SPDX-License-Identifier: GPL-2.0-or-later
/* MADV_COLLAPSE copies 512 small pages into a new huge page, and gives up with EAGAIN if any of them has a
 * reference that it cannot account for. Three traps:
 *
 * - It fills holes with zeros, and so does reading through a mapping; the guest would find zeros where its
 * data is out. So our mapping of the chunk is registered with a userfaultfd of our own, for missing pages,
 * with faults answered by SIGBUS: a hole then gives EFAULT to MADV_POPULATE_READ, and collapse, which
 * respects such a registration in any process, gives EBUSY. Before Linux 6.4 it does not, and is not used at
 * all.
 * - It returns 0 for what already is a huge page, without looking for references. So 0 alone proves nothing:
 * the page must have moved, that is, have another frame number than before.
 * - What it made is a huge page for good. If the guest writes to one page of it, the rest cannot leave
 * either, and the next look at it cannot tell. */
#include "pins/pins_collapse.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/units.h"
#include "linux/collapse.h"

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#endif
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif
#define PFN_MASK (((uint64_t)1 << 55) - 1)
#define PAGEMAP_PRESENT ((uint64_t)1 << 63)

struct pins_collapse {
	int uffd;
	int pagemap_fd;
};

static int open_uffd(struct error *err)
{
	struct uffdio_api api = { .api = UFFD_API,
				  .features = UFFD_FEATURE_SIGBUS | UFFD_FEATURE_MISSING_SHMEM };
	int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);

	if (fd < 0)
		return error_set(err, errno, "userfaultfd: %s", strerror(errno));
	if (ioctl(fd, UFFDIO_API, &api) < 0) {
		int code = errno;

		close(fd);
		return error_set(err, code, "userfaultfd without SIGBUS for shared memory: %s",
				 strerror(code));
	}
	return fd;
}

int pins_collapse_create(struct pins_collapse **out, struct error *err)
{
	struct pins_collapse *collapse = calloc(1, sizeof *collapse);
	int rc = collapse_try_holes(err);

	if (rc == COLLAPSE_FILLS_HOLES)
		rc = error_set(err, ENOTSUP, "this kernel's MADV_COLLAPSE fills holes with zeros");
	if (rc < 0) {
		free(collapse);
		return rc;
	}
	rc = 0;
	if (!collapse)
		return error_set(err, ENOMEM, "no memory");
	collapse->pagemap_fd = -1;
	collapse->uffd = open_uffd(err);
	if (collapse->uffd < 0) {
		rc = collapse->uffd;
	} else {
		collapse->pagemap_fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
		if (collapse->pagemap_fd < 0)
			rc = error_set(err, errno, "/proc/self/pagemap: %s", strerror(errno));
	}
	if (rc) {
		pins_collapse_destroy(collapse);
		return rc;
	}
	*out = collapse;
	return 0;
}

void pins_collapse_destroy(struct pins_collapse *collapse)
{
	if (!collapse)
		return;
	if (collapse->uffd >= 0)
		close(collapse->uffd);
	if (collapse->pagemap_fd >= 0)
		close(collapse->pagemap_fd);
	free(collapse);
}

/* Return the first page's frame number; 0 if the page is not present or numbers are hidden from us. */
static uint64_t frame_number(const struct pins_collapse *collapse, const void *addr)
{
	uint64_t entry = 0;
	off_t at = (off_t)((uintptr_t)addr / PAGE_BYTES * sizeof entry);

	if (pread(collapse->pagemap_fd, &entry, sizeof entry, at) != sizeof entry ||
	    !(entry & PAGEMAP_PRESENT))
		return 0;
	return entry & PFN_MASK;
}

/* Both calls fail rather than fill a hole, because the mapping is registered. */
static bool moved(const struct pins_collapse *collapse, void *chunk)
{
	uint64_t before, after;

	if (madvise(chunk, PAGE_BYTES, MADV_POPULATE_READ))
		return false;
	before = frame_number(collapse, chunk);
	if (!before || madvise(chunk, CHUNK_BYTES, MADV_COLLAPSE))
		return false;
	if (madvise(chunk, PAGE_BYTES, MADV_POPULATE_READ))
		return false;
	after = frame_number(collapse, chunk);
	return after && after != before;
}

static int arm(const struct pins_collapse *collapse, void *chunk)
{
	struct uffdio_register reg = {
		.range = { .start = (uintptr_t)chunk, .len = CHUNK_BYTES },
		.mode = UFFDIO_REGISTER_MODE_MISSING,
	};

	return ioctl(collapse->uffd, UFFDIO_REGISTER, &reg) < 0 ? -errno : 0;
}

int pins_collapse_look(struct pins_collapse *collapse, int memfd, uint64_t offset_bytes, bool *is_free)
{
	/* twice the size, to find an address with the alignment of huge pages */
	void *reserve =
		mmap(NULL, 2 * CHUNK_BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	void *chunk;
	int rc = 0;

	*is_free = false;
	if (reserve == MAP_FAILED)
		return -errno;
	chunk = (void *)(((uintptr_t)reserve + CHUNK_BYTES - 1) & ~(uintptr_t)(CHUNK_BYTES - 1));
	if (mmap(chunk, CHUNK_BYTES, PROT_READ, MAP_SHARED | MAP_FIXED, memfd, (off_t)offset_bytes) ==
	    MAP_FAILED)
		rc = -errno;
	if (!rc)
		rc = arm(collapse, chunk);
	if (!rc)
		*is_free = moved(collapse, chunk);
	munmap(reserve, 2 * CHUNK_BYTES);
	return rc;
}
