/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "linux/time_slice.h"

#include <sched.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <unistd.h>

#define SHORTEST_NS 100000

/* The kernel's struct sched_attr, in its first version. <linux/sched/types.h> cannot be included together
 * with the <sched.h> of glibc before 2.41. */
struct attributes {
	uint32_t size_bytes, policy;
	uint64_t flags;
	int32_t nice;
	uint32_t priority;
	uint64_t runtime_ns, deadline_ns, period_ns;
};

/* Of a thread that is scheduled as most are, the runtime is its time slice. */
void time_slice_shorten(void)
{
	struct attributes attributes = { .size_bytes = sizeof attributes };

	if (syscall(SYS_sched_getattr, 0, &attributes, sizeof attributes, 0) != 0 ||
	    attributes.policy != SCHED_OTHER)
		return;
	attributes.runtime_ns = SHORTEST_NS;
	syscall(SYS_sched_setattr, 0, &attributes, 0);
}
