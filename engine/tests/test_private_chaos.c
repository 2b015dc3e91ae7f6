/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Killed engines as in test_chaos.c, under a VMM with private memory that it moves itself. */
#define TEST_PRIVATE true
#include "test_chaos.c"
