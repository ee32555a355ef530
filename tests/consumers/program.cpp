/* The consumers' program is one source, in C and in C++. */
#include "../compile/user.c"
