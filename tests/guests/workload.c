/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What the guest does: knows each byte of its memory and of its disks, and says so over the serial console.
 *
 * Orders, a line each; each is answered by one line that begins with the order:
 *     fill MIB          take memory and give each word a value of its own
 *     check             look at every word of it                        -> words, wrong
 *     empty             give that memory back
 *     scribble on|off   a thread changes words of 16 MiB at random
 *     replay            do the same again on fresh memory and compare   -> writes, wrong
 *     share             mount the host's directory on /share; a file "disk" in it is a disk         -> wrong
 *     tag MIB           write numbered blocks to each disk                                          -> disks, wrong
 *     tagged MIB        each disk holds them already                                                -> disks, wrong
 *     disk on|off       threads read (and write again) those blocks, O_DIRECT, into memory that changes its place
 *                                                   -> least (blocks, of the disk that gave fewest), wrong
 *     store, load       write the first 4 MiB of that memory behind the blocks of each disk, read them back: O_DIRECT, so
 *                       that the guest's own processors do not touch that memory                    -> disks, wrong
 *     ticks             the longest time that a thread which sleeps a millisecond slept      -> longest_us
 *     memory            what the kernel says                            -> free_kib, total_kib
 *     off               power off
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#define WORDS_PER_PAGE 512
#define SCRIBBLE_PAGES 4096
#define BLOCK_BYTES 65536
#define STORED_BYTES (4 << 20)
#define DISKS_MAX 4
#define READERS_PER_DISK 2
#define SLOTS 64

static uint64_t mix(uint64_t x)
{
	x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9;
	x = (x ^ x >> 27) * 0x94d049bb133111eb;
	return x ^ x >> 31;
}

static uint64_t *take(size_t bytes)
{
	void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (memory == MAP_FAILED) {
		printf("no memory: %zu bytes\n", bytes);
		exit(1);
	}
	return memory;
}

/* ---- memory that stays as it is ---- */

static uint64_t *filled;
static size_t filled_words;

static uint64_t value_of(size_t idx)
{
	return idx * 0x9e3779b97f4a7c15 ^ 0x0123456789abcdef;
}

static void fill(const char *mib)
{
	filled_words = strtoull(mib, NULL, 10) << 17;
	filled = take(filled_words * 8);
	for (size_t i = 0; i < filled_words; i++)
		filled[i] = value_of(i);
	printf("fill words=%zu\n", filled_words);
}

static void check(void)
{
	size_t wrong = 0;

	for (size_t i = 0; i < filled_words; i++)
		wrong += filled[i] != value_of(i);
	printf("check words=%zu wrong=%zu\n", filled_words, wrong);
}

static void empty(void)
{
	munmap(filled, filled_words * 8);
	filled_words = 0;
	puts("empty");
}

/* ---- memory that changes ---- */

static uint64_t *scribbled;
static uint64_t writes;
static _Atomic bool scribbling;
static pthread_t scribbler;

static void write_once(uint64_t *memory, uint64_t number)
{
	uint64_t random = mix(number + 1);
	uint64_t *word = memory + random % SCRIBBLE_PAGES * WORDS_PER_PAGE + (random >> 40) % WORDS_PER_PAGE;

	*word = *word * 3 + random;
}

static void *scribble(void *unused)
{
	(void)unused;
	while (scribbling) {
		write_once(scribbled, writes++);
		if (writes % 16 == 0)
			usleep(100);
	}
	return NULL;
}

static void set_scribble(bool on)
{
	if (!scribbled)
		scribbled = take((size_t)SCRIBBLE_PAGES * 4096);
	if (on && !scribbling) {
		scribbling = true;
		pthread_create(&scribbler, NULL, scribble, NULL);
	} else if (!on && scribbling) {
		scribbling = false;
		pthread_join(scribbler, NULL);
	}
	printf("scribble writes=%lu\n", (unsigned long)writes);
}

static void replay(void)
{
	size_t words = (size_t)SCRIBBLE_PAGES * WORDS_PER_PAGE, wrong = 0;
	uint64_t *again = take(words * 8);

	set_scribble(false);
	for (uint64_t i = 0; i < writes; i++)
		write_once(again, i);
	for (size_t i = 0; i < words; i++)
		wrong += again[i] != scribbled[i];
	munmap(again, words * 8);
	printf("replay writes=%lu wrong=%zu\n", (unsigned long)writes, wrong);
}

