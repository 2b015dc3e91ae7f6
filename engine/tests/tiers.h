/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A test that is compiled with TEST_TIERS has its engines put pages into the tiers: test_tiered_*.c. */
#ifndef VMMSWAP_TESTS_TIERS_H
#define VMMSWAP_TESTS_TIERS_H

#include "engine.h"

#ifndef TEST_TIERS
#define TEST_TIERS false
#endif

static inline void test_use_tiers(struct engine_config *config)
{
	config->tiers = TEST_TIERS;
	config->segments_fd = config->ram_fd = config->disk_fd = config->key_fd = -1;
	config->has_disk = config->compress = config->encrypt = true;
	config->ram_max_bytes = (uint64_t)64 << 20;
	config->ram_age_s = 3600;
}

/* A successor of this engine has its tiers. */
static inline void test_keep_tiers(struct engine_config *config, const struct engine *engine)
{
	struct store_fds fds = engine_tier_fds(engine);

	test_use_tiers(config);
	if (!TEST_TIERS)
		return;
	config->segments_fd = (int)CHECK_SYS(dup(fds.segments));
	config->ram_fd = (int)CHECK_SYS(dup(fds.ram));
	config->disk_fd = (int)CHECK_SYS(dup(fds.disk));
	config->key_fd = (int)CHECK_SYS(dup(fds.key));
}

#endif
