/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Who maps the guest's memory, for whoever looks again and again. Reading all maps costs some 90 us a process, and more the more
 * a process maps, which other users decide. A process that maps something new has another size, and one that touches it has
 * more shared pages, which /proc/PID/statm tells at once; so only the maps of these are read, and of who maps the memory. */
#ifndef VMMSWAP_MAPPER_WATCH_H
#define VMMSWAP_MAPPER_WATCH_H

#include "linux/mappers.h"

struct mapper_watch;

int mapper_watch_create(struct mapper_watch **out); /* 0 or -ENOMEM */
void mapper_watch_destroy(struct mapper_watch *watch);

/* As mappers_find(). What changes neither a process's size nor its shared pages (memory that is
 * mapped over other memory and not touched) is found once the process's turn comes, within MAPPER_WATCH_TURN_S; so is any
 * change of a process whose maps take so long to read that a look at each change would cost more than one part in
 * MAPPER_WATCH_REST of a CPU. */
int mapper_watch_look(struct mapper_watch *watch, const struct mapped_file *files, size_t files_n,
		      struct mapper_list *out);

#define MAPPER_WATCH_TURN_S 60
#define MAPPER_WATCH_REST 500

#endif
