/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "store/images.h"

#include <stddef.h>

#include "base/big_buffer.h"
#include "base/units.h"
#include "store/slot_name.h"

_Static_assert(CHUNK_BYTES == SEGMENT_BYTES, "a big buffer holds a segment");

void images_init(struct images *images)
{
	*images = (struct images){ 0 };
	pthread_mutex_init(&images->lock, NULL);
}

void images_destroy(struct images *images)
{
	images_keep(images, false);
	pthread_mutex_destroy(&images->lock);
}

char *images_take(struct images *images)
{
	char *image = NULL;

	pthread_mutex_lock(&images->lock);
	if (images->kept_n)
		image = images->kept[--images->kept_n];
	pthread_mutex_unlock(&images->lock);
	return image ? image : big_buffer_new();
}

void images_return(struct images *images, char *image)
{
	pthread_mutex_lock(&images->lock);
	if (images->keeps && images->kept_n < IMAGES_KEPT_MAX) {
		images->kept[images->kept_n++] = image;
		image = NULL;
	}
	pthread_mutex_unlock(&images->lock);
	big_buffer_free(image);
}

void images_keep(struct images *images, bool keeps)
{
	char *kept[IMAGES_KEPT_MAX];
	uint32_t n = 0;

	pthread_mutex_lock(&images->lock);
	images->keeps = keeps;
	while (!keeps && images->kept_n)
		kept[n++] = images->kept[--images->kept_n];
	pthread_mutex_unlock(&images->lock);
	while (n)
		big_buffer_free(kept[--n]);
}
