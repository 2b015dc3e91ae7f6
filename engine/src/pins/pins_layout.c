// SPDX-License-Identifier: GPL-2.0-or-later
#include <errno.h>
#include <stdbool.h>
#include <stddef.h>

#include "pins/pins_btf.h"
#include "pins/pins_snapshot.h"

#define BTF_PATH "/sys/kernel/btf/vmlinux"

struct wanted {
	const char *structure;
	const char *member;
	size_t at;	 /* in struct pins_layout */
	uint32_t bytes;	 /* of the member */
	uint32_t before; /* the member must end there or earlier; 0: anywhere */
};

#define WANT(structure, member, field, bytes, before) \
	{ #structure, #member, offsetof(struct pins_layout, field), bytes, before }

static const struct wanted wanted[] = {
	WANT(task_struct, files, task_files, 8, 0),
	WANT(files_struct, fdt, files_fdt, 8, 0),
	WANT(fdtable, fd, fdt_fd, 8, 0),
	WANT(file, f_mapping, file_mapping, 8, 0),
	WANT(address_space, host, mapping_host, 8, 0),
	WANT(address_space, i_pages, mapping_pages, 8, 0),
	WANT(inode, i_ino, inode_ino, 8, 0),
	WANT(xarray, xa_head, xarray_head, 8, 0),
	WANT(xa_node, shift, node_shift, 1, PINS_NODE_HEAD_BYTES),
	WANT(xa_node, offset, node_offset, 1, PINS_NODE_HEAD_BYTES),
	WANT(xa_node, parent, node_parent, 8, PINS_NODE_HEAD_BYTES),
	WANT(xa_node, array, node_array, 8, PINS_NODE_HEAD_BYTES),
	WANT(xa_node, slots, node_slots, 8, 0),
	WANT(folio, flags, folio_flags, 8, PINS_PAGE_BYTES),
	WANT(folio, mapping, folio_mapping, 8, PINS_PAGE_BYTES),
	WANT(folio, index, folio_index, 8, PINS_PAGE_BYTES),
	WANT(folio, _mapcount, folio_mapcount, 4, PINS_PAGE_BYTES),
	WANT(folio, _refcount, folio_refcount, 4, PINS_PAGE_BYTES),
};

static int read_wanted(const struct pins_btf *btf, struct pins_layout *layout, struct error *err)
{
	for (size_t i = 0; i < sizeof wanted / sizeof wanted[0]; i++) {
		const struct wanted *w = &wanted[i];
		uint32_t at;

		if (pins_btf_offset(btf, w->structure, w->member, &at))
			return error_set(err, ENOTSUP, "this kernel's struct %s has no member %s",
					 w->structure, w->member);
		/* node heads and pages are copied at once; a larger kernel structure means an unknown
		 * kernel */
		if (w->before && at + w->bytes > w->before)
			return error_set(err, ENOTSUP,
					 "this kernel's struct %s has %s at byte %u, not within %u",
					 w->structure, w->member, at, w->before);
		*(uint32_t *)((char *)layout + w->at) = at;
	}
	return 0;
}

static bool is_in_second_page(uint32_t at)
{
	return at >= PINS_PAGE_BYTES && at + 4 <= 2 * PINS_PAGE_BYTES;
}

/* Since 6.10 a large folio has one count of all its mappings. Earlier kernels count the mappings of the whole
 * folio in one word, which 6.1 misnames _total_mapcount, and those of single pages in each page; up to 6.1
 * the latter include the former. If neither is found, large folios count as held. */
static void read_large(const struct pins_btf *btf, struct pins_layout *layout)
{
	layout->folio_large_mapcount = layout->folio_entire_mapcount = PINS_NONE;
	if (pins_btf_offset(btf, "folio", "_pincount", &layout->folio_pincount) ||
	    !is_in_second_page(layout->folio_pincount) ||
	    pins_btf_enumerator(btf, "pageflags", "PG_locked", &layout->locked_bit) ||
	    layout->locked_bit > 30)
		return;
	if (!pins_btf_offset(btf, "folio", "_large_mapcount", &layout->folio_large_mapcount))
		return;
	layout->folio_large_mapcount = PINS_NONE;
	layout->entire_in_pages =
		!pins_btf_offset(btf, "folio", "_total_mapcount", &layout->folio_entire_mapcount);
	if ((!layout->entire_in_pages &&
	     pins_btf_offset(btf, "folio", "_entire_mapcount", &layout->folio_entire_mapcount)) ||
	    !is_in_second_page(layout->folio_entire_mapcount))
		layout->folio_entire_mapcount = PINS_NONE;
}

static int check_sizes(const struct pins_btf *btf, const struct pins_layout *layout, struct error *err)
{
	uint32_t page_bytes = 0, node_bytes = 0;
	uint32_t low = layout->folio_mapcount < layout->folio_refcount ? layout->folio_mapcount :
									 layout->folio_refcount;

	pins_btf_size(btf, "page", &page_bytes);
	pins_btf_size(btf, "xa_node", &node_bytes);
	if (page_bytes != PINS_PAGE_BYTES)
		return error_set(err, ENOTSUP, "this kernel's struct page has %u bytes, not 64", page_bytes);
	if (node_bytes < layout->node_slots + PINS_NODE_SLOTS * 8)
		return error_set(err, ENOTSUP, "this kernel's page cache nodes have fewer than 64 slots");
	/* The kernel copies eight aligned bytes with one load, so both counters come from the same
	 * instant. Then a page that somebody else holds cannot look free, even if it is mapped or unmapped
	 * meanwhile. */
	if (low % 8 || layout->folio_mapcount + layout->folio_refcount != 2 * low + 4)
		return error_set(err, ENOTSUP,
				 "this kernel's _mapcount and _refcount do not lie in one word");
	return 0;
}

int pins_layout_read(struct pins_layout *layout, struct error *err)
{
	struct pins_btf *btf;
	int rc = pins_btf_open(BTF_PATH, &btf, err);

	if (rc)
		return rc;
	rc = read_wanted(btf, layout, err);
	if (!rc && pins_btf_enumerator(btf, "pageflags", "PG_head", &layout->head_bit))
		rc = error_set(err, ENOTSUP, "this kernel has no PG_head");
	if (!rc && layout->head_bit > 30)
		rc = error_set(err, ENOTSUP, "this kernel's PG_head is bit %u", layout->head_bit);
	if (!rc)
		rc = check_sizes(btf, layout, err);
	read_large(btf, layout);
	pins_btf_close(btf);
	return rc;
}
