/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Tests run as root, which may do with files all that the monitor may not. */
#ifndef VMMSWAP_FILE_CAPABILITIES_H
#define VMMSWAP_FILE_CAPABILITIES_H

#include <linux/capability.h>
#include <sys/syscall.h>

#include "harness.h"

/* All threads that this one starts have them not, either. */
static inline void drop_file_capabilities(void)
{
	struct __user_cap_header_struct header = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct data[_LINUX_CAPABILITY_U32S_3];
	const uint32_t files = 1u << CAP_DAC_OVERRIDE | 1u << CAP_DAC_READ_SEARCH | 1u << CAP_FOWNER;

	CHECK_SYS(syscall(SYS_capget, &header, data));
	data[0].effective &= ~files;
	CHECK_SYS(syscall(SYS_capset, &header, data));
}

#endif
