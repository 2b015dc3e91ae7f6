/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The log as a tier of the store. */
#ifndef VMMSWAP_LOG_TIER_H
#define VMMSWAP_LOG_TIER_H

#include "store/log.h"
#include "store/tier.h"

int log_tier_create(const struct log_config *config, struct tier **out, struct error *err);
struct log *log_of_tier(struct tier *tier);

#endif
