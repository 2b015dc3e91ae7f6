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
#include "linux/fd_tables.h"
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
	struct fd_tables *tables; /* LOOK_FDS: those with memfds in them */
	uint64_t mnt_id;	  /* the kernel's own mount, of all memfds */
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
	int fd = memfd_create("vmmswap look", MFD_CLOEXEC), rc;
	struct procfs_fdinfo info;
	struct stat status;
	char path[48];

	if (fd < 0)
		return -errno;
	snprintf(path, sizeof path, "/proc/self/fdinfo/%d", fd);
	rc = fstat(fd, &status) ? -errno : procfs_fdinfo(AT_FDCWD, path, &info);
	if (rc ? !procfs_is_shortage(rc) : !info.has_ino)
		rc = -ENOTSUP;
	close(fd);
	if (rc)
		return rc;
	maker->picture->header.dev = status.st_dev;
	maker->mnt_id = info.mnt_id;
	return 0;
}

/* One system call tells most other files from memfds. No file system is asked, which might not answer.
 * links_fd: -1 if the links are not ours to read. */
static bool may_be_memfd(int links_fd, const char *name)
{
	char link[sizeof MEMFD - 1];
	ssize_t got = links_fd < 0 ? -1 : readlinkat(links_fd, name, link, sizeof link);

	return got < 0 || (got == (ssize_t)sizeof link && !memcmp(link, MEMFD, sizeof link));
}

/* A file that is only named like a memfd has another mount. 1, 0 or -errno. */
static int is_memfd(const struct maker *maker, pid_t pid, const char *name, ino_t *ino_out)
{
	struct procfs_fdinfo info;
	char path[64];
	int rc;

	snprintf(path, sizeof path, "/proc/%d/fdinfo/%.16s", pid, name);
	FAILPOINT_HERE("shared_look.fdinfo");
	rc = procfs_fdinfo(AT_FDCWD, path, &info);
	if (rc) /* closed meanwhile, or unknown */
		return procfs_is_shortage(rc) ? rc : 0;
	*ino_out = info.ino;
	return info.mnt_id == maker->mnt_id;
}

static int see_fds_in(const struct maker *maker, pid_t pid, DIR *fds, int links_fd)
{
	struct dirent *entry;
	int rc = 0;

	while (!rc && (entry = readdir(fds))) {
		char *end;
		long number = strtol(entry->d_name, &end, 10);
		ino_t ino = 0;

		if (end == entry->d_name || *end || !may_be_memfd(links_fd, entry->d_name))
			continue;
		rc = is_memfd(maker, pid, entry->d_name, &ino);
		if (rc == 1)
			rc = add_sighting(maker->picture,
					  (struct sighting){ .ino = ino, .pid = pid, .fd = (int)number });
	}
	return rc;
}

/* The links take the process's uid, fdinfo only CAP_SYS_PTRACE. NULL: it has ended, or is not ours to look
 * at; or *rc_out is set. */
static DIR *open_fds(pid_t pid, bool *are_links_out, int *rc_out)
{
	static const char *const names[] = { "fdinfo", "fd" };
	DIR *fds = NULL;
	char path[64];

	*are_links_out = true;
	for (int i = 1; i >= 0 && !fds; i--) {
		snprintf(path, sizeof path, "/proc/%d/%s", pid, names[i]);
		fds = opendir(path);
		*are_links_out = i;
		if (!fds && errno != EACCES && errno != EPERM) {
			*rc_out = errno == ENOENT || errno == ESRCH ? 0 : -errno;
			return NULL;
		}
	}
	return fds;
}

static int read_fds(const struct maker *maker, pid_t pid)
{
	bool are_links;
	int rc = 0;
	DIR *fds = open_fds(pid, &are_links, &rc);

	if (!fds)
		return rc;
	rc = see_fds_in(maker, pid, fds, are_links ? dirfd(fds) : -1);
	closedir(fds);
	return rc;
}

static int copy_fds(const struct maker *maker, pid_t pid, const struct fd_table *table)
{
	int rc = 0;

	for (uint64_t i = 0; i < table->sightings_n && !rc; i++) {
		struct sighting sighting = maker->picture->sightings[table->sightings_at + i];

		sighting.pid = pid;
		rc = add_sighting(maker->picture, sighting);
	}
	return rc;
}

/* A monitor's keeper has the monitor's fds (keep/keeper.h): half of all memfds on a host with many VMs. */
static int see_fds(const struct maker *maker, pid_t pid)
{
	struct fd_table table = { .pid = pid, .sightings_at = maker->picture->header.sightings_n };
	const struct fd_table *same = fd_tables_find(maker->tables, pid);
	int rc;

	if (same)
		return copy_fds(maker, pid, same);
	rc = read_fds(maker, pid);
	table.sightings_n = maker->picture->header.sightings_n - table.sightings_at;
	return rc || !table.sightings_n ? rc : fd_tables_add(maker->tables, &table);
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
	int rc;

	if (maker->kind == LOOK_FDS)
		return see_fds(maker, pid);
	process->read.pid = pid;
	rc = map_read_sizes(&process->read);
	if (rc) /* it has ended */
		return procfs_is_shortage(rc) ? rc : 0;
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
	struct fd_tables tables = { 0 };
	struct maker maker = { .kind = kind, .picture = out, .before = before, .tables = &tables };
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
	fd_tables_free(&tables);
	if (rc)
		picture_free(out);
	return rc;
}
