/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "linux/procfs.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#define FDINFO_BYTES 512 /* pos, flags, mnt_id and ino come first */

int pid_list_add(struct pid_list *list, pid_t pid)
{
	if (list->pids_n == list->pids_max) {
		size_t max = list->pids_max ? 2 * list->pids_max : 64;
		pid_t *pids = realloc(list->pids, max * sizeof *pids);

		if (!pids)
			return -ENOMEM;
		list->pids = pids;
		list->pids_max = max;
	}
	list->pids[list->pids_n++] = pid;
	return 0;
}

void pid_list_free(struct pid_list *list)
{
	free(list->pids);
	*list = (struct pid_list){ 0 };
}

int procfs_list(const char *dir_path, struct pid_list *out)
{
	struct dirent *entry;
	int rc = 0;
	DIR *dir = opendir(dir_path);

	if (!dir)
		return -errno;
	while (!rc) {
		char *end;
		long id;

		errno = 0;
		entry = readdir(dir);
		if (!entry) {
			rc = -errno;
			break;
		}
		id = strtol(entry->d_name, &end, 10);
		if (id > 0 && *end == '\0')
			rc = pid_list_add(out, (pid_t)id);
	}
	closedir(dir);
	return rc;
}

static int children_of_thread(pid_t pid, pid_t tid, struct pid_list *out)
{
	char path[64];
	FILE *file;
	int child, rc = 0;

	snprintf(path, sizeof path, "/proc/%d/task/%d/children", pid, tid);
	file = fopen(path, "re");
	if (!file && errno == ENOENT && access("/proc/thread-self/children", F_OK))
		return -ENOTSUP;
	if (!file)
		return errno == ENOENT || errno == ESRCH ? 0 : -errno;
	while (!rc && fscanf(file, "%d", &child) == 1)
		rc = pid_list_add(out, child);
	fclose(file);
	return rc;
}

int procfs_children(pid_t pid, struct pid_list *out)
{
	struct pid_list tids = { 0 };
	char path[64];
	int rc;

	snprintf(path, sizeof path, "/proc/%d/task", pid);
	rc = procfs_list(path, &tids);
	if (rc == -ENOENT || rc == -ESRCH)
		rc = 0;
	for (size_t i = 0; i < tids.pids_n && !rc; i++)
		rc = children_of_thread(pid, tids.pids[i], out);
	pid_list_free(&tids);
	return rc;
}

ssize_t procfs_read(int dir_fd, const char *path, char *out, size_t out_bytes)
{
	int fd = openat(dir_fd, path, O_RDONLY | O_CLOEXEC);
	ssize_t got;

	*out = '\0';
	if (fd < 0)
		return -errno;
	got = read(fd, out, out_bytes - 1);
	if (got < 0)
		got = -errno;
	close(fd);
	out[got < 0 ? 0 : got] = '\0';
	return got;
}

/* One of a thread's small files. 0 or -errno. */
static int read_file(pid_t pid, pid_t tid, const char *name, char *out, size_t out_bytes)
{
	char path[64];
	ssize_t got;

	snprintf(path, sizeof path, "/proc/%d/task/%d/%s", pid, tid, name);
	got = procfs_read(AT_FDCWD, path, out, out_bytes);
	return got < 0 ? (int)got : 0;
}

int procfs_task(pid_t pid, pid_t tid, struct procfs_task *out)
{
	char text[512], *name, *end;
	size_t length;
	int rc = read_file(pid, tid, "stat", text, sizeof text);

	if (rc)
		return rc;
	/* "TID (NAME) STATE ...": the name is the process's own choice and may hold ") Z", so the last
	 * bracket counts. */
	name = strchr(text, '(');
	end = strrchr(text, ')');
	if (!name || !end || end < name || end[1] != ' ' || !end[2])
		return -EIO;
	out->state = end[2];
	length = (size_t)(end - name) - 1;
	if (length >= sizeof out->name)
		length = sizeof out->name - 1;
	for (size_t i = 0; i < length; i++)
		out->name[i] = name[1 + i] >= ' ' && name[1 + i] <= '~' ? name[1 + i] : '?';
	out->name[length] = '\0';
	return 0;
}

static bool read_number(const char *text, const char *key, uint64_t *out)
{
	const char *at = strstr(text, key);

	*out = at ? strtoull(at + strlen(key), NULL, 10) : 0;
	return at;
}

int procfs_fdinfo(int dir_fd, const char *name, struct procfs_fdinfo *out)
{
	char text[FDINFO_BYTES];
	ssize_t got = procfs_read(dir_fd, name, text, sizeof text);
	uint64_t ino;

	if (got < 0)
		return (int)got;
	out->has_ino = read_number(text, "\nino:", &ino);
	out->ino = (ino_t)ino;
	return read_number(text, "\nmnt_id:", &out->mnt_id) ? 0 : -ENODATA;
}

bool procfs_is_shortage(int rc)
{
	return rc == -EMFILE || rc == -ENFILE || rc == -ENOMEM;
}

/* "MNT_ID PARENT MAJOR:MINOR ...", a line for each mount. */
int procfs_mount_has(pid_t pid, uint64_t mnt_id, dev_t dev)
{
	unsigned major_number, minor_number;
	int rc = -ENOENT;
	uint64_t found;
	char path[64];
	FILE *file;

	snprintf(path, sizeof path, "/proc/%d/mountinfo", pid);
	file = fopen(path, "re");
	if (!file)
		return -errno;
	while (rc < 0 &&
	       fscanf(file, "%" SCNu64 " %*u %u:%u%*[^\n]", &found, &major_number, &minor_number) == 3)
		if (found == mnt_id)
			rc = makedev(major_number, minor_number) == dev;
	fclose(file);
	return rc;
}

pid_t procfs_tracer(pid_t pid, pid_t tid)
{
	static const char key[] = "\nTracerPid:";
	char text[4096], *at;

	if (read_file(pid, tid, "status", text, sizeof text))
		return 0;
	at = strstr(text, key);
	return at ? (pid_t)strtol(at + strlen(key), NULL, 10) : 0;
}

void procfs_wait_channel(pid_t pid, pid_t tid, char *out, size_t out_bytes)
{
	if (read_file(pid, tid, "wchan", out, out_bytes) || !*out || !strcmp(out, "0"))
		snprintf(out, out_bytes, "?");
}
