/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A VMM whose guest gets memory and loses it, as by hotplug, and a device process of it that maps the memory
 * when it is told to, as a vhost-user back-end does: pieces of 16 MiB, numbered from 0, each in a memfd of
 * its own, the first there from the start; with the argument `private` in private memory that no child gets,
 * as QEMU makes it. Says "ready PID", the device's; then obeys one order a line and
 * answers each with one line:
 *
 *     plug N       make piece N and write it
 *     unplug N     unmap it and close its memfd
 *     move N       map it elsewhere, and no longer where it was
 *     again N      map it anew where it is
 *     twice N      map it a second time, too
 *     once N       and no longer
 *     private      map as much private memory
 *     split N      make a piece of twice the size, and map its second half below its first
 *     check N      "right" if all of it is what was written
 *     dontfork N   MADV_DONTFORK, as QEMU has it
 *     squat N      map private memory at its place
 *     zeros N      "right" if all of it is zeros
 *     swap         map piece 1 in piece 0's place, and the other way round
 *     fork         make a child
 *     child ORDER N
 *                  the same in that
 *     device map N, device unmap N, device ORDER N
 *                  the same in the device, which has none from the start
 *     device whole N
 *                  map all of what was split
 */
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <unistd.h>

#define PIECE_BYTES (16ul << 20)
#define PIECES_MAX 8

struct piece {
	int fd;
	unsigned char *memory, *second;
	unsigned char *half; /* of what is split: the second one */
};

static struct piece pieces[PIECES_MAX];
static bool is_private;
static FILE *to_device, *to_child;
static pid_t start(void (*be)(FILE *orders), FILE **to);
static void be_child(FILE *orders);

static void need(int good, const char *what)
{
	if (good)
		return;
	perror(what);
	exit(1);
}

static unsigned char *map(void *addr, int fd)
{
	int flags = (fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED) | (addr ? MAP_FIXED : 0);
	void *memory = mmap(addr, PIECE_BYTES, PROT_READ | PROT_WRITE, flags, fd, 0);

	need(memory != MAP_FAILED, "mmap");
	return memory;
}

