/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Each detector must be right about a memfd of our own before it is believed about a guest's. Private to
 * pins. */
#ifndef VMMSWAP_PINS_SELFTEST_H
#define VMMSWAP_PINS_SELFTEST_H

#include "base/error.h"
#include "pins/pins_bpf.h"
#include "pins/pins_collapse.h"

/* Also tries large folios, if one can be made, and lets the detector believe them if all is right. 0, or
 * -errno with what the detector got wrong. */
int pins_selftest_bpf(struct pins_bpf *bpf, struct error *err);
int pins_selftest_collapse(struct pins_collapse *collapse, struct error *err);

#endif
