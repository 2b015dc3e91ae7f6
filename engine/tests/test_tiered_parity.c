/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What test_parity.c asks, with pages in the tiers. */
#define TEST_TIERS true
#include "test_parity.c"
