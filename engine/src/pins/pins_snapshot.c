// SPDX-License-Identifier: GPL-2.0-or-later
/* Why a snapshot taken with no lock can be believed.
 *
 * The question is only about pages that were in the memfd and held before the protect, and still are: a page
 * that comes or goes while we look raises an event, and the swapper drops it for that. Such a page stays in
 * its slot of its leaf the whole time, and what can move is the tree above, which grows and shrinks as the
 * file's end is filled or punched, and the page's mappings.
 *
 * - A node that left the tree has its `array` overwritten before it is freed, and one that was used again has
 *   other array, parent, offset or shift. All four are read after the slots, and the root is read again at
 *   the very end. So an empty slot was an empty slot of the live tree. Anything else: -EAGAIN, and the caller
 *   looks again.
 * - A struct page counts only if its mapping and index are ours, which they are not once it has left the
 *   cache.
 * - The kernel takes a reference before it maps a page and drops it after it has unmapped it. So at each
 *   instant references >= mappings + 1, and one load of both words that finds them equal proves that nobody
 *   else has one. A large folio has its counters in two words: pins by DMA have a counter of their own there,
 *   which must be zero, and the number of mappings must be the same before and after the references were
 *   read.
 * - Before 6.10 no word has the number of a large folio's mappings: those of each page are counted there, and
 *   those of all of it once more. They are read one after the other, all before the references and all again
 *   after them, and must be the same. Up to 6.1 a mapping of the whole adds to each page's counter in turn,
 *   and a thread that is halfway through that could make up for as many references of others. The folio is
 *   locked meanwhile (a fault maps it so), and a locked one is held.
 * - Whatever is not understood is held. */
#include "pins/pins_snapshot.h"

#include <errno.h>
#include <string.h>

#define ENTRY_NODE_MIN 4096	    /* internal entries above it are nodes */
#define ENTRY_SIBLING_END (64 << 2) /* internal entries below it point to the first slot of a large folio */
#define ENTRY_TAG 2

enum seen { SEEN_HOLE, SEEN_FREE, SEEN_HELD, SEEN_NEARLY, SEEN_SWAPPED };

struct judge {
	const struct pins_snapshot *snap;
	const struct pins_layout *layout;
	const struct pins_place *place;
	bool trust_large;
	struct pins_verdict *out;
};

static uint64_t u64_at(const uint8_t *bytes, uint32_t off)
{
	uint64_t value;

	memcpy(&value, bytes + off, sizeof value);
	return value;
}

static uint32_t u32_at(const uint8_t *bytes, uint32_t off)
{
	uint32_t value;

	memcpy(&value, bytes + off, sizeof value);
	return value;
}

static bool is_internal(uint64_t entry)
{
	return (entry & 3) == ENTRY_TAG;
}

static bool is_node(uint64_t entry)
{
	return is_internal(entry) && entry > ENTRY_NODE_MIN;
}

static bool is_sibling(uint64_t entry)
{
	return is_internal(entry) && entry < ENTRY_SIBLING_END;
}

/* True if this is a live node of our tree, in the place where we found it. The root has no parent, and no
 * valid offset either. */
static bool node_alive(const struct judge *j, const uint8_t *head, uint64_t parent, uint64_t shift,
		       uint64_t offset)
{
	const struct pins_layout *l = j->layout;

	return u64_at(head, l->node_array) == j->snap->mapping + l->mapping_pages &&
	       head[l->node_shift] == shift && u64_at(head, l->node_parent) == parent &&
	       (!parent || head[l->node_offset] == offset);
}

