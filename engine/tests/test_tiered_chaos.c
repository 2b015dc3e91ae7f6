/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Killed engines as in test_chaos.c, with pages in the tiers. */
#define TEST_TIERS true
#include "test_chaos.c"
