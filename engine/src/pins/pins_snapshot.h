/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What the BPF program copies from the kernel about one chunk of a memfd, and what it means. Private to pins.
 *
 * The program only copies. All decisions are made here in C, where they can be read and tested. */
#ifndef VMMSWAP_PINS_SNAPSHOT_H
#define VMMSWAP_PINS_SNAPSHOT_H

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "pins/pins.h"

#define PINS_LEVELS 6	   /* xarray levels down to the nodes of shift 6: 2^42 pages */
#define PINS_NODE_SLOTS 64 /* XA_CHUNK_SIZE */
#define PINS_GROUPS (PINS_CHUNK_PAGES / PINS_NODE_SLOTS)
#define PINS_NODE_HEAD_BYTES 32 /* of struct xa_node, up to its slots */
#define PINS_PAGE_BYTES 64	/* sizeof(struct page) */
#define PINS_NONE UINT32_MAX

/* Offsets in bytes in the running kernel's structures. */
struct pins_layout {
	uint32_t task_files, files_fdt, fdt_fd, file_mapping;
	uint32_t mapping_host, mapping_pages, inode_ino;
	uint32_t xarray_head;
	uint32_t node_shift, node_offset, node_parent, node_array, node_slots;
	uint32_t folio_flags, folio_mapping, folio_index, folio_mapcount, folio_refcount;
	/* in the second struct page; PINS_NONE if unknown */
	uint32_t folio_pincount;
	uint32_t folio_large_mapcount;	/* of all mappings, since 6.10 */
	uint32_t folio_entire_mapcount; /* of mappings of all of it; used where there is no large_mapcount */
	bool entire_in_pages;		/* such a mapping is counted in each page's _mapcount, too */
	uint32_t head_bit, locked_bit;	/* PG_head, PG_locked */
};

struct pins_node_copy {
	uint64_t entry; /* the tagged pointer that led here; 0 and data pointers end the walk */
	uint64_t shift; /* as the walk used it */
	uint8_t head[PINS_NODE_HEAD_BYTES]; /* read after the slots: proves that the node was alive then */
};

struct pins_page_copy {
	uint8_t page[PINS_PAGE_BYTES]; /* the folio's first struct page; zeros if the address could not be
					  read */
	uint32_t mapcount_before;      /* large folios only: _large_mapcount before and after that copy */
	uint32_t mapcount_after;
	uint32_t pincount;
	uint32_t unused;
};

struct pins_snapshot {
	uint64_t fdt[2]; /* before and after the file was taken from it */
	uint64_t mapping;
	uint64_t ino;
	uint64_t root[2]; /* xa_head, before and after the walk */
	struct pins_node_copy level[PINS_LEVELS];
	uint64_t group[PINS_GROUPS]; /* the entries of the shift 6 node; in a smaller tree [0] is the root */
	uint8_t leaf[PINS_GROUPS][PINS_NODE_HEAD_BYTES]; /* read after the slots */
	uint64_t slots[PINS_CHUNK_PAGES]; /* of group i / 64; or its one entry, if that is no node */
	struct pins_page_copy pages[PINS_CHUNK_PAGES]; /* of slots[i], where that is a pointer */
	/* Where no word counts all mappings of a folio: every struct page of one that fills the chunk, before
	 * and after pages[0] was read. */
	uint8_t folio_pages[2][PINS_CHUNK_PAGES * PINS_PAGE_BYTES];
};

struct pins_verdict {
	struct pins_chunk chunk;
	uint64_t swapped[PINS_WORDS]; /* only in the host's swap; also marked held */
	uint32_t nearly_n;	      /* pages held by exactly one more reference, as an LRU batch does */
};

int pins_layout_read(struct pins_layout *layout, struct error *err);

struct pins_place {
	uint64_t ino;	     /* of the memfd */
	uint64_t first_page; /* of the chunk, in the memfd; a multiple of 512 */
	uint32_t pages_n;    /* of the chunk; a large folio that goes beyond is held */
};

/* trust_large: large folios have passed the self-test; otherwise all of them count as held. Pages beyond
 * pages_n are judged too. 0, or -EAGAIN if the tree changed while the program ran: take another snapshot. */
int pins_snapshot_judge(const struct pins_snapshot *snap, const struct pins_layout *layout,
			const struct pins_place *place, bool trust_large, struct pins_verdict *out);

#endif
