/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A part of guest memory's file, mapped into our own process, for what only a mapping can do.
 *
 * It fills a hole of the file where no process of the VM maps it. write() cannot be used for that. The kernel
 * decides by the file's settings how much it allocates for a hole (mm/shmem.c,
 * shmem_allowable_huge_orders()): up to 2 MiB, of which all but our page would be zeros that look like the
 * guest's own. And write() waits for the lock of the file's inode, which a thread of the VMM may hold while
 * it waits for us. UFFDIO_COPY allocates single pages and takes no such lock (shmem_mfill_atomic_pte(), the
 * same from Linux 6.1 to 6.18).
 *
 * It also tells a page from a hole, without that lock, which lseek() would take: UFFDIO_CONTINUE succeeds
 * only if there is a page.
 *
 * An access through a mapping of ours would fill a hole with zeros. So the mapping has no access rights,
 * exists only while it is needed, and is registered with a userfaultfd of our own, for user mode only, which
 * needs no privilege. */
#ifndef VMMSWAP_OWN_MAPPING_H
#define VMMSWAP_OWN_MAPPING_H

#include "linux/uffd.h"
#include "vm/memory.h"

/* Zeroed: not open. */
struct own_mapping {
	char *base; /* NULL: not open */
	int uffd;
	uint64_t page_idx, pages;
};

/* Map pages of one region. 0, or -errno: -EPERM if the file is sealed against writing. Waits for no inode's
 * lock. */
int own_mapping_open(struct own_mapping *mapping, const struct region *region, uint64_t page_idx,
		     uint64_t pages);
void own_mapping_close(struct own_mapping *mapping); /* need not be open */

/* Fill the page's hole with these bytes. UFFD_EXISTS: there is a page already. UFFD_BEYOND: the file ends
 * before the page. */
enum uffd_outcome own_mapping_fill(struct own_mapping *mapping, uint64_t page_idx, const void *page);

/* True if the file has the page. */
bool own_mapping_has_page(struct own_mapping *mapping, uint64_t page_idx);

/* As own_mapping_has_page(), without an open mapping. False also if it cannot be found out. */
bool own_mapping_region_has_page(const struct region *region, uint64_t page_idx);

/* Overwrite a page that the file has. False if the file no longer has it, or it cannot be overwritten. Waits
 * for no inode's lock. */
bool own_mapping_region_overwrite(const struct region *region, uint64_t page_idx, const void *page);

#endif
