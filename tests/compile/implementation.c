/* The implementation in a unit that had the interface before and meets the header again after. */
#include "gdn_varlen.h"
#define GDN_IMPLEMENTATION
#include "gdn_varlen.h"
#include "gdn_varlen.h"
