/* The one translation unit of the tests that holds the implementation. */
#define GDN_IMPLEMENTATION
#include "gdn_varlen.h"
