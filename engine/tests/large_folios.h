/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Guest memory that has large folios, on any machine: layout.huge puts it there. */
#ifndef VMMSWAP_LARGE_FOLIOS_H
#define VMMSWAP_LARGE_FOLIOS_H

#include <stdio.h>

#include "harness.h"

#define SHMEM_SETTING "/sys/kernel/mm/transparent_hugepage/shmem_enabled"

/* The kernel's settings are everybody's, so they stay: guest memory lies on a tmpfs of our own with this
 * policy (huge=). */
static inline void use_large_folios(const char *policy)
{
	char options[64];

	test_private_mounts();
	if (access(SHMEM_SETTING, F_OK))
		test_skip("this kernel has no large folios in shared memory");
	snprintf(options, sizeof options, "huge=%s", policy);
	if (mount("vmmswap-test", test_dir(), "tmpfs", 0, options))
		test_skip("this kernel has no tmpfs with %s (%s)", options, strerror(errno));
}

/* Shared memory that the process maps by huge entries. */
static inline uint64_t huge_mapped_pages(pid_t pid)
{
	unsigned long long kib, sum = 0;
	char path[64], line[256];
	FILE *file;

	snprintf(path, sizeof path, "/proc/%d/smaps", pid);
	file = fopen(path, "re");
	CHECK(file != NULL);
	while (fgets(line, sizeof line, file))
		if (sscanf(line, "ShmemPmdMapped: %llu kB", &kib) == 1)
			sum += kib / 4;
	fclose(file);
	return sum;
}

#endif
