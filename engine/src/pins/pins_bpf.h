/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The page check by BPF: references against mappings, per page, read from the kernel. Private to pins. */
#ifndef VMMSWAP_PINS_BPF_H
#define VMMSWAP_PINS_BPF_H

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "pins/pins_snapshot.h"

struct pins_bpf;

/* Load the program. Needs CAP_BPF and CAP_PERFMON, and the kernel's BTF. Says nothing yet about whether it is
 * right. */
int pins_bpf_create(struct pins_bpf **out, struct error *err);
void pins_bpf_destroy(struct pins_bpf *bpf);

/* Believe what is seen of large folios from now on; until then they are all held. */
void pins_bpf_trust_large(struct pins_bpf *bpf, bool trust);

/* Look at the 512 pages of memfd at place. 0; -EAGAIN if the memfd's tree changed each time we looked; -errno
 * of bpf(2). */
int pins_bpf_look(struct pins_bpf *bpf, int memfd, const struct pins_place *place, struct pins_verdict *out);

#endif
