/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The engine's part of the write budget: see store/writes.h. */
#include "engine_inside.h"
#include "vm/page_map.h"

uint64_t engine_written_bytes(const struct engine *engine)
{
	return atomic_load(&page_map_header(engine->vm.map)->written_bytes);
}

void engine_limit_writes(struct engine *engine, uint64_t max_bytes)
{
	store_limit_writes(engine->vm.store, max_bytes);
}
