/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Who maps the guest's memory, for a caller that looks again and again. Reading maps costs some 90 us for
 * each process, and more for one that maps much, which other users decide. A process that maps something new
 * has another size, and one that touches it has more shared pages; /proc/PID/statm shows both at once. So
 * only the maps of such processes, and of known mappers, are read. */
#ifndef VMMSWAP_MAPPER_WATCH_H
#define VMMSWAP_MAPPER_WATCH_H

#include "linux/mappers.h"

struct mapper_watch;

int mapper_watch_create(struct mapper_watch **out); /* 0 or -ENOMEM */
void mapper_watch_destroy(struct mapper_watch *watch);

/* As mappers_find(). Some changes are found only when the process's turn comes, within MAPPER_WATCH_TURN_S:
 * or within MAPPER_WATCH_TURN_LOOKS looks where looks are rare: those that change neither its size nor its
 * shared pages (memory that is mapped over other memory and not touched), and those of a process whose maps
 * take so long to read that a look at each change would cost more than 1/MAPPER_WATCH_REST of a CPU. */
int mapper_watch_look(struct mapper_watch *watch, const struct mapped_file *files, size_t files_n,
		      struct mapper_list *out);

#define MAPPER_WATCH_TURN_S 60
#define MAPPER_WATCH_TURN_LOOKS 16
#define MAPPER_WATCH_REST 500

#endif
