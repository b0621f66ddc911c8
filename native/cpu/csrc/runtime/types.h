/* What the table says about programs. */
#include "runtime/api.h"