static void mark(const struct judge *j, uint32_t first, uint32_t pages_n, enum seen seen, bool large)
{
	struct pins_verdict *out = j->out;

	for (uint32_t i = first; i < first + pages_n && i < PINS_CHUNK_PAGES; i++) {
		uint64_t bit = (uint64_t)1 << (i % 64);

		if (seen == SEEN_HELD || seen == SEEN_NEARLY || seen == SEEN_SWAPPED)
			out->chunk.held[i / 64] |= bit;
		if (seen == SEEN_FREE || seen == SEEN_HELD || seen == SEEN_NEARLY)
			out->chunk.present[i / 64] |= bit;
		if (seen == SEEN_SWAPPED)
			out->swapped[i / 64] |= bit;
		if (large)
			out->chunk.large[i / 64] |= bit;
	}
	if (seen == SEEN_NEARLY)
		out->nearly_n += pages_n;
}

static enum seen judge_count(uint32_t references, uint32_t expected)
{
	if (references == expected)
		return SEEN_FREE;
	return references == expected + 1 ? SEEN_NEARLY : SEEN_HELD;
}

/* Add up the mappings of a folio that fills the chunk. False: it was mapped, unmapped or locked meanwhile, or
 * it is pinned. */
static bool add_up_mappings(const struct judge *j, uint64_t flags, uint32_t *mappings_n)
{
	const struct pins_layout *l = j->layout;
	const uint8_t *before = j->snap->folio_pages[0], *after = j->snap->folio_pages[1];
	uint32_t entire_n = u32_at(before, l->folio_entire_mapcount) + 1;
	uint64_t locked =
		(flags | u64_at(before, l->folio_flags) | u64_at(after, l->folio_flags)) >> l->locked_bit & 1;

	*mappings_n = entire_n;
	if (locked || entire_n != u32_at(after, l->folio_entire_mapcount) + 1 ||
	    u32_at(before, l->folio_pincount) || u32_at(after, l->folio_pincount))
		return false;
	for (uint32_t i = 0; i < PINS_CHUNK_PAGES; i++) {
		uint32_t at = i * PINS_PAGE_BYTES + l->folio_mapcount;
		uint32_t count = u32_at(before, at) + 1 - (l->entire_in_pages ? entire_n : 0);

		if (u32_at(before, at) != u32_at(after, at) || count > INT32_MAX)
			return false;
		*mappings_n += count;
	}
	return true;
}

static bool count_mappings(const struct judge *j, uint32_t i, uint32_t pages_n, uint32_t *mappings_n)
{
	const struct pins_page_copy *copy = &j->snap->pages[i];

	if (j->layout->folio_large_mapcount != PINS_NONE) {
		*mappings_n = copy->mapcount_after + 1;
		return copy->mapcount_before == copy->mapcount_after && copy->pincount == 0;
	}
	return j->layout->folio_entire_mapcount != PINS_NONE && pages_n == PINS_CHUNK_PAGES &&
	       add_up_mappings(j, u64_at(copy->page, j->layout->folio_flags), mappings_n);
}

/* The folio whose first page is page i of the chunk. The kernel stores mapping counts minus one. */
static void judge_folio(const struct judge *j, uint32_t i, uint32_t pages_n)
{
	const struct pins_layout *l = j->layout;
	const struct pins_page_copy *copy = &j->snap->pages[i];
	bool ours = u64_at(copy->page, l->folio_mapping) == j->snap->mapping &&
		    u64_at(copy->page, l->folio_index) == j->place->first_page + i;
	bool large = u64_at(copy->page, l->folio_flags) >> l->head_bit & 1;
	uint32_t references = u32_at(copy->page, l->folio_refcount);
	enum seen seen = SEEN_HELD;
	uint32_t mappings_n;

	if (ours && !large && pages_n == 1)
		seen = judge_count(references, u32_at(copy->page, l->folio_mapcount) + 2);
	if (ours && large && pages_n > 1 && j->trust_large && i + pages_n <= j->place->pages_n &&
	    count_mappings(j, i, pages_n, &mappings_n))
		seen = judge_count(references, mappings_n + pages_n);
	mark(j, i, pages_n, seen, large || pages_n > 1);
}

