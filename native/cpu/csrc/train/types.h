/* What the table says about training. */
#ifndef PUMICE_TRAIN_TYPES_H
#define PUMICE_TRAIN_TYPES_H

#include "train/api.h"

#endif
