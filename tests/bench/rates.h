/* What the machine can do at best with the vectors of one instruction set: the rates that the operator is held
 * against. GDN_ISA_PLAIN stands for what every CPU of the compiler's target has: SSE2 on x86-64, where multiplying and
 * adding are two instructions; NEON on AArch64; floats one by one elsewhere. */
#ifndef RATES_H
#define RATES_H

#include <stddef.h>

#include "gdn_varlen.h"
#include "threads.h"

/* float32 multiplications and additions in registers, fused where the instruction set has that, on all threads. Returns
 * how many. */
double rates_fma(threads *t, gdn_isa isa);

/* Multiplies an array by 1 in place, a contiguous share for each thread. Address and size are multiples of
 * RATES_UNIT. */
enum { RATES_UNIT = 256 };
void rates_scale(threads *t, gdn_isa isa, void *data, size_t bytes);

#endif
