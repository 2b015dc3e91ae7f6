/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "harness.h"
#include "store/slots.h"
#include "store/store.h"

#define MODEL_SLOTS (64 * EXTENT_SLOTS)

static uint64_t random_state = 42;

static uint64_t random_below(uint64_t limit)
{
	random_state ^= random_state << 13;
	random_state ^= random_state >> 7;
	random_state ^= random_state << 17;
	return random_state % limit;
}

static void check_run(const uint64_t *slot_idx, size_t n)
{
	for (size_t i = 1; i < n; i++)
		CHECK_EQ(slot_idx[i], slot_idx[0] + i);
}

TEST(runs_are_packed_and_gaps_are_used)
{
	struct slots slots = { 0 };
	uint64_t slot_idx[EXTENT_SLOTS];

	CHECK_OK(slots_take(&slots, 300, slot_idx));
	CHECK_EQ(slot_idx[0], 0);
	check_run(slot_idx, 300);
	/* across two extents: begins in the first one's free end */
	CHECK_OK(slots_take(&slots, EXTENT_SLOTS, slot_idx));
	CHECK_EQ(slot_idx[0], 300);
	check_run(slot_idx, EXTENT_SLOTS);
	CHECK_EQ(slots.extents_n, 2);
	for (uint64_t i = 100; i < 164; i++)
		CHECK(slots_free(&slots, i));
	CHECK(!slots_free(&slots, 100));
	CHECK(!slots_free(&slots, 5000));
	CHECK_OK(slots_take(&slots, 64, slot_idx));
	CHECK_EQ(slot_idx[0], 100);
	CHECK_OK(slots_take(&slots, 64, slot_idx));
	CHECK_EQ(slot_idx[0], 300 + EXTENT_SLOTS);
	CHECK_EQ(slots.taken_n, 300 + EXTENT_SLOTS + 64);
	slots_clear(&slots);
}

TEST(spare_slots_come_in_pieces_all_or_nothing)
{
	struct slots slots = { 0 };
	uint64_t slot_idx[EXTENT_SLOTS];

	CHECK_OK(slots_take(&slots, EXTENT_SLOTS, slot_idx));
	for (uint64_t i = 0; i < EXTENT_SLOTS; i += 2)
		CHECK(slots_free(&slots, i));
	CHECK_EQ(slots_take_spare(&slots, EXTENT_SLOTS / 2 + 1, slot_idx), -ENOSPC);
	CHECK_EQ(slots.taken_n, EXTENT_SLOTS / 2);
	CHECK_OK(slots_take_spare(&slots, EXTENT_SLOTS / 2, slot_idx));
	for (size_t i = 0; i < EXTENT_SLOTS / 2; i++)
		CHECK_EQ(slot_idx[i], 2 * i);
	slots_clear(&slots);
}

TEST(a_claimed_extent_gives_no_slots)
{
	struct slots slots = { 0 };
	uint64_t slot_idx[EXTENT_SLOTS];
	size_t extent_idx;

	CHECK_OK(slots_take(&slots, 1, slot_idx));
	CHECK(!slots_claim_emptied(&slots, &extent_idx));
	CHECK(slots_free(&slots, 0));
	CHECK(slots_claim_emptied(&slots, &extent_idx));
	CHECK_EQ(extent_idx, 0);
	CHECK(!slots_claim_emptied(&slots, &extent_idx));
	CHECK_EQ(slots_take_spare(&slots, 1, slot_idx), -ENOSPC);
	CHECK_OK(slots_take(&slots, 1, slot_idx));
	CHECK_EQ(slot_idx[0], EXTENT_SLOTS);
	slots_unclaim(&slots, 0, true);
	CHECK(!slots_claim_emptied(&slots, &extent_idx)); /* its blocks are gone already */
	CHECK_OK(slots_take(&slots, EXTENT_SLOTS, slot_idx));
	CHECK_EQ(slot_idx[0], 0);
	CHECK_EQ(slots.extents_n, 2);
	slots_clear(&slots);
}

TEST(refuses_to_grow_beyond_32_bits)
{
	const size_t most = STORE_SLOTS_MAX / EXTENT_SLOTS;
	struct slots slots = { .extents_n = most, .extents_room = most };
	size_t n = 1025 * EXTENT_SLOTS; /* longer than a search looks */
	uint64_t *slot_idx = calloc(n, sizeof *slot_idx);

	/* 600 MB of address space, hardly touched */
	slots.extents = calloc(slots.extents_n, sizeof *slots.extents);
	CHECK(slots.extents && slot_idx);
	CHECK_EQ(slots_take(&slots, n, slot_idx), -EFBIG);
	CHECK_EQ(slots.taken_n, 0);
	slots.next_extent_idx = slots.extents_n - 1;
	CHECK_OK(slots_take(&slots, EXTENT_SLOTS, slot_idx));
	CHECK(slot_idx[EXTENT_SLOTS - 1] < STORE_SLOTS_MAX);
	free(slot_idx);
	slots_clear(&slots);
}

/* Against a plain array of what is taken. */
TEST(random_operations_agree_with_a_model)
{
	static bool taken[MODEL_SLOTS];
	struct slots slots = { 0 };
	uint64_t taken_n = 0;

	for (int round = 0; round < 4000; round++) {
		uint64_t slot_idx[EXTENT_SLOTS];
		size_t n = 1 + random_below(random_below(4) ? 32 : EXTENT_SLOTS);

		if (random_below(2) && taken_n + n < MODEL_SLOTS / 4) {
			int rc = random_below(4) ? slots_take(&slots, n, slot_idx) :
						   slots_take_spare(&slots, n, slot_idx);

			CHECK(rc == 0 || rc == -ENOSPC);
			for (size_t i = 0; !rc && i < n; i++) {
				CHECK(slot_idx[i] < MODEL_SLOTS && !taken[slot_idx[i]]);
				taken[slot_idx[i]] = true;
				taken_n++;
			}
		} else {
			uint64_t first = random_below(MODEL_SLOTS - n);

			for (uint64_t i = first; i < first + n; i++) {
				CHECK_EQ(slots_free(&slots, i), taken[i]);
				taken_n -= taken[i];
				taken[i] = false;
			}
		}
		CHECK_EQ(slots.taken_n, taken_n);
		CHECK(slots.spare_n <= slots.extents_n * EXTENT_SLOTS - taken_n);
		if (round % 16 == 0) {
			size_t extent_idx;

			while (slots_claim_emptied(&slots, &extent_idx)) {
				for (size_t i = 0; i < EXTENT_SLOTS; i++)
					CHECK(!taken[extent_idx * EXTENT_SLOTS + i]);
				slots_unclaim(&slots, extent_idx, true);
			}
			CHECK_EQ(slots.emptied_n, 0);
			CHECK_EQ(slots.claimed_n, 0);
		}
	}
	CHECK(taken_n > 0);
	slots_clear(&slots);
}
