/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "vm/page_map.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static const char MAGIC[8] = "VMMSWAPM";

/* The file is sparse and as large as the largest guest's map: header, words, hashes. So a page's record is
 * found by its index alone, and nothing moves when memory is added. Only used parts take memory: 12 bytes a
 * page. */
#define WORDS_OFFSET_BYTES PAGE_BYTES
#define WORDS_BYTES (PAGE_MAP_MAX_PAGES * sizeof(uint64_t))
#define HASHES_OFFSET_BYTES (WORDS_OFFSET_BYTES + WORDS_BYTES)
#define HASHES_BYTES (PAGE_MAP_MAX_PAGES * sizeof(uint32_t))
#define MAP_BYTES (HASHES_OFFSET_BYTES + HASHES_BYTES)

#define FORGET_PIECE_BYTES ((uint64_t)2 << 20) /* 1 GiB of guest memory: 0.1 ms */

struct extent {
	uint64_t page_idx, pages;
};

struct page_map {
	int fd;
	char *base;			/* MAP_BYTES, shared */
	struct page_map_header *header; /* = base */
	uint64_t next_idx;		/* end of the pages that were added last */
	size_t taken_n, taken_room;
	struct extent *taken; /* by page_idx */
};

_Static_assert(sizeof(struct page_map_header) <= WORDS_OFFSET_BYTES, "the header has one page");

static int map_file(int fd, struct page_map **out, struct error *err)
{
	struct page_map *map = calloc(1, sizeof *map);

	if (!map)
		return error_set(err, ENOMEM, "no memory for the page map");
	map->fd = fd;
	map->base = mmap(NULL, MAP_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0);
	if (map->base == MAP_FAILED) {
		int code = errno;

		free(map);
		return error_set(err, code, "cannot map the page map (%llu MiB of address space): %s",
				 (unsigned long long)(MAP_BYTES >> 20), strerror(code));
	}
	map->header = (struct page_map_header *)map->base;
	*out = map;
	return 0;
}

int page_map_create(struct page_map **out, struct error *err)
{
	int fd = memfd_create("vmmswap page map", MFD_CLOEXEC);
	int rc;

	if (fd < 0)
		return error_set(err, errno, "cannot create the page map's memfd: %s", strerror(errno));
	if (ftruncate(fd, (off_t)MAP_BYTES) != 0) {
		rc = error_set(err, errno, "cannot size the page map's memfd: %s", strerror(errno));
		close(fd);
		return rc;
	}
	rc = map_file(fd, out, err);
	if (rc) {
		close(fd);
		return rc;
	}
	memcpy((*out)->header->magic, MAGIC, sizeof MAGIC);
	(*out)->header->version = PAGE_MAP_VERSION;
	(*out)->header->page_shift = PAGE_SHIFT;
	return 0;
}

static int check_header(int fd, struct error *err)
{
	struct page_map_header header;

	if (pread(fd, &header, sizeof header, 0) != (ssize_t)sizeof header ||
	    memcmp(header.magic, MAGIC, sizeof MAGIC) != 0)
		return error_set(err, EPROTO, "the file given as page map is not a page map");
	if (header.version < PAGE_MAP_VERSION || header.version > PAGE_MAP_VERSION_LOG ||
	    header.page_shift != PAGE_SHIFT)
		return error_set(
			err, EPROTO,
			"the page map has format %u with pages of 2^%u bytes; this program reads formats "
			"%u to %u with pages of 2^%u: use the version of vmmswap that wrote it",
			header.version, header.page_shift, PAGE_MAP_VERSION, PAGE_MAP_VERSION_LOG,
			PAGE_SHIFT);
	return 0;
}

int page_map_adopt(int fd, struct page_map **out, struct error *err)
{
	int rc = check_header(fd, err);
	int own;

	if (rc)
		return rc;
	own = fcntl(fd, F_DUPFD_CLOEXEC, 3);
	if (own < 0)
		return error_set(err, errno, "cannot dup the page map: %s", strerror(errno));
	rc = map_file(own, out, err);
	if (rc)
		close(own);
	return rc;
}

void page_map_may_have_log(struct page_map *map)
{
	map->header->version = PAGE_MAP_VERSION_LOG;
}

void page_map_destroy(struct page_map *map)
{
	if (!map)
		return;
	munmap(map->base, MAP_BYTES);
	close(map->fd);
	free(map->taken);
	free(map);
}

