/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "linux/look_picture.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/failpoint.h"
#include "linux/mappers.h"
#include "linux/procfs.h"

#define SIGHTINGS_MAX (1 << 16) /* 1 MiB: a process can have very many memfds */
#define MEMFD "/memfd:"

int picture_viewer(struct look_viewer *out)
{
	struct __user_cap_header_struct head = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct sets[_LINUX_CAPABILITY_U32S_3];
	struct stat status;

	if (syscall(SYS_capget, &head, sets) || stat("/proc/self/ns/pid", &status))
		return -errno;
	*out = (struct look_viewer){ .pid_namespace = status.st_ino,
				     .capabilities = sets[0].effective | (uint64_t)sets[1].effective << 32,
				     .euid = geteuid() };
	return 0;
}

void picture_free(struct picture *picture)
{
	if (picture->mapped) {
		munmap(picture->mapped, picture->mapped_bytes);
	} else {
		free(picture->processes);
		free(picture->sightings);
	}
	*picture = (struct picture){ 0 };
}

struct maker {
	enum look_kind kind;
	struct picture *picture;
	const struct picture *before;
	uint64_t mnt_id; /* the kernel's own mount, of all memfds */
};

static int add_sighting(struct picture *picture, struct sighting sighting)
{
	if (picture->header.sightings_n == SIGHTINGS_MAX)
		return -E2BIG;
	if (picture->header.sightings_n == picture->sightings_max) {
		size_t max = picture->sightings_max ? 2 * picture->sightings_max : 1024;
		struct sighting *sightings = realloc(picture->sightings, max * sizeof *sightings);

		if (!sightings)
			return -ENOMEM;
		picture->sightings = sightings;
		picture->sightings_max = max;
	}
	picture->sightings[picture->header.sightings_n++] = sighting;
	return 0;
}

static int find_memfds_mount(struct maker *maker)
{
	int fd = memfd_create("vmmswap look", MFD_CLOEXEC), rc = 0;
	struct procfs_fdinfo info;
	struct stat status;
	char path[48];

	if (fd < 0)
		return -errno;
	snprintf(path, sizeof path, "/proc/self/fdinfo/%d", fd);
	if (fstat(fd, &status))
		rc = -errno;
	else if (!procfs_fdinfo(AT_FDCWD, path, &info) || !info.has_ino)
		rc = -ENOTSUP;
	close(fd);
	if (rc)
		return rc;
	maker->picture->header.dev = status.st_dev;
	maker->mnt_id = info.mnt_id;
	return 0;
}

/* One system call tells most other files from memfds; a file that is only named like one has another mount.
 * No file system is asked, which might not answer. links_fd: -1 if the links are not ours to read. */
static bool is_memfd(const struct maker *maker, int links_fd, int infos_fd, const char *name, ino_t *ino_out)
{
	char link[sizeof MEMFD - 1];
	struct procfs_fdinfo info;
	ssize_t got = links_fd < 0 ? -1 : readlinkat(links_fd, name, link, sizeof link);

	if (got >= 0 && (got < (ssize_t)sizeof link || memcmp(link, MEMFD, sizeof link)))
		return false;
	if (!procfs_fdinfo(infos_fd, name, &info) || info.mnt_id != maker->mnt_id)
		return false;
	*ino_out = info.ino;
	return true;
}

static int see_fds_in(const struct maker *maker, pid_t pid, DIR *infos, int links_fd)
{
	struct dirent *entry;
	int rc = 0;

	while (!rc && (entry = readdir(infos))) {
		char *end;
		long number = strtol(entry->d_name, &end, 10);
		ino_t ino;

		if (end != entry->d_name && !*end &&
		    is_memfd(maker, links_fd, dirfd(infos), entry->d_name, &ino))
			rc = add_sighting(maker->picture,
					  (struct sighting){ .ino = ino, .pid = pid, .fd = (int)number });
	}
	return rc;
}

