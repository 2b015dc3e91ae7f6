/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "store/record.h"

#include <lz4.h>
#include <string.h>

#include "base/units.h"

#define OWNER_SHIFT 24
#define CODEC_SHIFT 16

size_t record_pack(const void *page, bool compress, uint64_t owner, void *record)
{
	char *payload = (char *)record + RECORD_HEAD_BYTES;
	int packed_bytes =
		compress ? LZ4_compress_default(page, payload, (int)PAGE_BYTES, RECORD_COMPRESSED_BYTES_MAX) :
			   0;
	uint64_t codec = packed_bytes > 0 ? RECORD_LZ4 : RECORD_RAW;
	uint64_t payload_bytes = packed_bytes > 0 ? (uint64_t)packed_bytes : PAGE_BYTES;
	uint64_t head = owner << OWNER_SHIFT | codec << CODEC_SHIFT | payload_bytes;

	if (codec == RECORD_RAW)
		memcpy(payload, page, PAGE_BYTES);
	memcpy(record, &head, sizeof head);
	memset((char *)record + sizeof head, 0, RECORD_TAG_BYTES);
	return RECORD_HEAD_BYTES + payload_bytes;
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
