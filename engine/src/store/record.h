/* SPDX-License-Identifier: GPL-2.0-or-later */
/* One page in a segment: a header of 8 bytes, room for an authentication tag, then the page itself,
 * uncompressed or compressed by LZ4. Knows neither tiers nor slots. */
#ifndef VMMSWAP_RECORD_H
#define VMMSWAP_RECORD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define RECORD_TAG_BYTES 16
#define RECORD_HEAD_BYTES (8 + RECORD_TAG_BYTES)
#define RECORD_BYTES_MAX (RECORD_HEAD_BYTES + 4096)

/* A page whose compressed form is longer than this is stored uncompressed: the memory saved would not be
 * worth the time that compression adds to each of its page faults. */
#define RECORD_COMPRESSED_BYTES_MAX 3328

enum record_codec { RECORD_RAW = 0, RECORD_LZ4 = 1 };

struct record_header {
	uint16_t payload_bytes; /* 1 to 4096 */
	uint8_t codec;
	uint64_t owner; /* below 2^40: the page's owner, a number that the caller chose */
};

/* Both write at most RECORD_BYTES_MAX bytes, with zeros for the tag, and return the length. 0: the page does
 * not compress. */
size_t record_pack_compressed(const void *page, uint64_t owner, void *record);
size_t record_pack_raw(const void *page, uint64_t owner, void *record);

/* False: the first 8 bytes are not a valid header, or the record is longer than `room` bytes. */
bool record_header_of(const void *record, size_t room, struct record_header *out);

static inline size_t record_bytes(const struct record_header *header)
{
	return RECORD_HEAD_BYTES + header->payload_bytes;
}

/* Unpack a payload into a page. False if the payload does not make a whole page. */
bool record_unpack(const struct record_header *header, const void *payload, void *page);

#endif
