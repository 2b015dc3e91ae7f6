/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "freeze/members.h"

#include <errno.h>
#include <stdbool.h>
#include <time.h>

static bool is_in(const struct pid_list *list, pid_t pid)
{
	for (size_t i = 0; i < list->pids_n; i++)
		if (list->pids[i] == pid)
			return true;
	return false;
}

static int append(struct pid_list *list, const struct pid_list *more)
{
	for (size_t i = 0; i < more->pids_n; i++)
		if (!is_in(list, more->pids[i]) && pid_list_add(list, more->pids[i]))
			return -ENOMEM;
	return 0;
}

static bool is_over(const struct members *members)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec >= members->deadline_ns;
}

/* Find the members' descendants, whatever they map: a grandchild may map what its parent has unmapped. */
static int list_family(const struct members *members, struct pid_list *family)
{
	int rc = append(family, &members->mappers);

	for (size_t i = 0; i < family->pids_n && !rc; i++) {
		struct pid_list children = { 0 };

		rc = is_over(members) ? -ETIMEDOUT : procfs_children(family->pids[i], &children);
		if (!rc)
			rc = append(family, &children);
		pid_list_free(&children);
	}
	return rc;
}

/* Find those of the family that map the memory and are not members yet. */
static int look_at_family(struct members *members, const struct pid_list *family)
{
	struct mapper_list found = { 0 };
	int rc = 0;

	for (size_t i = 0; i < family->pids_n && !rc; i++) {
		const struct pid_list one = { .pids = &family->pids[i], .pids_n = 1 };

		if (is_in(&members->mappers, family->pids[i]))
			continue;
		rc = is_over(members) ? -ETIMEDOUT :
					mappers_among(&one, members->files, members->files_n, &found);
		if (!rc)
			rc = append(&members->mappers, &found.pids);
		mappers_free(&found);
	}
	return rc;
}

int members_find(struct members *members, const struct mapped_file *files, size_t files_n)
{
	struct mapper_list found;
	int rc;

	*members = (struct members){ .files = files, .files_n = files_n, .deadline_ns = UINT64_MAX };
	rc = mappers_find(files, files_n, &found);
	if (rc)
		return rc;
	rc = append(&members->mappers, &found.pids);
	mappers_free(&found);
	if (rc)
		members_free(members);
	return rc;
}

int members_list(void *ctx, struct pid_list *out)
{
	struct members *members = ctx;
	struct pid_list family = { 0 };
	int rc = list_family(members, &family);

	if (rc == -ENOTSUP)
		rc = procfs_list("/proc", &family);
	if (!rc)
		rc = look_at_family(members, &family);
	if (!rc)
		rc = append(out, &members->mappers);
	pid_list_free(&family);
	return rc;
}

void members_free(struct members *members)
{
	pid_list_free(&members->mappers);
	*members = (struct members){ 0 };
}
