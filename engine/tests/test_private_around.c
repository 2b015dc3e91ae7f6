/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What test_around.c asks, of private memory that its VMM moves. */
#define TEST_PRIVATE true
#include "test_around.c"