static int see_fds(const struct maker *maker, pid_t pid)
{
	char path[64];
	int links_fd, rc;
	DIR *infos;

	snprintf(path, sizeof path, "/proc/%d/fdinfo", pid);
	infos = opendir(path);
	if (!infos) /* it has ended, or is not ours to look at */
		return errno == ENOENT || errno == ESRCH || errno == EACCES || errno == EPERM ? 0 : -errno;
	snprintf(path, sizeof path, "/proc/%d/fd", pid);
	links_fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	rc = see_fds_in(maker, pid, infos, links_fd);
	if (links_fd >= 0)
		close(links_fd);
	closedir(infos);
	return rc;
}

static int read_maps(const struct maker *maker, struct seen_process *process)
{
	const struct mapped_file memfds = { .dev = maker->picture->header.dev, .ino = MAPPED_ANY_INO };
	const struct pid_list one = { .pids = &process->read.pid, .pids_n = 1 };
	uint64_t since_ns = map_read_now_ns();
	struct mapper_list found = { 0 };
	int rc = mappers_among(&one, &memfds, 1, &found);

	for (size_t i = 0; i < found.mappings_n && !rc; i++)
		if (!i || found.mappings[i].ino != found.mappings[i - 1].ino)
			rc = add_sighting(maker->picture, (struct sighting){ .ino = found.mappings[i].ino,
									     .pid = process->read.pid,
									     .fd = -1 });
	mappers_free(&found);
	map_read_done(&process->read, maker->picture->header.looks, since_ns);
	return rc;
}

static int copy_maps(const struct maker *maker, struct seen_process *process,
		     const struct seen_process *before)
{
	const struct picture *from = maker->before;
	int rc = 0;

	process->read = before->read; /* its sizes too: a change that was not followed is still a change */
	for (uint64_t i = 0; i < before->maps_n && !rc; i++)
		rc = add_sighting(maker->picture, from->sightings[before->maps_at + i]);
	return rc;
}

static int see_maps(const struct maker *maker, struct seen_process *process)
{
	const struct picture *from = maker->before;
	const struct picture_header *header = &from->header;
	const struct seen_process *before = map_read_find(from->processes, header->processes_n,
							  sizeof *from->processes, process->read.pid);
	uint64_t looks = maker->picture->header.looks;
	int rc;

	process->maps_at = maker->picture->header.sightings_n;
	if (!before || before->maps_at > header->sightings_n ||
	    before->maps_n > header->sightings_n - before->maps_at ||
	    map_read_is_due(&before->read, &process->read, looks, map_read_now_ns()))
		rc = read_maps(maker, process);
	else
		rc = copy_maps(maker, process, before);
	process->maps_n = maker->picture->header.sightings_n - process->maps_at;
	return rc;
}

static int see_process(const struct maker *maker, pid_t pid)
{
	struct picture_header *header = &maker->picture->header;
	struct seen_process *process = &maker->picture->processes[header->processes_n];

	if (maker->kind == LOOK_FDS)
		return see_fds(maker, pid);
	process->read.pid = pid;
	if (!map_read_sizes(&process->read))
		return 0; /* it has ended */
	header->processes_n++;
	return see_maps(maker, process);
}

static int see_processes(const struct maker *maker, struct pid_list *pids)
{
	struct picture *picture = maker->picture;
	int rc = 0;

	picture->processes = calloc(pids->pids_n, sizeof *picture->processes);
	if (!picture->processes)
		return -ENOMEM;
	qsort(pids->pids, pids->pids_n, sizeof *pids->pids, map_read_compare_pids);
	for (size_t i = 0; i < pids->pids_n && !rc; i++)
		rc = see_process(maker, pids->pids[i]);
	return rc;
}

int picture_make(enum look_kind kind, const struct look_viewer *viewer, const struct picture *before,
		 struct picture *out)
{
	struct maker maker = { .kind = kind, .picture = out, .before = before };
	struct pid_list pids = { 0 };
	int rc;

	FAILPOINT_HERE("shared_look.making");
	*out = (struct picture){ .header = { .viewer = *viewer,
					     .began_ns = map_read_now_ns(),
					     .looks = before->header.looks + 1 } };
	rc = find_memfds_mount(&maker);
	if (!rc)
		rc = procfs_list("/proc", &pids);
	if (!rc)
		rc = see_processes(&maker, &pids);
	pid_list_free(&pids);
	if (rc)
		picture_free(out);
	return rc;
}
