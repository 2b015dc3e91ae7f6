/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "linux/page_there.h"

#include <errno.h>
#include <sys/syscall.h>
#include <unistd.h>

int page_is_there(pid_t pid, uint64_t addr)
{
	void *page = (void *)(uintptr_t)addr;
	int status = 0; /* the node that it is on, or -errno */

	if (syscall(SYS_move_pages, pid, 1ul, &page, NULL, &status, 0))
		return -errno;
	if (status >= 0)
		return 1;
	return status == -ENOENT || status == -EFAULT ? 0 : status;
}
