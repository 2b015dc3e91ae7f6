/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "vm/folios.h"

#include <glob.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#define SETTINGS "/sys/kernel/mm/transparent_hugepage/"

/* Settings look like `always within_size advise [never] deny force`, with the chosen one in brackets. "" if
 * there is none. */
static void read_setting(const char *path, char *out, size_t room)
{
	char text[128] = "", *chosen = NULL;
	FILE *file = fopen(path, "re");

	if (file && fgets(text, sizeof text, file)) {
		chosen = strchr(text, '[');
		text[strcspn(text, "]")] = '\0';
	}
	if (file)
		fclose(file);
	snprintf(out, room, "%s", chosen ? chosen + 1 : "");
}

static bool is_one_of(const char *setting, const char *a, const char *b)
{
	return strcmp(setting, a) == 0 || strcmp(setting, b) == 0;
}

/* There is one switch for each size; `inherit` adds nothing to what the file's mount allows. The switches are
 * for files without a name (mm/shmem.c, shmem_mmap()), which is not checked here: a needless yes costs
 * little. */
static bool any_size_is_on(void)
{
	bool found_one = false;
	glob_t found;

	if (glob(SETTINGS "hugepages-*/shmem_enabled", 0, NULL, &found) != 0)
		return false;
	for (size_t i = 0; i < found.gl_pathc && !found_one; i++) {
		char setting[32];

		read_setting(found.gl_pathv[i], setting, sizeof setting);
		found_one = !is_one_of(setting, "never", "inherit");
	}
	globfree(&found);
	return found_one;
}

/* memfds are on a mount of the kernel's own, which follows the general setting. 0 if that cannot be told. */
static dev_t memfd_device(void)
{
	int fd = memfd_create("vmmswap device", MFD_CLOEXEC);
	struct stat status = { 0 };

	if (fd < 0)
		return 0;
	if (fstat(fd, &status) != 0)
		status.st_dev = 0;
	close(fd);
	return status.st_dev;
}

/* A line of mountinfo: "36 35 98:0 /root /mount options ... - type source super-options". */
static bool is_of_device(const char *line, dev_t device)
{
	unsigned major_number, minor_number;

	return sscanf(line, "%*u %*u %u:%u", &major_number, &minor_number) == 2 &&
	       makedev(major_number, minor_number) == device;
}

/* Nothing is known of a mount that we do not see (another mount namespace's). */
static bool mount_has_large_folios(dev_t device)
{
	FILE *mounts = fopen("/proc/self/mountinfo", "re");
	bool found = false, large = true;
	char *line = NULL;
	size_t room = 0;

	while (mounts && !found && getline(&line, &room, mounts) > 0) {
		const char *options = strstr(line, " - ");

		found = options && is_of_device(line, device);
		if (found) /* huge=never is not listed */
			large = strstr(options, ",huge=") && !strstr(options, ",huge=never");
	}
	free(line);
	if (mounts)
		fclose(mounts);
	return large;
}

static bool may_be_large(const struct memory *memory)
{
	char general[32];
	dev_t memfds = memfd_device();

	read_setting(SETTINGS "shmem_enabled", general, sizeof general);
	/* No such file: a kernel without large folios in shmem. deny: nowhere, whatever a mount says. force:
	 * everywhere. */
	if (access(SETTINGS "shmem_enabled", F_OK) != 0 || strcmp(general, "deny") == 0)
		return false;
	if (is_one_of(general, "force", "") || any_size_is_on())
		return true;
	for (size_t i = 0; i < memory->regions_n; i++) {
		const struct region *region = &memory->regions[i];

		if (!region_has_file(region))
			continue;
		if (region->device == memfds ? strcmp(general, "never") != 0 :
					       mount_has_large_folios(region->device))
			return true;
	}
	return false;
}

void folios_look(struct vm *vm, const struct memory *memory)
{
	_Atomic uint32_t *kept = &page_map_header(vm->map)->large_folios;

	if (!atomic_load(kept) && may_be_large(memory))
		atomic_store(kept, true);
	atomic_store(&vm->large_folios, atomic_load(kept));
}
