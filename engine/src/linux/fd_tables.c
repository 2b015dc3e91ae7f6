/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "linux/fd_tables.h"

#include <errno.h>
#include <linux/kcmp.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

enum order { SAME, BEFORE, AFTER, UNKNOWN }; /* as kcmp(2) has them */

static enum order compare(pid_t pid, pid_t other)
{
	long order = syscall(SYS_kcmp, pid, other, KCMP_FILES, 0, 0);

	return order < SAME || order > UNKNOWN ? UNKNOWN : (enum order)order;
}

/* False, and no place, if one of those in the way has ended or is not ours to ask about. */
static bool search(const struct fd_tables *tables, pid_t pid, size_t *place_out, bool *is_there_out)
{
	size_t low = 0, high = tables->n;

	*is_there_out = false;
	while (low < high) {
		size_t middle = low + (high - low) / 2;

		switch (compare(pid, tables->tables[middle].pid)) {
		case SAME:
			*is_there_out = true;
			low = high = middle;
			break;
		case BEFORE:
			high = middle;
			break;
		case AFTER:
			low = middle + 1;
			break;
		case UNKNOWN:
			return false;
		}
	}
	*place_out = low;
	return true;
}

const struct fd_table *fd_tables_find(const struct fd_tables *tables, pid_t pid)
{
	bool is_there;
	size_t place;

	return search(tables, pid, &place, &is_there) && is_there ? &tables->tables[place] : NULL;
}

int fd_tables_add(struct fd_tables *tables, const struct fd_table *table)
{
	bool is_there;
	size_t place;

	if (!search(tables, table->pid, &place, &is_there) || is_there)
		return 0; /* it is read again for whoever shares it */
	if (tables->n == tables->max) {
		size_t max = tables->max ? 2 * tables->max : 64;
		struct fd_table *grown = realloc(tables->tables, max * sizeof *grown);

		if (!grown)
			return -ENOMEM;
		tables->tables = grown;
		tables->max = max;
	}
	memmove(&tables->tables[place + 1], &tables->tables[place],
		(tables->n - place) * sizeof *tables->tables);
	tables->tables[place] = *table;
	tables->n++;
	return 0;
}

void fd_tables_free(struct fd_tables *tables)
{
	free(tables->tables);
	*tables = (struct fd_tables){ 0 };
}
