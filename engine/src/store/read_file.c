/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "store/read_file.h"

#include <errno.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

#include "base/failpoint.h"
#include "base/held.h"
#include "base/units.h"

int read_file(int fd, struct pieces *pieces, uint64_t offset_bytes)
{
	struct iovec *at = pieces->at;
	size_t n = pieces->n;

	HELD_MAY_WAIT(WAIT_READ);
	while (n) {
		ssize_t got = FAILPOINT("store.read");

		if (!got)
			got = preadv(fd, at, (int)n, (off_t)offset_bytes);
		else
			errno = (int)-got;
		if (got < 0 && errno == EINTR)
			continue;
		if (got < 0)
			return -errno;
		if ((uint64_t)got < PAGE_BYTES)
			return -EIO;
		at = pieces_skip(at, &n, (uint64_t)got & PAGE_MASK);
		offset_bytes += (uint64_t)got & PAGE_MASK;
	}
	return 0;
}

int read_file_cached(int fd, char *page, uint64_t offset_bytes)
{
	struct iovec iov = { .iov_base = page, .iov_len = PAGE_BYTES };
	int rc = FAILPOINT("store.read");

	if (rc && rc != -EINTR)
		return rc;
	return preadv2(fd, &iov, 1, (off_t)offset_bytes, RWF_NOWAIT) == (ssize_t)PAGE_BYTES ? 0 : -EAGAIN;
}
