/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Makes the tiers of a log, or takes over those of a predecessor. */
#ifndef VMMSWAP_LOG_OPEN_H
#define VMMSWAP_LOG_OPEN_H

#include "store/log.h"

/* The segments are open. On error nothing else is. -ENODEV: the fd of a tier that the predecessor had is not
 * there; nothing is changed, so a later try that has it finds all. */
int log_open_tiers(struct log *log, const struct log_config *config, struct error *err);

#endif
