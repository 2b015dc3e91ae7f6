/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The BPF program that takes a pins_snapshot, put together at run time from the kernel's own offsets. Private
 * to pins. */
#ifndef VMMSWAP_PINS_BPF_PROGRAM_H
#define VMMSWAP_PINS_BPF_PROGRAM_H

#include <linux/bpf.h>
#include <stddef.h>

#include "pins/pins_snapshot.h"

#define PINS_SCRATCH_SHIFT 17 /* one snapshot each 128 KiB of the map's value */
#define PINS_SCRATCHES 4      /* a power of two */
#define PINS_PROGRAM_INSNS 1024

struct pins_bpf_args { /* the program's context */
	uint64_t fd;
	uint64_t first_page;
	uint64_t scratch_idx;
};

/* Returns the number of instructions; the limit above suffices by construction (checked by an assertion). */
size_t pins_bpf_program(const struct pins_layout *layout, int map_fd,
			struct bpf_insn insns[PINS_PROGRAM_INSNS]);

#endif
