/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "jobs/freeze_vm.h"

#include <errno.h>
#include <string.h>

#include "base/failpoint.h"
#include "freeze/freeze.h"
#include "freeze/members.h"

#define FREEZE_ATTEMPTS 5

static size_t files_of(const struct memory *memory, struct mapped_file files[static MEMORY_MAX_REGIONS])
{
	size_t n = 0;

	for (size_t i = 0; i < memory->regions_n; i++)
		if (region_has_file(&memory->regions[i]))
			files[n++] =
				(struct mapped_file){ memory->regions[i].device, memory->regions[i].inode };
	return n;
}

/* The number of processes ever served. If we alone hold the gate, every fork whose event was read has been
 * handled. */
static uint32_t processes_ever(struct vm *vm)
{
	uint32_t n;

	gate_hold_alone(vm->gate);
	n = vm->spaces.next_id;
	gate_release(vm->gate);
	return n;
}

static int freeze_once(struct swapper *swapper, const struct mapped_file *files, size_t files_n,
		       struct freeze **freeze)
{
	uint32_t timeout_ms = swapper->options.freeze_timeout_ms;
	struct members members;
	int rc = members_find(&members, files, files_n);

	if (rc)
		return error_set(&swapper->error, -rc, "cannot list the VM's processes: %s", strerror(-rc));
	FAILPOINT_HERE("swapper.listed");
	members.deadline_ns = monotonic_ns() + (uint64_t)timeout_ms * 1000000;
	rc = freeze_create(members_list, &members, timeout_ms, freeze, &swapper->error);
	members_free(&members);
	return rc;
}

/* A process may be forked between the look at all processes and the freeze, by a process that has ended
 * since. The FORK event shows that. */
int freeze_vm(struct swapper *swapper, struct freeze **freeze)
{
	struct mapped_file files[MEMORY_MAX_REGIONS];
	size_t files_n = files_of(&swapper->memory, files);

	for (int attempt = 0; attempt < FREEZE_ATTEMPTS; attempt++) {
		uint32_t before = processes_ever(swapper->vm);
		int rc = freeze_once(swapper, files, files_n, freeze);

		if (rc || processes_ever(swapper->vm) == before)
			return rc;
		freeze_destroy(*freeze);
		*freeze = NULL;
	}
	return error_set(&swapper->error, ETIMEDOUT,
			 "the VM got new processes during each of %d attempts to freeze it; all run again",
			 FREEZE_ATTEMPTS);
}
