/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "base/big_buffer.h"

#include <stddef.h>
#include <sys/mman.h>

void *big_buffer_new(void)
{
	char *at = mmap(NULL, 2 * CHUNK_BYTES, PROT_READ | PROT_WRITE,
			MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	uint64_t before_bytes;

	if (at == MAP_FAILED)
		return NULL;
	before_bytes = -(uintptr_t)at % CHUNK_BYTES;
	if (before_bytes)
		munmap(at, before_bytes);
	at += before_bytes;
	munmap(at + CHUNK_BYTES, CHUNK_BYTES - before_bytes);
	madvise(at, CHUNK_BYTES, MADV_HUGEPAGE);
	madvise(at, CHUNK_BYTES, MADV_POPULATE_WRITE); /* else page by page, as it is used */
	return at;
}

void big_buffer_free(void *buffer)
{
	if (buffer)
		munmap(buffer, CHUNK_BYTES);
}
