/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Reading one page back from disk: LZ4 against zstd, over the same pages.
 *
 *	gcc -O2 -D_GNU_SOURCE -o /tmp/read_back benchmarks/read_back.c -llz4 -lzstd      (package libzstd-dev)
 *	/tmp/read_back DIR [MIB] [ROUNDS]
 *
 * Pages are those of the machine's own libraries (/usr/lib), which compress like a guest's; those that LZ4
 * does not bring below 3328 bytes are left out, as the store keeps them as they are. Each codec's records lie
 * in a file of their own in DIR, at multiples of 64 bytes, as in the store. One page is read back by an
 * O_DIRECT read of the blocks that its record touches, and unpacked. All codecs take turns in each round; the
 * medians are printed. */
#include <dirent.h>
#include <fcntl.h>
#include <lz4.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <zstd.h>

#define PAGE 4096
#define PACKED_MAX 3328
#define GETS 4000
#define ROUNDS_MAX 32

enum { LZ4, ZSTD_1, ZSTD_3, CODECS };
static const char *const names[CODECS] = { "LZ4", "zstd -1", "zstd -3" };

static char *pages;
static size_t pages_n;
static ZSTD_CCtx *cctx;
static ZSTD_DCtx *dctx;

struct stored {
	int fd;
	uint64_t *offset_bytes;
	uint16_t *bytes;
	uint64_t total_bytes;
};

static double now_us(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (double)now.tv_sec * 1e6 + (double)now.tv_nsec / 1e3;
}

static size_t pack(int codec, const char *page, char *out)
{
	size_t n;

	if (codec == LZ4)
		return (size_t)LZ4_compress_default(page, out, PAGE, PACKED_MAX);
	n = ZSTD_compressCCtx(cctx, out, PAGE, page, PAGE, codec == ZSTD_1 ? 1 : 3);
	return ZSTD_isError(n) ? 0 : n;
}

static void unpack(int codec, const char *packed, size_t n, char *page)
{
	if (codec == LZ4 ? LZ4_decompress_safe(packed, page, (int)n, PAGE) != PAGE :
			   ZSTD_decompressDCtx(dctx, page, PAGE, packed, n) != PAGE)
		exit(3);
}

static void fill(size_t room)
{
	const char *dir = "/usr/lib/x86_64-linux-gnu";
	DIR *files = opendir(dir);
	struct dirent *file;
	char path[4096], packed[PACKED_MAX];

	while (files && (file = readdir(files)) && pages_n < room) {
		int fd;

		snprintf(path, sizeof path, "%s/%s", dir, file->d_name);
		fd = strstr(file->d_name, ".so") ? open(path, O_RDONLY | O_CLOEXEC) : -1;
		while (fd >= 0 && pages_n < room && read(fd, pages + pages_n * PAGE, PAGE) == PAGE) {
			/* a page that repeats one word is not compressed by the store */
			const char *page = pages + pages_n * PAGE;

			pages_n += memcmp(page, page + 8, PAGE - 8) && pack(LZ4, page, packed);
		}
		if (fd >= 0)
			close(fd);
	}
}

static struct stored store(int codec, const char *dir)
{
	struct stored at = { .offset_bytes = calloc(pages_n, 8), .bytes = calloc(pages_n, 2) };
	char *all = aligned_alloc(PAGE, (pages_n + 1) * PAGE);
	uint64_t end = 0;

	for (size_t i = 0; i < pages_n; i++) {
		size_t n = pack(codec, pages + i * PAGE, all + end);

		at.offset_bytes[i] = end;
		at.bytes[i] = (uint16_t)n;
		end += (n + 63) / 64 * 64;
	}
	at.total_bytes = end;
	end = (end + PAGE - 1) / PAGE * PAGE;
	at.fd = open(dir, O_TMPFILE | O_RDWR | O_DIRECT | O_CLOEXEC, 0600);
	if (at.fd < 0 || pwrite(at.fd, all, end, 0) != (ssize_t)end || fsync(at.fd)) {
		perror(dir);
		exit(1);
	}
	free(all);
	return at;
}

static int by_value(const void *a, const void *b)
{
	double left = *(const double *)a, right = *(const double *)b;

	return left < right ? -1 : left > right;
}

static double median(double *values, size_t n)
{
	qsort(values, n, sizeof *values, by_value);
	return values[n / 2];
}

static uint64_t next_random(uint64_t *x)
{
	*x ^= *x << 13, *x ^= *x >> 7, *x ^= *x << 17;
	return *x;
}

/* The median of one read back, and of its unpacking alone. */
static void measure(int codec, const struct stored *at, double *read_us, double *unpack_us)
{
	static _Alignas(PAGE) char blocks[3 * PAGE];
	static double reads[GETS], unpacks[GETS];
	uint64_t x = 88172645463325252u;
	char page[PAGE];

	for (size_t i = 0; i < GETS; i++) {
		size_t idx = next_random(&x) % pages_n;
		uint64_t from = at->offset_bytes[idx] / PAGE * PAGE;
		uint64_t end = (at->offset_bytes[idx] + at->bytes[idx] + PAGE - 1) / PAGE * PAGE;
		double since = now_us(), there;

		if (pread(at->fd, blocks, end - from, (off_t)from) != (ssize_t)(end - from))
			exit(1);
		there = now_us();
		unpack(codec, blocks + at->offset_bytes[idx] - from, at->bytes[idx], page);
		unpacks[i] = now_us() - there;
		reads[i] = now_us() - since;
		if (memcmp(page, pages + idx * PAGE, PAGE))
			exit(3);
	}
	*read_us = median(reads, GETS);
	*unpack_us = median(unpacks, GETS);
}

int main(int argc, char **argv)
{
	size_t mib = argc > 2 ? (size_t)atoi(argv[2]) : 128, rounds = argc > 3 ? (size_t)atoi(argv[3]) : 5;
	double read_us[CODECS][ROUNDS_MAX], unpack_us[CODECS][ROUNDS_MAX];
	struct stored at[CODECS];

	if (argc < 2 || !mib || !rounds || rounds > ROUNDS_MAX)
		return 2;
	cctx = ZSTD_createCCtx();
	dctx = ZSTD_createDCtx();
	pages = malloc(mib << 20);
	fill(mib << 8);
	for (int codec = 0; codec < CODECS; codec++)
		at[codec] = store(codec, argv[1]);
	for (size_t r = 0; r < rounds; r++)
		for (int codec = 0; codec < CODECS; codec++)
			measure(codec, &at[codec], &read_us[codec][r], &unpack_us[codec][r]);
	printf("%zu pages, %zu rounds, medians\n", pages_n, rounds);
	for (int codec = 0; codec < CODECS; codec++)
		printf("%-8s  %5.1f%% of the pages' size  unpack %5.2f us  read back %6.1f us\n",
		       names[codec], 100.0 * (double)at[codec].total_bytes / (double)(pages_n * PAGE),
		       median(unpack_us[codec], rounds), median(read_us[codec], rounds));
	return 0;
}
