/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What a benchmark's guest has in its memory. */
#ifndef VMMSWAP_BENCHMARK_CONTENTS_H
#define VMMSWAP_BENCHMARK_CONTENTS_H

#include <stddef.h>

/*   random  incompressible, no page like another
 *   libs    pages of the machine's shared libraries, which compress as a guest's do; none is zeros
 *   holes   every second page is zeros, the others are random
 *   mixed   the test guest's mix: 35 % random, 35 % text, 10 % one word repeated, 10 % zeros, 10 % untouched
 *   /PATH   what is in the file, such as the memory of a guest that was running
 *
 * Ends the program if there is no such name. */
void fill_contents(char *guest, size_t pages, const char *contents);

#endif
