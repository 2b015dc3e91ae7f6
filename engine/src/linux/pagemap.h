/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Which pages of another process's memory are there: PAGEMAP_SCAN, since Linux 6.7. */
#ifndef VMMSWAP_PAGEMAP_H
#define VMMSWAP_PAGEMAP_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

/* An fd for the memory that the process has now: it ends with it, and is not that of a later program or
 * process. Or -errno; -ENOTTY: the kernel is older. With -1 in its place, nothing is there. */
int pagemap_open(pid_t pid);

/* The same with the process's own, which it has opened itself and given to us: not everybody may open it. */
int pagemap_of(int fd);

/* Find the first run of pages with data, in memory or in the host's swap, that begins in [addr, end_addr). It
 * has pages_max pages at most. The kernel's page of zeros is no data; poison markers count as data. 1: found;
 * 0: there is none; -errno. */
int pagemap_next(int fd, uint64_t addr, uint64_t end_addr, uint64_t pages_max, uint64_t *start_addr,
		 uint64_t *run_end_addr);

/* How many pages in [addr, end_addr) have data; -errno. */
int64_t pagemap_count(int fd, uint64_t addr, uint64_t end_addr);

/* What is at one address. -errno if that cannot be told. */
enum pagemap_page {
	PAGEMAP_NOTHING,
	PAGEMAP_PRESENT, /* mapped; also the kernel's page of zeros */
	PAGEMAP_SWAPPED, /* in the host's swap, or a poison marker */
};
int pagemap_look(int fd, uint64_t addr);

#endif
