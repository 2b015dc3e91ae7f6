/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The page check by BPF: references against mappings, per page, read from the kernel. Private to pins. */
#ifndef VMMSWAP_PINS_BPF_H
#define VMMSWAP_PINS_BPF_H

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "pins/pins_snapshot.h"

struct pins_bpf;

/* Load the program. Needs CAP_BPF and CAP_PERFMON, and the kernel's BTF. Success does not mean that its
 * answers are right: pins_selftest_bpf() shows that. */
int pins_bpf_create(struct pins_bpf **out, struct error *err);
void pins_bpf_destroy(struct pins_bpf *bpf);

/* Trust what is seen of large folios from now on. Until then all of them count as held. */
void pins_bpf_trust_large(struct pins_bpf *bpf, bool trust);

/* Look at the 512 pages of memfd at place. 0; -EAGAIN if the memfd's tree changed each time we looked; -errno
 * of bpf(2). */
int pins_bpf_look(struct pins_bpf *bpf, int memfd, const struct pins_place *place, struct pins_verdict *out);

#endif
