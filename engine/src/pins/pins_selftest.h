/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Before a detector is used for a guest's memfd, it must be right about one of ours. Private to pins. */
#ifndef VMMSWAP_PINS_SELFTEST_H
#define VMMSWAP_PINS_SELFTEST_H

#include "base/error.h"
#include "pins/pins_bpf.h"
#include "pins/pins_collapse.h"

/* The BPF test also tries large folios, if one can be made, and makes the detector trust them if all answers
 * are right. 0, or -errno with what the detector got wrong. */
int pins_selftest_bpf(struct pins_bpf *bpf, struct error *err);
int pins_selftest_collapse(struct pins_collapse *collapse, struct error *err);

#endif
