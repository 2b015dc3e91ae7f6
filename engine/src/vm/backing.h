/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What backs a region of guest memory. All that differs between the kinds of guest memory stands behind struct backing, and only
 * here is a kind asked for by its name.
 *
 *   memfd     shared memory: a file, which others may map, fill, punch and shrink, and which shows what it has
 *   snapshot  private memory that a VMM restores from a snapshot's file: what is in it, nobody sees but its process
 *
 * The functions may be called by any thread, with the gate passed or held unless they say that they wait. */
#ifndef VMMSWAP_BACKING_H
#define VMMSWAP_BACKING_H

#include <stdbool.h>
#include <stdint.h>

#include "linux/uffd.h"
#include "vm/incore.h"
#include "vm/memory.h"

struct own_mapping;
struct process;
struct range;
struct vm;

/* Pages of one region on their way out. */
struct leaving {
	const struct region *region;
	struct incore incore; /* of a memfd */
};

struct backing {
	/* Nobody sees which pages it has: next_data() finds none, and the page map is all that is known. A page that is out and yet
	 * present was put there by a predecessor, which died before it could note so; nobody else can. */
	bool hides_data;

	/* Its VMM registers it, before it hands it over, and nobody else does: what the VMM has mapped anew since, as older balloons
	 * do, is none of the guest's memory. Only missing faults come. Whatever becomes of a process of it, nobody unregisters it while
	 * pages are out: they are nowhere else, and who touches one had better wait than read zeros. */
	bool vmm_registers;

	/* Why nothing of it can be swapped out, for people; NULL: it can. */
	const char *stays;

	/* The first resident page of the region at or after page_idx, and up to where all that follow are resident: to the next
	 * 2 MiB boundary of the file at most, so that nobody waits for more than that. False: none is left, or -errno in *rc.
	 * Waits for the inode's lock. */
	bool (*next_data)(const struct region *region, uint64_t page_idx, uint64_t *start_idx,
			  uint64_t *end_idx, int *rc);

	/* True if nothing is there. Waits for the inode's lock. */
	bool (*is_hole)(const struct region *region, uint64_t page_idx);

	/* True if the page is the guest's, where the kernel says of a process that something is there. */
	bool (*has_page)(const struct region *region, uint64_t page_idx);

	/* True if a page that was copied to another process than the VMM has come to guest memory. */
	bool (*has_landed)(const struct region *region, uint64_t page_idx);

	/* False if nothing of the region can be taken out: sealed against writing. */
	bool (*may_leave)(const struct region *region);

	/* Read pages into buf. -ERANGE: the memory ends before them (the VMM shrank its memfd). */
	int (*read)(const struct region *region, uint64_t page_idx, uint64_t pages, void *buf);

	/* The way out of at most CHUNK_PAGES pages begins and ends; leave_end() also after an error of leave_begin(). */
	int (*leave_begin)(struct leaving *leaving, const struct region *region, uint64_t page_idx,
			   uint64_t pages, struct error *err);
	void (*leave_end)(struct leaving *leaving);

	/* Wait for whoever would hold up a take_out() that began now (the inode's lock). The page is resident. */
	void (*await_others)(const struct region *region, uint64_t page_idx);

	/* Take out pages that are PUNCHING, all of a large folio or nothing of it. bytes: what was read of them. stays[i]: page i did not
	 * go, and is resident with the guest's bytes. -errno: nothing has happened. Waits for the inode's lock: jobs/punch.h says who does
	 * not wait for us meanwhile. */
	int (*take_out)(struct vm *vm, struct leaving *leaving, uint64_t page_idx, uint64_t pages,
			const char *bytes, bool stays[CHUNK_PAGES], struct error *err);

	/* Put a page that no process takes where whoever maps the memory next finds it. refused: a process has the page mapped, and
	 * cannot take it. own: of pages around it, open or to be opened. 0: done, or the page is gone for good; -ENOMEM; -EIO: it must stay out. */
	int (*put_unmapped)(struct vm *vm, struct own_mapping *own, uint64_t page_idx, const void *page,
			    bool refused);

	/* Register a range with the process's userfaultfd, for write-protect faults too if process->protects, which becomes false
	 * where there are none. UFFD_REFUSED: something else is mapped there, or another userfaultfd watches it. */
	enum uffd_outcome (*register_range)(struct process *process, const struct range *range);

	/* Unregister what a forked child got from its parent. UFFD_REFUSED: it has something else there. */
	enum uffd_outcome (*unregister_inherited)(const struct process *child, const struct range *range);
};

/* Of the page's region. What is in no region counts as a memfd's: it is registered as that, or refused by the kernel. */
const struct backing *backing_of(const struct memory *memory, uint64_t page_idx);

extern const struct backing backing_memfd, backing_snapshot;

/* A region of pages that start at page_idx. The memfd is opened anew through /proc/self/fd, or dup'ed where its mode forbids that: a
 * caller who cannot have opened it anew himself must not pass one that shares its position with the VMM. -EINVAL: the file is too
 * short. */
int region_of_memfd(struct region *out, int memfd, uint64_t offset_bytes, uint64_t page_idx, uint64_t pages,
		    struct error *err);

/* offset_bytes: in the snapshot's file. Nothing is known of it but what the page map says. */
struct region region_of_snapshot(uint64_t offset_bytes, uint64_t page_idx, uint64_t pages);

#endif