int page_map_fd(const struct page_map *map)
{
	return map->fd;
}

struct page_map_header *page_map_header(struct page_map *map)
{
	return map->header;
}

/* Find the first gap at or after from_idx; *place is its position in the list. */
static bool find_gap(const struct page_map *map, uint64_t from_idx, uint64_t pages_n, uint64_t *page_idx,
		     size_t *place)
{
	*page_idx = from_idx;
	for (*place = 0; *place < map->taken_n; ++*place) {
		const struct extent *taken = &map->taken[*place];

		if (taken->page_idx >= *page_idx && taken->page_idx - *page_idx >= pages_n)
			return true;
		if (taken->page_idx + taken->pages > *page_idx)
			*page_idx = taken->page_idx + taken->pages;
	}
	return PAGE_MAP_MAX_PAGES - *page_idx >= pages_n;
}

int page_map_add_pages(struct page_map *map, uint64_t pages_n, uint64_t *first_page_idx, struct error *err)
{
	size_t place;

	if (!find_gap(map, map->next_idx, pages_n, first_page_idx, &place) &&
	    !find_gap(map, 0, pages_n, first_page_idx, &place))
		return error_set(
			err, E2BIG,
			"there is no room for %llu pages: guest memory of more than %llu pages is not "
			"supported",
			(unsigned long long)pages_n, (unsigned long long)PAGE_MAP_MAX_PAGES);
	if (map->taken_n == map->taken_room) {
		size_t room = map->taken_room ? map->taken_room * 2 : 8;
		struct extent *grown = realloc(map->taken, room * sizeof *grown);

		if (!grown)
			return error_set(err, ENOMEM, "no memory for the page map");
		map->taken = grown;
		map->taken_room = room;
	}
	memmove(&map->taken[place + 1], &map->taken[place], (map->taken_n - place) * sizeof *map->taken);
	map->taken[place] = (struct extent){ *first_page_idx, pages_n };
	map->taken_n++;
	map->next_idx = *first_page_idx + pages_n;
	if (map->next_idx > atomic_load(&map->header->pages_n))
		atomic_store(&map->header->pages_n, map->next_idx);
	return 0;
}

_Atomic uint64_t *page_map_word(struct page_map *map, uint64_t page_idx)
{
	return (_Atomic uint64_t *)(map->base + WORDS_OFFSET_BYTES) + page_idx;
}

uint32_t *page_map_hash(struct page_map *map, uint64_t page_idx)
{
	return (uint32_t *)(map->base + HASHES_OFFSET_BYTES) + page_idx;
}

/* SEEK_DATA on the map's own memfd, in units of words. Only this code moves its file offset. */
uint64_t page_map_next_used(struct page_map *map, uint64_t page_idx, uint64_t end_idx)
{
	off_t from = (off_t)(WORDS_OFFSET_BYTES + page_idx * sizeof(uint64_t));
	off_t data = lseek(map->fd, from, SEEK_DATA);
	uint64_t found_idx;

	if (data < 0)
		return errno == ENXIO ? end_idx : page_idx;
	if (data <= from)
		return page_idx;
	found_idx = ((uint64_t)data - WORDS_OFFSET_BYTES) / sizeof(uint64_t);
	return found_idx < end_idx ? found_idx : end_idx;
}

void page_map_return_pages(struct page_map *map, uint64_t page_idx)
{
	size_t i = 0;

	while (i < map->taken_n && map->taken[i].page_idx != page_idx)
		i++;
	if (i == map->taken_n)
		return;
	map->taken_n--;
	memmove(&map->taken[i], &map->taken[i + 1], (map->taken_n - i) * sizeof *map->taken);
}

static void punch(struct page_map *map, uint64_t offset_bytes, uint64_t size_bytes)
{
	for (uint64_t done = 0, piece; done < size_bytes; done += piece) {
		piece = size_bytes - done < FORGET_PIECE_BYTES ? size_bytes - done : FORGET_PIECE_BYTES;
		fallocate(map->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)(offset_bytes + done),
			  (off_t)piece);
	}
}

void page_map_forget(struct page_map *map, uint64_t page_idx, uint64_t pages_n)
{
	punch(map, WORDS_OFFSET_BYTES + page_idx * sizeof(uint64_t), pages_n * sizeof(uint64_t));
	punch(map, HASHES_OFFSET_BYTES + page_idx * sizeof(uint32_t), pages_n * sizeof(uint32_t));
}
