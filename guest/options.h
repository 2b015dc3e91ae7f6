/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef GUEST_OPTIONS_H
#define GUEST_OPTIONS_H

#include "handoff.h"

/* Fill both from the command line, or end the program with a message: exit status 2 for bad usage. */
void options_parse(int argc, char **argv, struct guest *guest, struct handoff *handoff);

#endif