/* Beside pages that keep the kernel from joining it with its neighbours. */
static unsigned char *map_private(void)
{
	unsigned char *place =
		mmap(NULL, PIECE_BYTES + 2 * 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	need(place != MAP_FAILED, "mmap");
	map(place + 4096, -1);
	need(madvise(place + 4096, PIECE_BYTES, MADV_DONTFORK) == 0, "madvise");
	return place + 4096;
}

static void plug(struct piece *piece, size_t number)
{
	if (is_private) {
		piece->fd = -1;
		piece->memory = map_private();
		memset(piece->memory, 'a' + (int)number, PIECE_BYTES);
		return;
	}
	piece->fd = memfd_create("guest", MFD_CLOEXEC);
	need(piece->fd >= 0 && ftruncate(piece->fd, PIECE_BYTES) == 0, "memfd");
	piece->memory = map(NULL, piece->fd);
	memset(piece->memory, 'a' + (int)number, PIECE_BYTES);
}

static void split(struct piece *piece, size_t number)
{
	unsigned char *place = mmap(NULL, 2 * PIECE_BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	piece->fd = memfd_create("guest", MFD_CLOEXEC);
	need(piece->fd >= 0 && ftruncate(piece->fd, 2 * PIECE_BYTES) == 0, "memfd");
	piece->half = mmap(place, PIECE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, piece->fd,
			   PIECE_BYTES);
	need(piece->half != MAP_FAILED, "mmap");
	piece->memory = map(place + PIECE_BYTES, piece->fd);
	memset(piece->memory, 'a' + (int)number, PIECE_BYTES);
	memset(piece->half, 'A' + (int)number, PIECE_BYTES);
}

static void map_whole(struct piece *piece)
{
	piece->memory = mmap(NULL, 2 * PIECE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, piece->fd, 0);
	need(piece->memory != MAP_FAILED, "mmap");
	piece->half = piece->memory + PIECE_BYTES;
}

static void squat(struct piece *piece)
{
	void *memory = mmap(piece->memory, PIECE_BYTES, PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);

	need(memory != MAP_FAILED, "mmap");
}

static const char *check_zeros(const struct piece *piece)
{
	for (size_t i = 0; i < PIECE_BYTES; i++)
		if (piece->memory[i])
			return "wrong";
	return "right";
}

static void unplug(struct piece *piece)
{
	munmap(piece->memory, PIECE_BYTES);
	close(piece->fd);
}

static void move(struct piece *piece)
{
	unsigned char *old = piece->memory;

	piece->memory = map(NULL, piece->fd);
	munmap(old, PIECE_BYTES);
}

static const char *check(const struct piece *piece, size_t number)
{
	for (size_t i = 0; i < PIECE_BYTES; i++)
		if (piece->memory[i] != 'a' + number || (piece->half && piece->half[i] != 'A' + number))
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
	else if (!strcmp(order, "unmap"))
		munmap(piece->memory, PIECE_BYTES);
	else if (!strcmp(order, "map"))
		piece->memory = map(NULL, piece->fd);
	else if (!strcmp(order, "move"))
		move(piece);
	else if (!strcmp(order, "again"))
		munmap(piece->memory, PIECE_BYTES), map(piece->memory, piece->fd);
	else if (!strcmp(order, "twice"))
		piece->second = map(NULL, piece->fd);
	else if (!strcmp(order, "once"))
		munmap(piece->second, PIECE_BYTES);
	else if (!strcmp(order, "private"))
		memset(map(NULL, -1), 1, PIECE_BYTES);
	else if (!strcmp(order, "dontfork"))
		need(madvise(piece->memory, PIECE_BYTES, MADV_DONTFORK) == 0, "madvise");
	else if (!strcmp(order, "squat"))
		squat(piece);
	else if (!strcmp(order, "zeros"))
		return check_zeros(piece);
	else if (!strcmp(order, "swap"))
		map(pieces[0].memory, pieces[1].fd), map(pieces[1].memory, pieces[0].fd);
	else if (!strcmp(order, "fork"))
		start(be_child, &to_child);
	else if (!strcmp(order, "split"))
		split(piece, number);
	else if (!strcmp(order, "whole"))
		map_whole(piece);
	else if (!strcmp(order, "check"))
		return check(piece, number);
	else
		return "unknown";
	return "done";
}

/* It keeps no fd of the memory, as back-ends do not. */
static void be_device(FILE *orders)
{
	char order[32], path[64];
	size_t number;
	int fd;

	while (fscanf(orders, "%31s %zu %d", order, &number, &fd) == 3) {
		snprintf(path, sizeof path, "/proc/%d/fd/%d", getppid(), fd);
		pieces[number].fd = open(path, O_RDWR | O_CLOEXEC);
		need(pieces[number].fd >= 0, path);
		puts(obey(order, number));
		close(pieces[number].fd);
	}
	_exit(0);
}

/* What it has it has from its parent. */
static void be_child(FILE *orders)
{
	char order[32];
	size_t number;

	while (fscanf(orders, "%31s %zu %*d", order, &number) == 2)
		puts(obey(order, number));
	_exit(0);
}

static pid_t start(void (*be)(FILE *orders), FILE **to)
{
	int ends[2];
	pid_t pid;

	need(pipe2(ends, O_CLOEXEC) == 0, "pipe");
	pid = fork();
	need(pid >= 0, "fork");
	if (pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		be(fdopen(ends[0], "r"));
	}
	close(ends[0]);
	*to = fdopen(ends[1], "w");
	return pid;
}

int main(int argc, char **argv)
{
	char line[64], order[32];
	pid_t device;

	is_private = argc > 1 && !strcmp(argv[1], "private");
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	setvbuf(stdout, NULL, _IOLBF, 0);
	device = start(be_device, &to_device);
	plug(&pieces[0], 0);
	printf("ready %d\n", device);
	while (fgets(line, sizeof line, stdin)) {
		size_t number = 0;

		if (sscanf(line, "device %31s %zu", order, &number) >= 1 ||
		    sscanf(line, "child %31s %zu", order, &number) >= 1) {
			FILE *to = line[0] == 'd' ? to_device : to_child;

			fprintf(to, "%s %zu %d\n", order, number, pieces[number].fd);
			fflush(to);
			continue;
		}
		need(sscanf(line, "%31s %zu", order, &number) >= 1, line);
		puts(obey(order, number));
	}
	return 0;
}
