// SPDX-License-Identifier: GPL-2.0-or-later
/* move_pages() empties the batches of every CPU before it looks at the pages to move. So we ask it to move a
 * page of our own to the node where it is. No other ordinary system call drains them all. */
#include "pins/pins_drain.h"

#include <errno.h>
#include <linux/mempolicy.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/units.h"

int pins_drain_batches(void)
{
	void *page = mmap(NULL, PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int node = 0, status = 0, rc = 0;

	if (page == MAP_FAILED)
		return -errno;
	*(volatile char *)page = 1;
	if (!syscall(SYS_move_pages, 0, 1ul, &page, NULL, &status, 0) && status >= 0)
		node = status;
	if (syscall(SYS_move_pages, 0, 1ul, &page, &node, &status, MPOL_MF_MOVE) < 0)
		rc = -errno;
	munmap(page, PAGE_BYTES);
	return rc;
}
