/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef VMMSWAP_TEST_PAGE_CACHE_H
#define VMMSWAP_TEST_PAGE_CACHE_H

#include <sys/mman.h>
#include <sys/stat.h>

#include "base/units.h"
#include "harness.h"

/* How many pages of a file the page cache has. */
static inline size_t cached_pages(int fd)
{
	struct stat st;
	size_t n, cached = 0;
	unsigned char *resident;
	void *map;

	CHECK_SYS(fstat(fd, &st));
	n = pages_of_bytes((uint64_t)st.st_size);
	resident = calloc(n, 1);
	map = mmap(NULL, bytes_of_pages(n), PROT_READ, MAP_SHARED, fd, 0);
	CHECK(map != MAP_FAILED && resident);
	CHECK_SYS(mincore(map, bytes_of_pages(n), resident));
	for (size_t i = 0; i < n; i++)
		cached += resident[i] & 1;
	munmap(map, bytes_of_pages(n));
	free(resident);
	return cached;
}

#endif
