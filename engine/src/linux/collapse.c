// SPDX-License-Identifier: GPL-2.0-or-later
#include "linux/collapse.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <stdint.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/units.h"

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif
#ifndef UFFD_USER_MODE_ONLY
#define UFFD_USER_MODE_ONLY 1
#endif
#define TRIES_MAX 8 /* compaction or reclaim may hold our page, or the huge page that would be taken */

struct scene {
	int memfd, uffd;
	void *reserve;
	uint8_t *chunk;
};

static void scene_close(struct scene *s)
{
	if (s->reserve != MAP_FAILED)
		munmap(s->reserve, 2 * CHUNK_BYTES);
	if (s->uffd >= 0)
		close(s->uffd);
	if (s->memfd >= 0)
		close(s->memfd);
}

/* One page in a chunk of holes, with huge pages wanted. NOHUGEPAGE comes first: otherwise the touch alone may
 * bring in all 512 pages. */
static int scene_map(struct scene *s)
{
	s->memfd = memfd_create("vmmswap-collapse", MFD_CLOEXEC);
	if (s->memfd < 0 || ftruncate(s->memfd, CHUNK_BYTES))
		return -errno;
	s->reserve =
		mmap(NULL, 2 * CHUNK_BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (s->reserve == MAP_FAILED)
		return -errno;
	s->chunk = (uint8_t *)(((uintptr_t)s->reserve + CHUNK_BYTES - 1) & ~(uintptr_t)(CHUNK_BYTES - 1));
	if (mmap(s->chunk, CHUNK_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, s->memfd, 0) ==
	    MAP_FAILED)
		return -errno;
	if (madvise(s->chunk, CHUNK_BYTES, MADV_NOHUGEPAGE) && errno != EINVAL)
		return -errno;
	*(volatile uint8_t *)s->chunk = 1;
	return 0;
}

static int scene_register(struct scene *s)
{
	struct uffdio_api api = { .api = UFFD_API };
	struct uffdio_register reg = { .range = { (uintptr_t)s->chunk, CHUNK_BYTES },
				       .mode = UFFDIO_REGISTER_MODE_MISSING };

	s->uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY);
	if (s->uffd < 0 || ioctl(s->uffd, UFFDIO_API, &api) || ioctl(s->uffd, UFFDIO_REGISTER, &reg))
		return -errno;
	return 0;
}

/* A kernel that fills the holes returns EINVAL afterwards; one that spares them returns EBUSY. Do not go by
 * st_blocks: it includes what khugepaged tries at the same time, until that gives up. */
static int try_once(const struct scene *s)
{
	int rc = madvise(s->chunk, CHUNK_BYTES, MADV_COLLAPSE) ? -errno : 0;

	if (lseek(s->memfd, PAGE_BYTES, SEEK_DATA) >= 0)
		return COLLAPSE_FILLS_HOLES;
	if (errno != ENXIO)
		return -errno;
	return rc == -EBUSY ? COLLAPSE_SPARES_HOLES : COLLAPSE_UNKNOWN;
}

int collapse_try_holes(struct error *err)
{
	struct scene s = { .memfd = -1, .uffd = -1, .reserve = MAP_FAILED };
	int rc = scene_map(&s);

	if (!rc)
		rc = scene_register(&s);
	if (rc)
		error_set(err, -rc, "cannot test what collapsing does to holes: %s", strerror(-rc));
	else if (madvise(s.chunk, CHUNK_BYTES, MADV_HUGEPAGE))
		rc = errno == EINVAL ? COLLAPSE_SPARES_HOLES :
				       COLLAPSE_UNKNOWN; /* EINVAL: this kernel has no huge pages */
	else
		rc = COLLAPSE_UNKNOWN;
	for (int i = 0; i < TRIES_MAX && rc == COLLAPSE_UNKNOWN && s.uffd >= 0; i++)
		rc = try_once(&s);
	scene_close(&s);
	return rc;
}
