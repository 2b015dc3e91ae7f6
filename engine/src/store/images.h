/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Buffers of 2 MiB in which segments are made ready for the disk, or are read from there. While a swap-out or
 * a swap-in runs, those that were used are kept for the next segments: the kernel needs longer to find and
 * clear one than it takes to fill it, and unmapping one interrupts all processors that run our threads. */
#ifndef VMMSWAP_IMAGES_H
#define VMMSWAP_IMAGES_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#define IMAGES_KEPT_MAX 8

struct images {
	pthread_mutex_t lock;
	bool keeps;
	uint32_t kept_n;
	char *kept[IMAGES_KEPT_MAX];
};

void images_init(struct images *images);
void images_destroy(struct images *images);

/* SEGMENT_BYTES, page aligned, with undefined contents; NULL: no memory. Any thread. */
char *images_take(struct images *images);
void images_return(struct images *images, char *image);

/* Whether returned images are kept. On false, those that are there are released. */
void images_keep(struct images *images, bool keeps);

#endif
