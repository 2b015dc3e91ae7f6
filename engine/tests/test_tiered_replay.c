/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The replays of test_replay.c, with pages in the tiers. */
#define TEST_TIERS true
#include "test_replay.c"
