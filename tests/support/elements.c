#include "elements.h"

#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* A binary format of 16 bits: sign, exponent, mantissa. */
typedef struct format {
    int mantissa_bits, max_exponent; /* the bias is max_exponent */
} format;

static format format_of(element type) {
    format bf16 = {7, 127}, f16 = {10, 15};
    return type == ELEMENT_BF16 ? bf16 : f16;
}

static double decode(format f, unsigned bits) {
    unsigned magnitude = bits & 0x7fffu;
    int exponent = (int)(magnitude >> f.mantissa_bits);
    int mantissa = (int)(magnitude & ((1u << f.mantissa_bits) - 1));
    double x;
    if (exponent == 2 * f.max_exponent + 1)
        x = mantissa == 0 ? (double)INFINITY : (double)NAN;
    else if (exponent == 0)
        x = ldexp(mantissa, 1 - f.max_exponent - f.mantissa_bits);
    else
        x = ldexp(mantissa + (1 << f.mantissa_bits), exponent - f.max_exponent - f.mantissa_bits);
    return bits & 0x8000u ? -x : x;
}

static unsigned encode(format f, double x) {
    unsigned sign = signbit(x) ? 0x8000u : 0;
    unsigned infinity = (unsigned)(2 * f.max_exponent + 1) << f.mantissa_bits;
    if (isnan(x)) return sign | infinity | 1u << (f.mantissa_bits - 1);
    if (isinf(x)) return sign | infinity;
    if (x == 0) return sign;
    int exponent;
    frexp(x, &exponent); /* 2^(exponent-1) <= |x| */
    if (exponent - 1 < 1 - f.max_exponent) exponent = 2 - f.max_exponent;
    if (exponent - 1 > f.max_exponent) return sign | infinity;
    /* Rounding may carry into the exponent: as the fields are adjacent, the sum is right even then. */
    double units = nearbyint(ldexp(fabs(x), f.mantissa_bits - (exponent - 1)));
    unsigned below = (unsigned)(exponent - 1 + f.max_exponent - 1) << f.mantissa_bits;
    return sign | (below + (unsigned)units);
}

size_t element_size(element type) {
    switch (type) {
    case ELEMENT_U8:
        return 1;
    case ELEMENT_BF16:
    case ELEMENT_F16:
        return 2;
    case ELEMENT_F32:
    case ELEMENT_I32:
        return 4;
    case ELEMENT_F64:
    case ELEMENT_I64:
        return 8;
    }
    abort();
}

double element_load(element type, const void *at) {
    uint16_t half;
    float f32;
    double f64;
    int32_t i32;
    int64_t i64;
    switch (type) {
    case ELEMENT_BF16:
    case ELEMENT_F16:
        memcpy(&half, at, sizeof half);
        return decode(format_of(type), half);
    case ELEMENT_F32:
        memcpy(&f32, at, sizeof f32);
        return (double)f32;
    case ELEMENT_F64:
        memcpy(&f64, at, sizeof f64);
        return f64;
    case ELEMENT_I32:
        memcpy(&i32, at, sizeof i32);
        return i32;
    case ELEMENT_I64:
        memcpy(&i64, at, sizeof i64);
        return (double)i64;
    case ELEMENT_U8:
        return *(const uint8_t *)at;
    }
    abort();
}

void element_store(element type, void *at, double value) {
    uint16_t half;
    float f32;
    int32_t i32;
    int64_t i64;
    switch (type) {
    case ELEMENT_BF16:
    case ELEMENT_F16:
        half = (uint16_t)encode(format_of(type), value);
        memcpy(at, &half, sizeof half);
        return;
    case ELEMENT_F32:
        f32 = (float)value;
        memcpy(at, &f32, sizeof f32);
        return;
    case ELEMENT_F64:
        memcpy(at, &value, sizeof value);
        return;
    case ELEMENT_I32:
        i32 = (int32_t)value;
        memcpy(at, &i32, sizeof i32);
        return;
    case ELEMENT_I64:
        i64 = (int64_t)value;
        memcpy(at, &i64, sizeof i64);
        return;
    case ELEMENT_U8:
        *(uint8_t *)at = (uint8_t)value;
        return;
    }
    abort();
}

bool element_same(element type, const void *x, const void *y) {
    if (memcmp(x, y, element_size(type)) == 0) return true;
    return isnan(element_load(type, x)) && isnan(element_load(type, y));
}

int element_steps(element type, const void *x, const void *y) {
    bool x_nan = isnan(element_load(type, x)) != 0, y_nan = isnan(element_load(type, y)) != 0;
    if (x_nan || y_nan) return x_nan && y_nan ? 0 : INT_MAX;
    int order[2];
    for (int i = 0; i < 2; i++) {
        uint16_t bits;
        memcpy(&bits, i == 0 ? x : y, sizeof bits);
        order[i] = bits & 0x8000u ? -(int)(bits & 0x7fffu) : (int)bits;
    }
    return abs(order[0] - order[1]);
}
