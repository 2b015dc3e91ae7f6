/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "vm/own_mapping.h"

#include <errno.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

#ifndef MADV_DONTNEED_LOCKED /* Linux 5.18: our own memory is locked */
#define MADV_DONTNEED_LOCKED 24
#endif

#define ASK_AGAIN_TRIES 8

static uint64_t addr_of(const struct own_mapping *mapping, uint64_t page_idx)
{
	return (uint64_t)(uintptr_t)mapping->base + bytes_of_pages(page_idx - mapping->page_idx);
}

int own_mapping_open(struct own_mapping *mapping, const struct region *region, uint64_t page_idx,
		     uint64_t pages)
{
	struct own_mapping opened = { .page_idx = page_idx, .pages = pages };
	int rc;

	opened.uffd = uffd_open_own();
	if (opened.uffd < 0)
		return opened.uffd;
	opened.base = mmap(NULL, bytes_of_pages(pages), PROT_NONE, MAP_SHARED | MAP_NORESERVE, region->fd,
			   (off_t)region_offset_of(region, page_idx));
	if (opened.base == MAP_FAILED) {
		rc = -errno;
		close(opened.uffd);
		return rc;
	}
	/* Keep it from children that we fork. */
	madvise(opened.base, bytes_of_pages(pages), MADV_DONTFORK);
	if (uffd_register_more(opened.uffd, addr_of(&opened, page_idx), bytes_of_pages(pages), false) !=
	    UFFD_DONE) {
		own_mapping_close(&opened);
		return -EPERM;
	}
	*mapping = opened;
	return 0;
}

void own_mapping_close(struct own_mapping *mapping)
{
	if (!mapping->base)
		return;
	munmap(mapping->base, bytes_of_pages(mapping->pages));
	close(mapping->uffd);
	mapping->base = NULL;
}

enum uffd_outcome own_mapping_fill(struct own_mapping *mapping, uint64_t page_idx, const void *page)
{
	uint64_t copied_bytes;

	return uffd_copy(mapping->uffd, addr_of(mapping, page_idx), page, PAGE_BYTES, false, &copied_bytes);
}

/* EEXIST alone is no proof: the kernel also returns it when it meets a page table that is just changing
 * (mm/userfaultfd.c). If the page is mapped already, unmap it and ask again. */
bool own_mapping_has_page(struct own_mapping *mapping, uint64_t page_idx)
{
	uint64_t addr = addr_of(mapping, page_idx);
	enum uffd_outcome outcome = uffd_continue(mapping->uffd, addr);

	for (int tries = 0; outcome == UFFD_EXISTS && tries < ASK_AGAIN_TRIES; tries++) {
		if (madvise((void *)(uintptr_t)addr, PAGE_BYTES, MADV_DONTNEED_LOCKED) != 0)
			return false;
		outcome = uffd_continue(mapping->uffd, addr);
	}
	return outcome == UFFD_DONE;
}

bool own_mapping_region_has_page(const struct region *region, uint64_t page_idx)
{
	struct own_mapping mapping = { 0 };
	bool found;

	if (own_mapping_open(&mapping, region, page_idx, 1) != 0)
		return false;
	found = own_mapping_has_page(&mapping, page_idx);
	own_mapping_close(&mapping);
	return found;
}

/* Do not store to it ourselves: if the page were gone by now, we would wait for our own userfaultfd. The
 * kernel gets EFAULT instead, because that userfaultfd is for user mode only. */
bool own_mapping_region_overwrite(const struct region *region, uint64_t page_idx, const void *page)
{
	struct own_mapping mapping = { 0 };
	struct iovec from = { .iov_base = (void *)(uintptr_t)page, .iov_len = PAGE_BYTES };
	struct iovec to = { .iov_len = PAGE_BYTES };
	bool done;

	if (own_mapping_open(&mapping, region, page_idx, 1) != 0)
		return false;
	to.iov_base = mapping.base;
	done = own_mapping_has_page(&mapping, page_idx) &&
	       mprotect(mapping.base, PAGE_BYTES, PROT_READ | PROT_WRITE) == 0 &&
	       process_vm_writev(getpid(), &from, 1, &to, 1, 0) == (ssize_t)PAGE_BYTES;
	own_mapping_close(&mapping);
	return done;
}