/* ---- the disks ---- */

static const char *disks[DISKS_MAX] = { "/dev/vda", "/dev/vdb", "/dev/vdc", "/dev/vdd" };
static size_t disks_n;
static uint64_t blocks; /* on each disk */
static _Atomic uint64_t blocks_done[DISKS_MAX], blocks_wrong;
static _Atomic bool reading;
static pthread_t readers[DISKS_MAX * READERS_PER_DISK];

static void make_block(uint64_t *words, uint64_t number)
{
	for (size_t i = 0; i < BLOCK_BYTES / 8; i++)
		words[i] = mix(number) + i;
}

static bool is_block(const uint64_t *words, uint64_t number)
{
	uint64_t first = mix(number);

	for (size_t i = 0; i < BLOCK_BYTES / 8; i++)
		if (words[i] != first + i)
			return false;
	return true;
}

static int open_disk(size_t idx)
{
	int fd = open(disks[idx], O_RDWR | O_DIRECT);

	if (fd < 0)
		printf("no disk %s: %s\n", disks[idx], strerror(errno));
	return fd;
}

static void share(void)
{
	int error;

	mkdir("/share", 0700);
	error = mount("share", "/share", "virtiofs", 0, NULL) ? errno : 0;
	printf("share wrong=%d\n", error);
}

static bool write_blocks(size_t idx)
{
	uint64_t *block = take(BLOCK_BYTES);
	bool wrote = true;
	int fd = open_disk(idx);

	for (uint64_t i = 0; i < blocks && wrote; i++) {
		make_block(block, i);
		wrote = pwrite(fd, block, BLOCK_BYTES, (off_t)(i * BLOCK_BYTES)) == BLOCK_BYTES;
	}
	close(fd);
	munmap(block, BLOCK_BYTES);
	return wrote;
}

/* All disks that there are. */
static void tag(const char *mib, bool are_written)
{
	bool wrote = true;

	blocks = strtoull(mib, NULL, 10) * (1048576 / BLOCK_BYTES);
	if (!access("/share/disk", F_OK))
		disks[3] = "/share/disk";
	disks_n = 0;
	for (size_t i = 0; i < DISKS_MAX; i++)
		if (!access(disks[i], F_OK))
			disks[disks_n++] = disks[i];
	for (size_t i = 0; i < disks_n && !are_written; i++)
		wrote = write_blocks(i) && wrote;
	printf("%s disks=%zu wrong=%d\n", are_written ? "tagged" : "tag", disks_n, !wrote);
}

/* Each block goes to another place, and is looked at only after some more were read: by then it may have been
 * taken out and brought back. Each eighth is written again from where it was read to. */
static void read_blocks_of(size_t idx, uint64_t random)
{
	uint64_t *place = take((size_t)SLOTS * BLOCK_BYTES), numbers[SLOTS] = { 0 };
	bool used[SLOTS] = { false };
	int fd = open_disk(idx);

	for (uint64_t turn = 0; reading; turn++) {
		size_t slot = turn % SLOTS;
		uint64_t *block = place + slot * (BLOCK_BYTES / 8);

		if (used[slot] && !is_block(block, numbers[slot]))
			blocks_wrong++;
		else if (used[slot] && turn % 8 == 0 &&
			 pwrite(fd, block, BLOCK_BYTES, (off_t)(numbers[slot] * BLOCK_BYTES)) != BLOCK_BYTES)
			blocks_wrong++;
		numbers[slot] = mix(++random) % blocks;
		memset(block, 0xee, BLOCK_BYTES); /* what a lost read leaves */
		used[slot] =
			pread(fd, block, BLOCK_BYTES, (off_t)(numbers[slot] * BLOCK_BYTES)) == BLOCK_BYTES;
		blocks_wrong += !used[slot];
		blocks_done[idx]++;
	}
	for (size_t slot = 0; slot < SLOTS; slot++)
		blocks_wrong += used[slot] && !is_block(place + slot * (BLOCK_BYTES / 8), numbers[slot]);
	close(fd);
	munmap(place, (size_t)SLOTS * BLOCK_BYTES);
}

static void *read_blocks(void *number)
{
	read_blocks_of((uintptr_t)number / READERS_PER_DISK, ((uintptr_t)number + 1) << 32);
	return NULL;
}

