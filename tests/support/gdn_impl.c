/* The one translation unit that holds the implementation, for all programs of the project. */
#define GDN_IMPLEMENTATION
#include "gdn_varlen.h"
