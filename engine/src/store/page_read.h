/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The read of one page, begun and ended apart: the store says where the bytes are, the caller reads them by
 * any means and as many at a time as it likes, and the store makes the page of them. store_begin_read() and
 * store_end_read() in store.h. */
#ifndef VMMSWAP_PAGE_READ_H
#define VMMSWAP_PAGE_READ_H

#include <stdint.h>

#include "base/units.h"
#include "store/record.h"

/* At most so many bytes are read for a page: a record, and the whole blocks around it. */
#define PAGE_READ_BYTES_MAX (((uint64_t)RECORD_BYTES_MAX + 2 * PAGE_BYTES - 1) & PAGE_MASK)

struct page_read {
	uint64_t slot_idx;
	int fd;
	uint64_t offset_bytes, size_bytes; /* in the file; multiples of a page */
	uint64_t record_bytes;		   /* the log's: how long the record is at most */
};

#endif
