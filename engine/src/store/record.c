/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "store/record.h"

#include <lz4.h>
#include <string.h>

#include "base/units.h"

#define OWNER_SHIFT 24
#define CODEC_SHIFT 16

static size_t finish(enum record_codec codec, uint64_t payload_bytes, uint64_t owner, void *record)
{
	uint64_t head = owner << OWNER_SHIFT | (uint64_t)codec << CODEC_SHIFT | payload_bytes;

	memcpy(record, &head, sizeof head);
	memset((char *)record + sizeof head, 0, RECORD_TAG_BYTES);
	return RECORD_HEAD_BYTES + payload_bytes;
}

size_t record_pack_compressed(const void *page, uint64_t owner, void *record)
{
	int packed_bytes = LZ4_compress_default(page, (char *)record + RECORD_HEAD_BYTES, (int)PAGE_BYTES,
						RECORD_COMPRESSED_BYTES_MAX);

	return packed_bytes > 0 ? finish(RECORD_LZ4, (uint64_t)packed_bytes, owner, record) : 0;
}

size_t record_pack_raw(const void *page, uint64_t owner, void *record)
{
	memcpy((char *)record + RECORD_HEAD_BYTES, page, PAGE_BYTES);
	return finish(RECORD_RAW, PAGE_BYTES, owner, record);
}

bool record_header_of(const void *record, size_t room, struct record_header *out)
{
	uint64_t head;

	if (room < RECORD_HEAD_BYTES)
		return false;
	memcpy(&head, record, sizeof head);
	*out = (struct record_header){
		.payload_bytes = (uint16_t)head,
		.codec = (uint8_t)(head >> CODEC_SHIFT),
		.owner = head >> OWNER_SHIFT,
	};
	return out->payload_bytes >= 1 && out->payload_bytes <= PAGE_BYTES && record_bytes(out) <= room &&
	       (out->codec == RECORD_LZ4 || (out->codec == RECORD_RAW && out->payload_bytes == PAGE_BYTES));
}

bool record_unpack(const struct record_header *header, const void *payload, void *page)
{
	if (header->codec == RECORD_RAW) {
		memcpy(page, payload, PAGE_BYTES);
		return true;
	}
	return LZ4_decompress_safe(payload, page, header->payload_bytes, (int)PAGE_BYTES) == (int)PAGE_BYTES;
}
