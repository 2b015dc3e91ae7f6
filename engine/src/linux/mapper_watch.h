/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Who maps the guest's memory, for a caller that looks again and again: reads the maps only of known mappers
 * and of processes that may have changed (map_read.h). */
#ifndef VMMSWAP_MAPPER_WATCH_H
#define VMMSWAP_MAPPER_WATCH_H

#include "linux/mappers.h"

struct mapper_watch;

int mapper_watch_create(struct mapper_watch **out); /* 0 or -ENOMEM */
void mapper_watch_destroy(struct mapper_watch *watch);

/* As mappers_find(), but some changes are found only within MAP_READ_TURN_S or MAP_READ_TURN_LOOKS looks. */
int mapper_watch_look(struct mapper_watch *watch, const struct mapped_file *files, size_t files_n,
		      struct mapper_list *out);

#endif