/* One entry for pages_n pages, siblings included. */
static void judge_entry(const struct judge *j, uint64_t entry, uint32_t i, uint32_t pages_n)
{
	if (entry == 0)
		mark(j, i, pages_n, SEEN_HOLE, false);
	else if (entry & 1)
		mark(j, i, pages_n, SEEN_SWAPPED, pages_n > 1);
	else if (entry & 3)
		mark(j, i, pages_n, SEEN_HELD, false);
	else
		judge_folio(j, i, pages_n);
}

static int judge_leaf(const struct judge *j, uint32_t group, uint64_t parent)
{
	const uint64_t *slots = &j->snap->slots[group * PINS_NODE_SLOTS];
	uint64_t offset = parent ? (j->place->first_page / PINS_NODE_SLOTS + group) % PINS_NODE_SLOTS : 0;
	uint32_t next;

	if (!node_alive(j, j->snap->leaf[group], parent, 0, offset))
		return -EAGAIN;
	for (uint32_t i = 0; i < PINS_NODE_SLOTS; i = next) {
		for (next = i + 1; next < PINS_NODE_SLOTS && is_sibling(slots[next]) && slots[next] >> 2 == i;
		     next++)
			;
		judge_entry(j, slots[i], group * PINS_NODE_SLOTS + i, next - i);
	}
	return 0;
}

static int judge_groups(const struct judge *j, uint64_t parent)
{
	const uint64_t *groups = j->snap->group;
	uint64_t base = (j->place->first_page / PINS_NODE_SLOTS) % PINS_NODE_SLOTS;
	uint32_t next;

	for (uint32_t g = 0; g < PINS_GROUPS; g = next) {
		for (next = g + 1;
		     next < PINS_GROUPS && is_sibling(groups[next]) && groups[next] >> 2 == base + g; next++)
			;
		if (is_node(groups[g])) {
			if (judge_leaf(j, g, parent))
				return -EAGAIN;
		} else {
			judge_entry(j, groups[g], g * PINS_NODE_SLOTS, (next - g) * PINS_NODE_SLOTS);
		}
	}
	return 0;
}

/* If a file has pages only among its first 64, its tree is one leaf or a single page. */
static int judge_small(const struct judge *j)
{
	uint64_t root = j->snap->root[0];

	if (j->place->first_page > 0)
		return 0;
	if (is_node(root))
		return judge_leaf(j, 0, 0);
	judge_entry(j, root, 0, 1);
	return 0;
}

static int judge_tree(const struct judge *j)
{
	const struct pins_node_copy *level = j->snap->level;
	uint64_t parent = 0, offset = 0;

	if (!is_node(j->snap->root[0]) || j->snap->group[0] == j->snap->root[0])
		return judge_small(j);
	if (level[0].shift < 64 && j->place->first_page >> level[0].shift >= PINS_NODE_SLOTS)
		return node_alive(j, level[0].head, 0, level[0].shift, 0) ? 0 : -EAGAIN;
	for (int n = 0; n < PINS_LEVELS; n++) {
		if (n > 0 && level[n].entry == 0)
			return 0;
		if (!is_node(level[n].entry) || !node_alive(j, level[n].head, parent, level[n].shift, offset))
			return -EAGAIN;
		if (level[n].shift < 6 || level[n].shift > 58 ||
		    (n > 0 && level[n].shift != level[n - 1].shift - 6))
			return -EAGAIN;
		parent = level[n].entry - ENTRY_TAG;
		if (level[n].shift == 6)
			return judge_groups(j, parent);
		offset = (j->place->first_page >> level[n].shift) % PINS_NODE_SLOTS;
	}
	return -EAGAIN;
}

int pins_snapshot_judge(const struct pins_snapshot *snap, const struct pins_layout *layout,
			const struct pins_place *place, bool trust_large, struct pins_verdict *out)
{
	struct judge judge = { snap, layout, place, trust_large, out };

	memset(out, 0, sizeof *out);
	out->chunk.sees_folios = true;
	if (snap->fdt[0] != snap->fdt[1] || snap->ino != place->ino || snap->root[0] != snap->root[1])
		return -EAGAIN;
	return judge_tree(&judge);
}
