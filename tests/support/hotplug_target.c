/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A VMM whose guest gets memory and loses it, as by hotplug: pieces of 16 MiB, numbered from 0, each in a memfd of its
 * own, the first there from the start. Says "ready", then obeys one order a line and answers each with one line:
 *
 *     plug N       map piece N and write it
 *     unplug N     unmap it and close its memfd
 *     move N       map it elsewhere, and no longer where it was
 *     twice N      map it a second time, too
 *     once N       and no longer
 *     private      map as much private memory
 *     check N      "right" if all of it is what was written
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <signal.h>
#include <unistd.h>

#define PIECE_BYTES (16ul << 20)
#define PIECES_MAX 8

struct piece {
	int fd;
	unsigned char *memory, *second;
};

static struct piece pieces[PIECES_MAX];

static void need(int good, const char *what)
{
	if (good)
		return;
	perror(what);
	exit(1);
}

static unsigned char *map(int fd)
{
	int sharing = fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED;
	void *memory = mmap(NULL, PIECE_BYTES, PROT_READ | PROT_WRITE, sharing, fd, 0);

	need(memory != MAP_FAILED, "mmap");
	return memory;
}

static void plug(struct piece *piece, size_t number)
{
	piece->fd = memfd_create("guest", MFD_CLOEXEC);
	need(piece->fd >= 0 && ftruncate(piece->fd, PIECE_BYTES) == 0, "memfd");
	piece->memory = map(piece->fd);
	memset(piece->memory, 'a' + (int)number, PIECE_BYTES);
}

static void unplug(struct piece *piece)
{
	munmap(piece->memory, PIECE_BYTES);
	close(piece->fd);
}

static void move(struct piece *piece)
{
	unsigned char *old = piece->memory;

	piece->memory = map(piece->fd);
	munmap(old, PIECE_BYTES);
}

static const char *check(const struct piece *piece, size_t number)
{
	for (size_t i = 0; i < PIECE_BYTES; i++)
		if (piece->memory[i] != 'a' + number)
			return "wrong";
	return "right";
}

static const char *obey(const char *order, size_t number)
{
	struct piece *piece = &pieces[number];

	need(number < PIECES_MAX, "number");
	if (!strcmp(order, "plug"))
		plug(piece, number);
	else if (!strcmp(order, "unplug"))
		unplug(piece);
	else if (!strcmp(order, "move"))
		move(piece);
	else if (!strcmp(order, "twice"))
		piece->second = map(piece->fd);
	else if (!strcmp(order, "once"))
		munmap(piece->second, PIECE_BYTES);
	else if (!strcmp(order, "private"))
		memset(map(-1), 1, PIECE_BYTES);
	else if (!strcmp(order, "check"))
		return check(piece, number);
	else
		return "unknown";
	return "done";
}

int main(void)
{
	char line[64], order[32];

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	setvbuf(stdout, NULL, _IOLBF, 0);
	plug(&pieces[0], 0);
	puts("ready");
	while (fgets(line, sizeof line, stdin)) {
		size_t number = 0;

		need(sscanf(line, "%31s %zu", order, &number) >= 1, line);
		puts(obey(order, number));
	}
	return 0;
}
