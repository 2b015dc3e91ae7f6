/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The store of tiers against the floor: as many threads that only run LZ4 over the same pages.
 *
 *	store_tiers DIR [MIB] [ROUNDS]
 *
 * Pages are those of the machine's own libraries (mapped files of /usr/lib), which compress like a guest's; a
 * sixth is noise. Each round does every measurement once, in turns; the medians are printed. DIR is where the
 * disk tier goes. */
#include "base/units.h"
#include "store/log.h"
#include "store/move.h"

#include <dirent.h>
#include <fcntl.h>
#include <lz4.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define THREADS 2
#define GETS 20000
#define ROUNDS_MAX 32

static char *pages;
static size_t pages_n;
static uint64_t *slots;
static struct log *store;

static double seconds(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

static size_t append_file(const char *path, size_t done)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);

	while (fd >= 0 && done < pages_n) {
		if (done % 6 == 5) {
			uint64_t x = done + 1;

			for (size_t i = 0; i < PAGE_BYTES / 8; i++) {
				x ^= x << 13, x ^= x >> 7, x ^= x << 17;
				memcpy(pages + bytes_of_pages(done) + 8 * i, &x, 8);
			}
			done++;
			continue;
		}
		if (read(fd, pages + bytes_of_pages(done), PAGE_BYTES) != (ssize_t)PAGE_BYTES)
			break;
		done++;
	}
	if (fd >= 0)
		close(fd);
	return done;
}

static void fill(void)
{
	const char *dir = "/usr/lib/x86_64-linux-gnu";
	size_t done = 0;

	while (done < pages_n) {
		DIR *files = opendir(dir);
		struct dirent *file;
		size_t before = done;

		while (files && (file = readdir(files)) && done < pages_n) {
			char path[4096];

			snprintf(path, sizeof path, "%s/%s", dir, file->d_name);
			if (strstr(file->d_name, ".so"))
				done = append_file(path, done);
		}
		if (files)
			closedir(files);
		if (done == before)
			exit(1);
	}
}

static void *lz4_worker(void *argument)
{
	size_t self = (size_t)argument;
	char out[LZ4_COMPRESSBOUND(4096)];

	for (size_t i = self; i < pages_n; i += THREADS)
		LZ4_compress_default(pages + bytes_of_pages(i), out, PAGE_BYTES, sizeof out);
	return NULL;
}

static void *put_worker(void *argument)
{
	size_t self = (size_t)argument, from = pages_n * self / THREADS, end = pages_n * (self + 1) / THREADS;
	struct page_to_put put[64];
	struct error err;

	for (size_t i = from; i < end;) {
		size_t n = end - i < 64 ? end - i : 64;

		for (size_t k = 0; k < n; k++)
			put[k] =
				(struct page_to_put){ .page = pages + bytes_of_pages(i + k), .owner = i + k };
		if (log_put(store, self, put, n, &err) != n) {
			fprintf(stderr, "%s\n", err.message);
			exit(1);
		}
		for (size_t k = 0; k < n; k++)
			slots[i + k] = put[k].slot_idx;
		i += n;
	}
	return NULL;
}

static double run(void *(*worker)(void *))
{
	pthread_t threads[THREADS];
	double since = seconds();

	for (size_t i = 0; i < THREADS; i++)
		pthread_create(&threads[i], NULL, worker, (void *)i);
	for (size_t i = 0; i < THREADS; i++)
		pthread_join(threads[i], NULL);
	return seconds() - since;
}

static double gets(void)
{
	char page[PAGE_BYTES];
	uint64_t x = 88172645463325252u;
	double since = seconds();

	for (size_t i = 0; i < GETS; i++) {
		x ^= x << 13, x ^= x >> 7, x ^= x << 17;
		if (log_get(store, slots[x % pages_n], page) ||
		    memcmp(page, pages + bytes_of_pages(x % pages_n), PAGE_BYTES))
			exit(1);
	}
	return (seconds() - since) / GETS * 1e6;
}

static double unpack_floor(void)
{
	static char packed[64][LZ4_COMPRESSBOUND(4096)];
	int n[64];
	char page[PAGE_BYTES];
	double since;

	for (size_t i = 0; i < 64; i++)
		n[i] = LZ4_compress_default(pages + bytes_of_pages(i * 97 % pages_n), packed[i], PAGE_BYTES,
					    sizeof packed[i]);
	since = seconds();
	for (size_t i = 0; i < GETS; i++) {
		LZ4_decompress_safe(packed[i % 64], page, n[i % 64], PAGE_BYTES);
		if (memcmp(page, pages + bytes_of_pages(i % 64 * 97 % pages_n), PAGE_BYTES))
			exit(1);
	}
	return (seconds() - since) / GETS * 1e6;
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

int main(int argc, char **argv)
{
	double lz4[ROUNDS_MAX], put[ROUNDS_MAX], floor_us[ROUNDS_MAX], get_us[ROUNDS_MAX], move[ROUNDS_MAX],
		disk_us[ROUNDS_MAX];
	size_t mib = argc > 2 ? (size_t)atoi(argv[2]) : 256, rounds = argc > 3 ? (size_t)atoi(argv[3]) : 5;
	struct log_account account;

	if (argc < 2 || rounds > ROUNDS_MAX)
		return 2;
	pages_n = mib << 8;
	pages = mmap(NULL, bytes_of_pages(pages_n), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1,
		     0);
	slots = calloc(pages_n, sizeof *slots);
	fill();
	for (size_t r = 0; r < rounds; r++) {
		struct log_config config = { .dir = argv[1],
					     .segments_fd = -1,
					     .ram_fd = -1,
					     .disk_fd = -1,
					     .key_fd = -1,
					     .compress = true,
					     .encrypt = true,
					     .ram_max_bytes = UINT64_MAX,
					     .disk_max_bytes = UINT64_MAX };
		struct error err;
		double since;

		if (log_create(&config, &store, &err)) {
			fprintf(stderr, "%s\n", err.message);
			return 1;
		}
		lz4[r] = run(lz4_worker);
		put[r] = run(put_worker);
		floor_us[r] = unpack_floor();
		get_us[r] = gets();
		log_account(store, &account);
		log_seal_open(store);
		since = seconds();
		while (!log_move_oldest(store, UINT32_MAX, &err))
			;
		move[r] = seconds() - since;
		disk_us[r] = gets();
		log_destroy(store);
	}
	printf("%zu MiB: %llu MiB in RAM, %llu raw of %zu pages\n", mib,
	       (unsigned long long)(account.ram_bytes >> 20), (unsigned long long)account.raw_records,
	       pages_n);
	printf("LZ4 alone, %d threads   %7.0f MiB/s\n", THREADS, (double)mib / median(lz4, rounds));
	printf("put                     %7.0f MiB/s\n", (double)mib / median(put, rounds));
	printf("LZ4 unpack alone        %7.2f us\n", median(floor_us, rounds));
	printf("get from RAM            %7.2f us\n", median(get_us, rounds));
	printf("move to disk, sealed    %7.0f MiB/s of RAM tier\n",
	       (double)(account.ram_bytes >> 20) / median(move, rounds));
	printf("get from disk           %7.2f us\n", median(disk_us, rounds));
	return 0;
}
