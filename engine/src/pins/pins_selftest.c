// SPDX-License-Identifier: GPL-2.0-or-later
#include "pins/pins_selftest.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include "base/units.h"
#include "pins/pins_drain.h"

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif
#define TRIES_MAX \
	8 /* compaction or reclaim may look at our page as well: a passing reference is no fault \
		     */

struct scene {
	int memfd;
	ino_t ino;
	int pipe[2];
	uint8_t *map;	/* two chunks, at a 2 MiB boundary */
	uint8_t *again; /* the same memory, mapped a second time */
	void *reserve;
};

static void scene_close(struct scene *s)
{
	if (s->reserve != MAP_FAILED)
		munmap(s->reserve, 3 * CHUNK_BYTES);
	if (s->again != MAP_FAILED)
		munmap(s->again, 2 * CHUNK_BYTES);
	for (int i = 0; i < 2; i++)
		if (s->pipe[i] >= 0)
			close(s->pipe[i]);
	if (s->memfd >= 0)
		close(s->memfd);
}

static int scene_map(struct scene *s)
{
	s->reserve =
		mmap(NULL, 3 * CHUNK_BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (s->reserve == MAP_FAILED)
		return -errno;
	s->map = (uint8_t *)(((uintptr_t)s->reserve + CHUNK_BYTES - 1) & ~(uintptr_t)(CHUNK_BYTES - 1));
	if (mmap(s->map, 2 * CHUNK_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, s->memfd, 0) ==
	    MAP_FAILED)
		return -errno;
	s->again = mmap(NULL, 2 * CHUNK_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, s->memfd, 0);
	if (s->again == MAP_FAILED)
		return -errno;
	/* If shared memory gets large folios by itself, a single touch would bring in 512 pages. EINVAL: this
	 * kernel has none. */
	if ((madvise(s->map, 2 * CHUNK_BYTES, MADV_NOHUGEPAGE) ||
	     madvise(s->again, 2 * CHUNK_BYTES, MADV_NOHUGEPAGE)) &&
	    errno != EINVAL)
		return -errno;
	return 0;
}

static int scene_open(struct scene *s, struct error *err)
{
	struct stat st;
	int rc = 0;

	*s = (struct scene){ .memfd = -1, .pipe = { -1, -1 }, .again = MAP_FAILED, .reserve = MAP_FAILED };
	s->memfd = memfd_create("vmmswap-pins-selftest", MFD_CLOEXEC);
	if (s->memfd < 0 || ftruncate(s->memfd, 2 * CHUNK_BYTES) || fstat(s->memfd, &st) ||
	    pipe2(s->pipe, O_CLOEXEC | O_NONBLOCK))
		rc = -errno;
	if (!rc) {
		s->ino = st.st_ino;
		rc = scene_map(s);
	}
	if (rc) {
		scene_close(s);
		return error_set(err, -rc, "self-test: no memfd to try it on: %s", strerror(-rc));
	}
	return 0;
}

/* The pipe holds a page until it is read. */
static int scene_hold(struct scene *s, uint32_t page)
{
	struct iovec iov = { .iov_base = s->map + page * PAGE_BYTES, .iov_len = PAGE_BYTES };

	return vmsplice(s->pipe[1], &iov, 1, 0) == (ssize_t)PAGE_BYTES ? 0 : -EIO;
}

static int scene_let_go(struct scene *s)
{
	uint8_t buffer[PAGE_BYTES];

	return read(s->pipe[0], buffer, sizeof buffer) == (ssize_t)sizeof buffer ? 0 : -EIO;
}

static bool bits_equal(const uint64_t *a, const uint64_t *b)
{
	return !memcmp(a, b, PINS_WORDS * sizeof *a);
}

static bool bits_within(const uint64_t *a, const uint64_t *b)
{
	for (int i = 0; i < PINS_WORDS; i++)
		if (a[i] & ~b[i])
			return false;
	return true;
}

/* Look at a chunk until it is as expected. Holding too much may pass with time; holding too little, or
 * finding other pages than there are, is wrong. */
static int expect(struct pins_bpf *bpf, const struct scene *s, uint32_t chunk,
		  const struct pins_chunk *expected)
{
	struct pins_place place = { s->ino, chunk * CHUNK_PAGES, CHUNK_PAGES };
	struct pins_verdict seen;

	for (int i = 0; i < TRIES_MAX; i++) {
		int rc = pins_drain_batches();

		if (!rc)
			rc = pins_bpf_look(bpf, s->memfd, &place, &seen);
		if (rc)
			return rc;
		if (!bits_within(expected->held, seen.chunk.held) ||
		    !bits_equal(seen.chunk.present, expected->present) ||
		    !bits_equal(seen.chunk.large, expected->large))
			return -EBADMSG;
		if (bits_equal(seen.chunk.held, expected->held))
			return 0;
	}
	return -EBADMSG;
}

/* Use some pages of the second chunk, one of them held, and holes that must stay holes. */
static int try_small(struct pins_bpf *bpf, struct scene *s)
{
	static const uint16_t pages[] = { 0, 3, 63, 64, 511 };
	struct pins_chunk expected = { .present = { 0 } }, empty = { .present = { 0 } };
	struct stat before, after;
	int rc;

	for (size_t i = 0; i < sizeof pages / sizeof pages[0]; i++) {
		expected.present[pages[i] / 64] |= (uint64_t)1 << (pages[i] % 64);
		s->map[CHUNK_BYTES + pages[i] * PAGE_BYTES] = 1;
		s->again[CHUNK_BYTES + pages[i] * PAGE_BYTES] = 1;
	}
	if (fstat(s->memfd, &before))
		return -errno;
	rc = expect(bpf, s, 1, &expected);
	if (!rc)
		rc = expect(bpf, s, 0, &empty);
	if (!rc)
		rc = scene_hold(s, CHUNK_PAGES + 3);
	expected.held[0] = 1 << 3;
	if (!rc)
		rc = expect(bpf, s, 1, &expected);
	if (!rc)
		rc = scene_let_go(s);
	expected.held[0] = 0;
	if (!rc)
		rc = expect(bpf, s, 1, &expected);
	if (!rc && (fstat(s->memfd, &after) || after.st_blocks != before.st_blocks))
		rc = -EBADMSG;
	return rc;
}

/* -EAGAIN: no large folio is available now. */
static int try_large(struct pins_bpf *bpf, struct scene *s)
{
	struct pins_chunk expected;
	int rc = -1;

	memset(s->map, 1, CHUNK_BYTES);
	if (madvise(s->map, CHUNK_BYTES, MADV_HUGEPAGE))
		return -EAGAIN;
	for (int i = 0; i < TRIES_MAX && rc; i++)
		rc = madvise(s->map, CHUNK_BYTES, MADV_COLLAPSE);
	if (rc)
		return -EAGAIN;
	memset(&expected, 0xff, sizeof expected);
	memset(expected.held, 0, sizeof expected.held);
	pins_bpf_trust_large(bpf, true);
	rc = expect(bpf, s, 0, &expected);
	s->again[9 * PAGE_BYTES] = 1; /* one more mapping, of this page only */
	if (!rc)
		rc = expect(bpf, s, 0, &expected);
	if (!rc)
		rc = scene_hold(s, 7);
	memset(expected.held, 0xff, sizeof expected.held);
	if (!rc)
		rc = expect(bpf, s, 0, &expected);
	if (!rc)
		rc = scene_let_go(s);
	memset(expected.held, 0, sizeof expected.held);
	if (!rc)
		rc = expect(bpf, s, 0, &expected);
	return rc;
}

int pins_selftest_bpf(struct pins_bpf *bpf, struct error *err)
{
	struct scene s;
	int rc = scene_open(&s, err);

	if (rc)
		return rc;
	pins_bpf_trust_large(bpf, false);
	rc = try_small(bpf, &s);
	if (rc)
		error_set(err, -rc, "self-test: %s",
			  rc == -EBADMSG ? "it misjudged a page of ours" : strerror(-rc));
	else if (try_large(bpf, &s))
		pins_bpf_trust_large(bpf, false);
	scene_close(&s);
	return rc;
}

static int expect_free(struct pins_collapse *collapse, const struct scene *s, uint32_t chunk, bool expected)
{
	bool is_free = false;
	int rc = 0;

	for (int i = 0; i < TRIES_MAX && !is_free; i++) {
		rc = pins_collapse_look(collapse, s->memfd, chunk * CHUNK_BYTES, &is_free);
		if (rc || !expected)
			break;
	}
	if (!rc && is_free != expected)
		rc = -EBADMSG;
	return rc;
}

static int try_collapse(struct pins_collapse *collapse, struct scene *s)
{
	struct stat before, after;
	int rc;

	memset(s->map, 1, 2 * CHUNK_BYTES - PAGE_BYTES); /* the second chunk has a hole */
	if (fstat(s->memfd, &before))
		return -errno;
	rc = expect_free(collapse, s, 1, false);
	if (!rc && (fstat(s->memfd, &after) || after.st_blocks != before.st_blocks))
		rc = -EBADMSG;
	if (!rc)
		rc = scene_hold(s, 5);
	if (!rc)
		rc = expect_free(collapse, s, 0, false);
	if (!rc)
		rc = scene_let_go(s);
	if (!rc)
		rc = expect_free(collapse, s, 0, true);
	if (!rc)
		rc = scene_hold(s, 5);
	if (!rc) /* it is huge by now: collapse itself returns 0 */
		rc = expect_free(collapse, s, 0, false);
	return rc;
}

int pins_selftest_collapse(struct pins_collapse *collapse, struct error *err)
{
	struct scene s;
	int rc = scene_open(&s, err);

	if (rc)
		return rc;
	rc = try_collapse(collapse, &s);
	if (rc)
		error_set(err, -rc, "self-test: %s",
			  rc == -EBADMSG ? "it misjudged memory of ours, or no huge page is to be had" :
					   strerror(-rc));
	scene_close(&s);
	return rc;
}
