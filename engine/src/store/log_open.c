/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "store/log_open.h"

#include <errno.h>

/* A successor has the tiers of its predecessor and no other: the fds of a disk tier or a key that it made are
 * not in the fd store, so its own successor could not read what is there. */
static bool is_adopted(const struct log_config *config)
{
	return config->segments_fd >= 0;
}

/* Without the disk's fd all that is on disk would be given up for lost, and without the key it would look
 * damaged. */
static int refuse_lost_fds(const struct log *log, const struct log_config *config, struct error *err)
{
	uint32_t tiers = is_adopted(config) ? segments_tiers(&log->segments) : 0;

	if ((tiers & TABLE_HAS_DISK) && config->disk_fd < 0)
		return error_set(err, ENODEV,
				 "the fd of the file on disk that has pages of the VM is not there: they "
				 "cannot be served without it");
	if ((tiers & TABLE_HAS_KEY) && config->key_fd < 0)
		return error_set(err, ENODEV,
				 "the fd of the key of what the VM has on disk is not there: its pages "
				 "cannot be served without it");
	return 0;
}

static int open_key(struct log *log, const struct log_config *config, struct error *err)
{
	if (config->key_fd >= 0)
		return seal_adopt(config->key_fd, &log->seal, err);
	if (is_adopted(config)) /* what is on disk is not encrypted: read it so */
		return 0;
	return config->encrypt && config->disk_max_bytes ? seal_create(&log->seal, err) : 0;
}

static int open_disk(struct log *log, const struct log_config *config, struct error *err)
{
	if (config->disk_fd >= 0)
		return disk_tier_adopt(config->disk_fd, &log->disk, err);
	if (is_adopted(config))
		return 0;
	return config->disk_max_bytes && config->dir ? disk_tier_create(config->dir, &log->disk, err) : 0;
}

int log_open_tiers(struct log *log, const struct log_config *config, struct error *err)
{
	int rc = refuse_lost_fds(log, config, err);

	if (!rc)
		rc = ram_tier_open(&log->ram, config->ram_fd, err);
	if (rc)
		return rc;
	rc = fills_open(&log->fills, log->segments.fills);
	if (rc)
		rc = error_set(err, -rc, "no memory for the store");
	if (!rc)
		rc = open_disk(log, config, err);
	if (!rc)
		rc = open_key(log, config, err);
	if (!rc) {
		segments_note_tiers(&log->segments,
				    (log->disk ? TABLE_HAS_DISK : 0) | (log->seal ? TABLE_HAS_KEY : 0));
		return 0;
	}
	disk_tier_destroy(log->disk);
	fills_close(&log->fills);
	ram_tier_close(&log->ram);
	return rc;
}
