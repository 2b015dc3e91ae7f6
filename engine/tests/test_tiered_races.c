/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The races of test_races.c, with pages in the tiers. */
#define TEST_TIERS true
#include "test_races.c"