static void start_reading(void)
{
	reading = true;
	blocks_wrong = 0;
	for (size_t i = 0; i < disks_n; i++)
		blocks_done[i] = 0;
	for (size_t i = 0; i < disks_n * READERS_PER_DISK; i++)
		pthread_create(&readers[i], NULL, read_blocks, (void *)i);
}

static void set_disk(bool on)
{
	uint64_t least = UINT64_MAX;

	if (on && !reading) {
		start_reading();
	} else if (!on && reading) {
		reading = false;
		for (size_t i = 0; i < disks_n * READERS_PER_DISK; i++)
			pthread_join(readers[i], NULL);
	}
	for (size_t i = 0; i < disks_n; i++)
		if (blocks_done[i] < least)
			least = blocks_done[i];
	printf("disk least=%lu wrong=%lu\n", (unsigned long)least, (unsigned long)blocks_wrong);
}

/* The host's side of a disk is the only one that touches the memory. */
static void transfer_filled(const char *order, bool is_store)
{
	off_t offset_bytes = (off_t)(blocks * BLOCK_BYTES);
	size_t wrong = 0;
	ssize_t done;

	for (size_t i = 0; i < disks_n; i++) {
		int fd = open_disk(i);

		for (size_t at = 0; at < STORED_BYTES; at += STORED_BYTES / 4) {
			void *piece = (char *)filled + at;

			done = is_store ? pwrite(fd, piece, STORED_BYTES / 4, offset_bytes + (off_t)at) :
					  pread(fd, piece, STORED_BYTES / 4, offset_bytes + (off_t)at);
			wrong += done != STORED_BYTES / 4;
		}
		close(fd);
	}
	printf("%s disks=%zu wrong=%zu\n", order, disks_n, wrong);
}

/* ---- the rest ---- */

static _Atomic uint64_t longest_us;

static uint64_t now_us(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000;
}

static void *tick(void *unused)
{
	uint64_t before = now_us(), after;

	for (;; before = after) {
		usleep(1000);
		after = now_us();
		if (after - before > longest_us)
			longest_us = after - before;
	}
	return unused;
}

static void print_memory(void)
{
	unsigned long total = 0, available = 0;
	FILE *file = fopen("/proc/meminfo", "r");
	char line[128];

	while (file && fgets(line, sizeof line, file)) {
		sscanf(line, "MemTotal: %lu", &total);
		sscanf(line, "MemFree: %lu", &available);
	}
	if (file)
		fclose(file);
	printf("memory free_kib=%lu total_kib=%lu\n", available, total);
}

static bool obey(char *line)
{
	char *order = strtok(line, " \r\n"), *argument = strtok(NULL, " \r\n");
	bool on = argument && !strcmp(argument, "on");

	if (!order)
		return true;
	if (!strcmp(order, "fill") && argument)
		fill(argument);
	else if (!strcmp(order, "check"))
		check();
	else if (!strcmp(order, "empty"))
		empty();
	else if (!strcmp(order, "scribble"))
		set_scribble(on);
	else if (!strcmp(order, "replay"))
		replay();
	else if (!strcmp(order, "share"))
		share();
	else if (!strcmp(order, "tag") && argument)
		tag(argument, false);
	else if (!strcmp(order, "tagged") && argument)
		tag(argument, true);
	else if (!strcmp(order, "store") || !strcmp(order, "load"))
		transfer_filled(order, *order == 's');
	else if (!strcmp(order, "disk"))
		set_disk(on);
	else if (!strcmp(order, "ticks"))
		printf("ticks longest_us=%lu\n", (unsigned long)longest_us), longest_us = 0;
	else if (!strcmp(order, "memory"))
		print_memory();
	else if (!strcmp(order, "off"))
		return false;
	else
		printf("unknown %s\n", order);
	return true;
}

int main(void)
{
	struct termios terminal;
	pthread_t ticker;
	char line[128];

	setvbuf(stdout, NULL, _IONBF, 0);
	if (!tcgetattr(0, &terminal)) {
		terminal.c_lflag &= ~(tcflag_t)ECHO;
		tcsetattr(0, TCSANOW, &terminal);
	}
	pthread_create(&ticker, NULL, tick, NULL);
	puts("\nworkload ready");
	while (fgets(line, sizeof line, stdin) && obey(line))
		;
	puts("off");
	sync();
	reboot(RB_POWER_OFF);
	return 0;
}
