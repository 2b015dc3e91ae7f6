/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What backs a region of guest memory. All differences between the kinds of guest memory are behind struct
 * backing. No other room names a kind.
 *
 *   memfd     shared memory: a file. Others may map it, fill it, punch holes and shrink it, and everybody can
 *             see which pages it has.
 *   snapshot  private memory, which a VMM restores from the memory file of a snapshot. Only its process can
 *             see what is in it.
 *   private   private memory of the VMM, which a thread of the VMM moves for us (linux/mover.h).
 *
 * Any thread may call the functions, also while it passes or holds the gate, unless they say that they
 * wait. */
#ifndef VMMSWAP_BACKING_H
#define VMMSWAP_BACKING_H

#include <stdbool.h>
#include <stdint.h>

#include "linux/mover.h"
#include "linux/uffd.h"
#include "vm/incore.h"
#include "vm/memory.h"

struct own_mapping;
struct process;
struct range;
struct vm;

/* Pages of one region while they are taken out. */
struct leaving {
	const struct region *region;
	struct incore incore; /* of a memfd */
};

struct backing {
	/* Nobody can see which pages are resident: next_data() finds none, and only the page map knows. If a
	 * swapped-out page is present, a predecessor put it there and died before it could write that
	 * down. */
	bool hides_data;

	/* The VMM registers the memory before it hands it over, and we never do. Memory that the VMM has
	 * mapped anew since, as older balloons do, is not the guest's. There are missing faults only. The
	 * memory is not unregistered while pages are out, even if its process is given up: their contents are
	 * nowhere else, and it is better that a thread waits than that it reads zeros. */
	bool vmm_registers;

	/* Pages leave by being moved: jobs/move_out.h, which uses none of what is here for taking out.
	 * Nothing is write-protected. Only the VMM has the memory: a forked child that has some of it has a
	 * copy. */
	bool moves;

	/* Why this memory cannot be swapped out, for people. NULL: it can. */
	const char *stays;

	/* Find the first resident page at or after page_idx, and the end of the resident pages that follow
	 * it. The run ends at the next 2 MiB boundary of the file at the latest, so that nobody waits for
	 * longer. False: there is none, or -errno in *rc. Waits for the inode's lock. */
	bool (*next_data)(const struct region *region, uint64_t page_idx, uint64_t *start_idx,
			  uint64_t *end_idx, int *rc);

	/* The same for the pages of a window, at most CHUNK_PAGES, which are looked at all at once: set bit
	 * i of data for each that is resident. 0 or -errno. NULL: only next_data() can tell, and
	 * first_data() is NULL, too. */
	int (*find_data)(const struct region *region, uint64_t page_idx, uint64_t pages,
			 uint64_t data[CHUNK_PAGES / 64]);

	/* Find the first resident page at or after page_idx, and nothing more. 0; -ENXIO: there is none;
	 * -errno. Waits for the inode's lock. */
	int (*first_data)(const struct region *region, uint64_t page_idx, uint64_t *data_idx);

	/* True if there is no page. Waits for the inode's lock. */
	bool (*is_hole)(const struct region *region, uint64_t page_idx);

	/* Call this if the kernel said EEXIST for a page of a process. True if guest memory has the page. */
	bool (*has_page)(const struct region *region, uint64_t page_idx);

	/* True if a page that was copied to a process other than the VMM has arrived in guest memory. */
	bool (*has_landed)(const struct region *region, uint64_t page_idx);

	/* How many pages are resident, where the file's blocks do not tell; -errno. NULL: they do. */
	int64_t (*count)(const struct region *region, uint64_t page_idx, uint64_t pages);

	/* False if no page can be taken out: the file is sealed against writing. */
	bool (*may_leave)(const struct region *region);

	/* Read pages into buf. -ERANGE: the memory ends before them, because the VMM shrank its memfd. */
	int (*read)(const struct region *region, uint64_t page_idx, uint64_t pages, void *buf);

	/* Call these before the first and after the last take_out() of at most CHUNK_PAGES pages; leave_end()
	 * also if leave_begin() failed. */
	int (*leave_begin)(struct leaving *leaving, const struct region *region, uint64_t page_idx,
			   uint64_t pages, struct error *err);
	void (*leave_end)(struct leaving *leaving);

	/* Wait until nothing would hold up a take_out() now: nobody has the inode's lock. The page is
	 * resident. */
	void (*await_others)(const struct region *region, uint64_t page_idx);

	/* Take out pages that are PUNCHING; a large folio whole or not at all. bytes: what was read from
	 * them. stays[i]: page i could not be taken out, and is resident with the contents that the guest is
	 * to see. On error no page is taken out. Waits for the inode's lock; jobs/punch.h says why page
	 * faults are served meanwhile. */
	int (*take_out)(struct vm *vm, struct leaving *leaving, uint64_t page_idx, uint64_t pages,
			const char *bytes, bool stays[CHUNK_PAGES], struct error *err);

	/* Bring back a page that could not be copied to any process, so that it is there when the memory is
	 * mapped again. refused: a process maps the page, but the kernel would not copy it there. own: of
	 * pages around it, open or still to be opened. 0: it is back, or gone for good; -ENOMEM; -EIO: it
	 * must stay out. */
	int (*put_unmapped)(struct vm *vm, struct own_mapping *own, uint64_t page_idx, const void *page,
			    bool refused);

	/* Register a range with the process's userfaultfd; for write-protect faults too if process->protects.
	 * Clears process->protects if the kernel offers none. UFFD_REFUSED: other memory is mapped there, or
	 * another userfaultfd watches it. */
	enum uffd_outcome (*register_range)(struct process *process, const struct range *range);

	/* Unregister a range that a forked child got from its parent. UFFD_REFUSED: it has other memory
	 * there. */
	enum uffd_outcome (*unregister_inherited)(const struct process *child, const struct range *range);
};

/* The backing of the page's region. A page of no region counts as a memfd's: the kernel then registers it as
 * shared memory, or refuses. */
const struct backing *backing_of(const struct memory *memory, uint64_t page_idx);

extern const struct backing backing_memfd, backing_snapshot, backing_private;

/* Make a region of pages from page_idx on. The memfd is opened anew through /proc/self/fd, or dup'ed if its
 * mode forbids that: a caller who could not open it anew must not pass one that shares its position with the
 * VMM. -EINVAL: the file is too short. */
int region_of_memfd(struct region *out, int memfd, uint64_t offset_bytes, uint64_t page_idx, uint64_t pages,
		    struct error *err);

/* Make a region of private memory, of which only the page map knows anything. offset_bytes: in the
 * snapshot's file. */
struct region region_of_snapshot(uint64_t offset_bytes, uint64_t page_idx, uint64_t pages);

/* Make a region of the VMM's private memory at an address. The mover stays the caller's. */
struct region region_of_private(struct mover *mover, uint64_t addr, uint64_t page_idx, uint64_t pages);

#endif
