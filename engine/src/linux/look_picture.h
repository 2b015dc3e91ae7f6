/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Which processes have memfds open, or which map them: all processes and all memfds, as seen by one look. */
#ifndef VMMSWAP_LOOK_PICTURE_H
#define VMMSWAP_LOOK_PICTURE_H

#include "linux/map_read.h"

#include <stddef.h>
#include <stdint.h>

/* What decides how much a look sees: pictures of others must not show less than our own would. */
struct look_viewer {
	uint64_t pid_namespace, capabilities, euid;
};

/* A process has a memfd open, or mapped (fd -1). */
struct sighting {
	uint64_t ino;
	int32_t pid, fd;
};

struct seen_process {
	struct map_read read;	  /* first */
	uint64_t maps_at, maps_n; /* of the sightings: those of its mappings */
};

/* As a file: this, the processes with pids ascending, and the sightings. */
struct picture_header {
	struct look_viewer viewer;
	uint64_t dev;	   /* of memfds */
	uint64_t began_ns; /* CLOCK_MONOTONIC */
	uint64_t looks;	   /* one more than in the last picture */
	uint64_t processes_n, sightings_n;
};

/* mapped: a file, if it is one. */
struct picture {
	struct picture_header header;
	struct seen_process *processes;
	struct sighting *sightings;
	size_t sightings_max; /* allocated */
	void *mapped;
	size_t mapped_bytes;
};

int picture_viewer(struct look_viewer *out); /* 0 or -errno */

enum look_kind {
	LOOK_FDS,  /* who has them open: waits for nobody */
	LOOK_MAPS, /* who maps them: waits for whoever holds the lock of a process's mappings */
};

/* Look through all processes. before: the last picture, or an empty one. 0; -ENOTSUP: the kernel is older
 * than 5.14; -E2BIG: there are too many memfds; or another -errno of reading /proc. On failure the picture is
 * empty. */
int picture_make(enum look_kind kind, const struct look_viewer *viewer, const struct picture *before,
		 struct picture *out);
void picture_free(struct picture *picture); /* leaves an empty one */

#endif
