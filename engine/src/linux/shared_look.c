/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "linux/shared_look.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/failpoint.h"
#include "linux/map_read.h"

#define LOCK_TRIES 20
#define LOCK_PAUSE_US 10000

/* Of one kind of look. The number goes up when the format changes. */
static const struct names {
	const char *picture, *new_picture, *lock;
} names[] = {
	[LOOK_FDS] = { "fds-1", "fds-1.new", "fds-1.lock" },
	[LOOK_MAPS] = { "maps-1", "maps-1.new", "maps-1.lock" },
};

/* Where pictures of that kind are shared, and by whom. */
struct place {
	int dir_fd;
	enum look_kind kind;
	struct look_viewer viewer;
};

static bool is_whole(const struct picture_header *header, size_t bytes)
{
	return header->processes_n <= bytes / sizeof(struct seen_process) &&
	       header->sightings_n <= bytes / sizeof(struct sighting) &&
	       bytes == sizeof *header + header->processes_n * sizeof(struct seen_process) +
				header->sightings_n * sizeof(struct sighting);
}

/* A file that is mapped is never cut: a new one takes its name. */
static bool map_picture(int fd, struct picture *out)
{
	struct stat status;
	void *mapped;

	if (fstat(fd, &status) || (size_t)status.st_size < sizeof out->header)
		return false;
	mapped = mmap(NULL, (size_t)status.st_size, PROT_READ, MAP_SHARED, fd, 0);
	if (mapped == MAP_FAILED)
		return false;
	*out = (struct picture){ .mapped = mapped, .mapped_bytes = (size_t)status.st_size };
	memcpy(&out->header, mapped, sizeof out->header);
	return is_whole(&out->header, out->mapped_bytes);
}

/* False, with an empty picture, if there is none, or none that shows what we would see. */
static bool open_picture(const struct place *place, struct picture *out)
{
	int fd = openat(place->dir_fd, names[place->kind].picture, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
	bool is_ours;

	*out = (struct picture){ 0 };
	if (fd < 0)
		return false;
	is_ours = map_picture(fd, out) && !memcmp(&out->header.viewer, &place->viewer, sizeof place->viewer);
	close(fd);
	if (!is_ours) {
		picture_free(out);
		return false;
	}
	out->processes = (struct seen_process *)((char *)out->mapped + sizeof out->header);
	out->sightings = (struct sighting *)(out->processes + out->header.processes_n);
	return true;
}

static bool is_fresh(const struct picture *picture, uint64_t max_age_ns)
{
	uint64_t time_ns = map_read_now_ns(), began_ns = picture->header.began_ns;

	return began_ns <= time_ns && time_ns - began_ns <= max_age_ns;
}

static int write_all(int fd, const void *from, size_t bytes)
{
	const char *at = from;

	while (bytes) {
		ssize_t done = write(fd, at, bytes);

		if (done < 0 && errno != EINTR)
			return errno;
		if (done > 0) {
			at += done;
			bytes -= (size_t)done;
		}
	}
	return 0;
}

/* Returns 0, or the errno. */
static int show_picture(const struct place *place, const struct picture *picture)
{
	const struct names *name = &names[place->kind];
	const struct picture_header *header = &picture->header;
	int fd = openat(place->dir_fd, name->new_picture,
			O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
	int error;

	if (fd < 0)
		return errno;
	error = write_all(fd, header, sizeof *header);
	if (!error)
		error = write_all(fd, picture->processes, header->processes_n * sizeof *picture->processes);
	if (!error)
		error = write_all(fd, picture->sightings, header->sightings_n * sizeof *picture->sightings);
	close(fd);
	if (!error && renameat(place->dir_fd, name->new_picture, place->dir_fd, name->picture))
		error = errno;
	if (error)
		unlinkat(place->dir_fd, name->new_picture, 0);
	return error;
}

/* Somebody may have made one while we came to the lock. */
static int renew_locked(const struct place *place, uint64_t max_age_ns, struct picture *picture,
			int *unshared_out)
{
	struct picture before;
	int rc;

	if (open_picture(place, &before) && is_fresh(&before, max_age_ns)) {
		*picture = before;
		return 0;
	}
	rc = picture_make(place->kind, &place->viewer, &before, picture);
	picture_free(&before);
	if (!rc)
		*unshared_out = show_picture(place, picture);
	return rc;
}

/* Many monitors may have their beat at the same moment. Wait for a look that takes some milliseconds, and not
 * for longer: the lock's owner may be stopped. */
static int lock_soon(int fd)
{
	for (int tries = 0; flock(fd, LOCK_EX | LOCK_NB); tries++) {
		if (errno != EWOULDBLOCK)
			return -errno;
		if (tries == LOCK_TRIES)
			return -EBUSY;
		FAILPOINT_HERE("shared_look.waiting");
		usleep(LOCK_PAUSE_US);
	}
	return 0;
}

static int renew(const struct place *place, uint64_t max_age_ns, struct picture *picture, int *unshared_out)
{
	const char *lock = names[place->kind].lock;
	int fd = openat(place->dir_fd, lock, O_RDONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600), rc;

	if (fd < 0)
		return -errno;
	rc = lock_soon(fd);
	if (!rc)
		rc = renew_locked(place, max_age_ns, picture, unshared_out);
	close(fd);
	return rc;
}

/* --- looking at one */

static bool has_pid(const struct pid_list *list, pid_t pid)
{
	for (size_t i = 0; i < list->pids_n; i++)
		if (list->pids[i] == pid)
			return true;
	return false;
}

static int take(const struct sighting *sighting, size_t file_idx, struct shared_look *out)
{
	if (sighting->pid == getpid())
		return 0;
	if (sighting->fd < 0)
		return has_pid(&out->mappers, sighting->pid) ? 0 : pid_list_add(&out->mappers, sighting->pid);
	return holders_add(&out->holders,
			   (struct holder){ .pid = sighting->pid, .fd = sighting->fd, .file_idx = file_idx });
}

static int find_in(const struct picture *picture, const int *fds, size_t fds_n, struct shared_look *out)
{
	int rc = 0;

	for (size_t idx = 0; idx < fds_n && !rc; idx++) {
		struct mapped_file file;

		rc = mappers_file_of(fds[idx], &file);
		if (!rc && file.dev != picture->header.dev)
			rc = -ENOTSUP;
		for (uint64_t i = 0; i < picture->header.sightings_n && !rc; i++)
			if (picture->sightings[i].ino == file.ino)
				rc = take(&picture->sightings[i], idx, out);
	}
	return rc ? rc : holders_confirm(fds, fds_n, &out->holders);
}

int shared_look(int dir_fd, enum look_kind kind, const int *fds, size_t fds_n, uint64_t max_age_ns,
		struct shared_look *out)
{
	struct place place = { .dir_fd = dir_fd, .kind = kind };
	struct picture picture;
	int rc = picture_viewer(&place.viewer);

	*out = (struct shared_look){ 0 };
	if (rc)
		return rc;
	if (!open_picture(&place, &picture) || !is_fresh(&picture, max_age_ns)) {
		picture_free(&picture);
		rc = renew(&place, max_age_ns, &picture, &out->unshared);
	}
	if (!rc)
		rc = find_in(&picture, fds, fds_n, out);
	picture_free(&picture);
	if (rc)
		shared_look_free(out);
	return rc;
}

void shared_look_free(struct shared_look *look)
{
	holders_free(&look->holders);
	pid_list_free(&look->mappers);
}
