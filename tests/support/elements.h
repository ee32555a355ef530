/* Single elements of the arrays of a call: every dtype, read and written as double. The conversions are independent
 * of the library's. */
#ifndef ELEMENTS_H
#define ELEMENTS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "gdn_varlen.h"

/* The dtypes of tensors, of indices and of masks in one enumeration. */
typedef enum element {
    ELEMENT_F32 = GDN_F32,
    ELEMENT_BF16 = GDN_BF16,
    ELEMENT_F16 = GDN_F16,
    ELEMENT_F64 = GDN_F64,
    ELEMENT_I32 = (int)GDN_F64 + (int)GDN_I32,
    ELEMENT_I64 = (int)GDN_F64 + (int)GDN_I64,
    ELEMENT_U8
} element;

size_t element_size(element type);
double element_load(element type, const void *at);
void element_store(element type, void *at, double value); /* rounds to nearest, ties to even */

/* Whether two elements have the same bits; any NaN is the same as any other. */
bool element_same(element type, const void *x, const void *y);

/* How many representable numbers apart two elements of a 16-bit type are; INT_MAX if only one is a NaN. */
int element_steps(element type, const void *x, const void *y);

#endif
