/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A program that misbehaves on purpose, so that tests can show what a bad VMM does to its monitor: nothing
 * but harm to itself. None of this goes into the records, so a verify afterwards may rightly report wrong
 * bytes or SIGBUS. */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "control.h"
#include "device.h"

static int shrink(struct guest *guest, const char *memfd_text, const char *bytes_text)
{
	uint64_t memfd, bytes;

	if (!parse_size(memfd_text, &memfd) || memfd >= guest->memory.memfds ||
	    !parse_size(bytes_text, &bytes))
		return EINVAL;
	return ftruncate(guest->memory.memfd[memfd], (off_t)bytes) < 0 ? errno : 0;
}

/* O_NONBLOCK belongs to the open file, which the monitor shares. */
static int set_nonblock(struct guest *guest, const char *on)
{
	int fd = atomic_load(&guest->uffd);
	int flags = fcntl(fd, F_GETFL);

	if (flags < 0)
		return errno;
	flags = strcmp(on, "on") ? flags & ~O_NONBLOCK : flags | O_NONBLOCK;
	return fcntl(fd, F_SETFL, flags) < 0 ? errno : 0;
}

int hostile_run(struct guest *guest, char *const *words, int count)
{
	if (count == 3 && !strcmp(words[0], "shrink"))
		return shrink(guest, words[1], words[2]);
	if (count == 2 && !strcmp(words[0], "nonblock"))
		return set_nonblock(guest, words[1]);
	if (count != 1)
		return ENOENT;
	if (!strcmp(words[0], "close-uffd"))
		return close(atomic_exchange(&guest->uffd, -1)) < 0 ? errno : 0;
	if (!strcmp(words[0], "exec"))
		return exec_idle();
	if (!strcmp(words[0], "exit"))
		_exit(9);
	return ENOENT;
}
