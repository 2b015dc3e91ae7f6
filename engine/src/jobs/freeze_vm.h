/* SPDX-License-Identifier: GPL-2.0-or-later */
/* All processes that map a VM's memory, frozen. */
#ifndef VMMSWAP_FREEZE_VM_H
#define VMMSWAP_FREEZE_VM_H

#include "jobs/job.h"

/* Every process that maps a memfd of the VM, whether we know it or not. 0, or -errno with the job's error set and all running. */
int freeze_vm(struct swapper *swapper, struct freeze **freeze);

#endif
