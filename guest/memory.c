/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "memory.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#define MAX_MEMFD_BYTES (UINT64_C(1) << 46)

bool parse_size(const char *text, uint64_t *bytes)
{
	char *end;
	unsigned shift = 0;

	if (*text < '0' || *text > '9')
		return false;
	errno = 0;
	unsigned long long value = strtoull(text, &end, 10);
	switch (*end) {
	case 'K':
		shift = 10;
		break;
	case 'M':
		shift = 20;
		break;
	case 'G':
		shift = 30;
		break;
	default:
		break;
	}
	if (shift)
		end++;
	if (errno || *end || value > (UINT64_MAX >> shift))
		return false;
	*bytes = (uint64_t)value << shift;
	return true;
}

static const char *parse_region_option(char *option, struct region *region, bool *has_memfd)
{
	uint64_t value;
	char *equals = strchr(option, '=');

	if (!equals || !parse_size(equals + 1, &value))
		return "expected memfd=NUMBER or offset=BYTES after the comma";
	*equals = '\0';
	if (!strcmp(option, "offset")) {
		if (value % PAGE_BYTES || value > MAX_MEMFD_BYTES)
			return "offset must be a multiple of 4096, at most 64 TiB";
		region->offset_bytes = value;
		return NULL;
	}
	if (strcmp(option, "memfd"))
		return "the options of a region are memfd= and offset=";
	if (value >= MAX_MEMFDS)
		return "memfd must be less than 64";
	region->memfd_idx = (unsigned)value;
	*has_memfd = true;
	return NULL;
}

const char *memory_add(struct memory *memory, const char *text)
{
	char copy[128];
	char *rest = copy;
	struct region region = { 0 };
	bool has_memfd = false;

	if (memory->regions == MAX_REGIONS)
		return "at most 64 regions";
	if (strlen(text) >= sizeof(copy))
		return "too long";
	strcpy(copy, text);
	const char *size = strsep(&rest, ",");
	if (!parse_size(size, &region.size_bytes) || region.size_bytes == 0 ||
	    region.size_bytes % PAGE_BYTES || region.size_bytes > MAX_MEMFD_BYTES)
		return "SIZE must be a multiple of 4096 such as 8192, 64K, 512M or 1G, at most 64 TiB";
	while (rest) {
		const char *wrong = parse_region_option(strsep(&rest, ","), &region, &has_memfd);

		if (wrong)
			return wrong;
	}
	if (!has_memfd)
		region.memfd_idx = memory->memfds;
	if (region.memfd_idx >= MAX_MEMFDS)
		return "at most 64 memfds";
	if (region.memfd_idx >= memory->memfds)
		memory->memfds = region.memfd_idx + 1;
	region.first_page = memory->pages;
	memory->pages += region.size_bytes / PAGE_BYTES;
	memory->region[memory->regions++] = region;
	return NULL;
}

static void check_overlap(const struct memory *memory)
{
	for (unsigned i = 0; i < memory->regions; i++) {
		const struct region *a = &memory->region[i];

		for (unsigned j = 0; j < i; j++) {
			const struct region *b = &memory->region[j];

			if (a->memfd_idx == b->memfd_idx &&
			    a->offset_bytes < b->offset_bytes + b->size_bytes &&
			    b->offset_bytes < a->offset_bytes + a->size_bytes)
				die(0, "regions %u and %u overlap in memfd %u: give another offset=", j, i,
				    a->memfd_idx);
		}
	}
}

static uint64_t memfd_bytes(const struct memory *memory, unsigned memfd_idx)
{
	uint64_t bytes = 0;

	for (unsigned i = 0; i < memory->regions; i++) {
		const struct region *region = &memory->region[i];
		uint64_t end = region->offset_bytes + region->size_bytes;

		if (region->memfd_idx == memfd_idx && end > bytes)
			bytes = end;
	}
	return bytes;
}

void memory_create(struct memory *memory)
{
	check_overlap(memory);
	for (unsigned i = 0; i < memory->memfds; i++) {
		uint64_t bytes = memfd_bytes(memory, i);
		char name[32];

		if (!bytes)
			die(0, "no region uses memfd %u: number memfds from 0 without gaps", i);
		snprintf(name, sizeof(name), "guest-memory-%u", i);
		memory->memfd[i] = memfd_create(name, MFD_CLOEXEC);
		if (memory->memfd[i] < 0)
			die(errno, "cannot make a memfd");
		if (ftruncate(memory->memfd[i], (off_t)bytes) < 0)
			die(errno, "cannot give memfd %u its %llu bytes", i, (unsigned long long)bytes);
	}
}

int memory_map(struct memory *memory)
{
	for (unsigned i = 0; i < memory->regions; i++) {
		struct region *region = &memory->region[i];
		void *base =
			mmap(NULL, region->size_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE,
			     memory->memfd[region->memfd_idx], (off_t)region->offset_bytes);

		if (base == MAP_FAILED)
			return -errno;
		region->base = base;
		/* EINVAL: a kernel without huge pages. One before 6.4 would make them where memory is swapped
		 * out. */
		if (madvise(base, region->size_bytes, memory->huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE) < 0 &&
		    (memory->huge || errno != EINVAL))
			return -errno;
	}
	return 0;
}

int memory_map_dummy(struct memory *memory)
{
	if (memory->dummy_page)
		return 0;
	void *page = mmap(NULL, PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (page == MAP_FAILED)
		return -errno;
	memory->dummy_page = page;
	return 0;
}

static const struct region *find_region(const struct memory *memory, uint64_t page_idx)
{
	unsigned low = 0, high = memory->regions;

	while (high - low > 1) {
		unsigned middle = (low + high) / 2;

		if (memory->region[middle].first_page <= page_idx)
			low = middle;
		else
			high = middle;
	}
	return &memory->region[low];
}

uint64_t memory_run(const struct memory *memory, uint64_t page_idx, uint64_t pages,
		    const struct region **region)
{
	*region = find_region(memory, page_idx);
	uint64_t left = (*region)->first_page + (*region)->size_bytes / PAGE_BYTES - page_idx;

	return left < pages ? left : pages;
}

uint8_t *memory_page(const struct memory *memory, uint64_t page_idx)
{
	const struct region *region = find_region(memory, page_idx);

	return region->base + (page_idx - region->first_page) * PAGE_BYTES;
}

uint64_t memory_resident_bytes(const struct memory *memory, unsigned memfd_idx)
{
	struct stat st;

	if (fstat(memory->memfd[memfd_idx], &st) < 0)
		return 0;
	return (uint64_t)st.st_blocks * 512u;
}
