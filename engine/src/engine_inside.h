/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The engine from the inside, for the files that make it up. */
#ifndef VMMSWAP_ENGINE_INSIDE_H
#define VMMSWAP_ENGINE_INSIDE_H

#include "engine.h"
#include "serve/fault.h"
#include "vm/vm.h"

struct engine {
	struct vm vm;
	struct faults *faults;
	struct swapper *swapper;
	struct replay *replay;
	struct around *around; /* NULL: not started, or neighbours are not brought back */
	struct tender *tender; /* NULL: not started, or there are no tiers */
	struct lane *lane;     /* of whoever calls us, one at a time */
	bool unsettled;	       /* the page map is a predecessor's, and was not recovered yet */
	bool started, stopped;
};

/* Unregister one more piece of what children inherited when nothing was tracked any more. False: there is
 * none. */
bool release_children(struct engine *engine);

/* The engine's part in wake-ups: engine_wake.c. */
int wake_create(struct engine *engine, const struct engine_config *config, struct error *err);
void wake_read_stats(const struct wake_record *record, struct engine_stats *out);

#endif
