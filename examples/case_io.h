/*
 * case_io.h - cases on disk: a reader and writer of .npy files, a reader of case folders, and the numbers in them
 * SPDX-License-Identifier: MIT
 *
 * A case is one call in a folder: case.txt with sizes and options, one .npy file for each array. The format is
 * described in tests/golden/README.md. Everything here is static and needs only the C library (-lm) and the interface
 * of gdn_varlen.h.
 *
 *     case_call c;
 *     case_message message;
 *     if (!case_load(&c, "some/folder", &message)) puts(message.text);
 *     case_reset(&c, GDN_COMPUTE_F32);    then call the operator on &c.params and read c.outputs
 *     case_free(&c);
 *
 * Every function that can fail returns false and leaves one line of text in the caller's message. Files are not
 * trusted: nothing is allocated that the size of a file does not bear out, save the cache of intermediate states,
 * which no input file bounds and CASE_MAX_CACHE_BYTES does.
 */
#ifndef CASE_IO_H
#define CASE_IO_H

#include "gdn_varlen.h"

#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifndef CASE_MAX_CACHE_BYTES
#define CASE_MAX_CACHE_BYTES ((uint64_t)1 << 32) /* as float64 */
#endif

enum {
    NPY_MAX_DIMS = 8,
    CASE_MAX_KEYS = 128,
    CASE_MAX_ARRAYS = 24,
    CASE_MAX_TEXT = 65536, /* bytes of case.txt, and of the header of an .npy file */
    CASE_MAX_PATH = 4096
};

/* ==== messages ===================================================================================== */

typedef struct case_message {
    char text[1024];
} case_message;

/* Writes the text and returns false. */
#if defined(__GNUC__) && !defined(_WIN32)
static inline bool case_fail(case_message *message, const char *format, ...) __attribute__((format(printf, 2, 3)));
#endif
static inline bool case_fail(case_message *message, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(message->text, sizeof message->text, format, arguments);
    va_end(arguments);
    /* What a file says may be quoted in the text, and the text is one line whatever the file says. */
    for (char *s = message->text; *s; s++)
        if ((unsigned char)*s < ' ' || *s == 0x7f) *s = '?';
    return false;
}

/* Puts the place of a fault before it. */
static inline bool case_fail_at(case_message *message, const char *place) {
    const case_message fault = *message;
    return case_fail(message, "%.600s: %.400s", place, fault.text);
}

/* ==== numbers ====================================================================================== */

static inline size_t case_dtype_size(gdn_dtype dtype) { return dtype == GDN_F64 ? 8 : dtype == GDN_F32 ? 4 : 2; }

static inline const char *case_dtype_word(gdn_dtype dtype) {
    return dtype == GDN_F64 ? "f64" : dtype == GDN_F32 ? "f32" : dtype == GDN_F16 ? "f16" : "bf16";
}

/* The dtype of that name; NOT_SET where there is none. */
static inline gdn_dtype case_dtype_named(const char *word) {
    for (int dtype = GDN_F32; dtype <= GDN_F64; dtype++)
        if (strcmp(word, case_dtype_word((gdn_dtype)dtype)) == 0) return (gdn_dtype)dtype;
    return GDN_DTYPE_NOT_SET;
}

/* Bits of the fraction, and of the exponent, of an IEEE format. */
static inline int case_fraction_bits(gdn_dtype dtype) {
    return dtype == GDN_F64 ? 52 : dtype == GDN_F32 ? 23 : dtype == GDN_F16 ? 10 : 7;
}
static inline int case_exponent_bits(gdn_dtype dtype) { return dtype == GDN_F64 ? 11 : dtype == GDN_F16 ? 5 : 8; }

/* The bits of `value` rounded to `dtype`, to nearest, ties to even. Integers throughout, so that neither the host's
 * rounding mode nor its treatment of subnormal numbers matters, and a NaN keeps what fits of its payload. */
static inline uint64_t case_encode(double value, gdn_dtype dtype) {
    uint64_t bits;
    memcpy(&bits, &value, sizeof bits);
    if (dtype == GDN_F64) return bits;

    const int fraction_bits = case_fraction_bits(dtype), exponent_bits = case_exponent_bits(dtype);
    const uint64_t sign = bits >> 63 << (fraction_bits + exponent_bits);
    const uint64_t infinity = (((uint64_t)1 << exponent_bits) - 1) << fraction_bits;
    const uint64_t fraction = bits & (((uint64_t)1 << 52) - 1);
    const int biased = (int)(bits >> 52 & 0x7ff);
    if (biased == 0x7ff) {
        const uint64_t payload = fraction >> (52 - fraction_bits);
        return sign | infinity | (fraction == 0 ? 0 : payload != 0 ? payload : (uint64_t)1 << (fraction_bits - 1));
    }

    /* Below the smallest normal exponent the spacing stays, so more bits are dropped. A double that is subnormal
     * itself is far below the smallest number of every narrower format. */
    const int exponent = biased - 1023, smallest = 2 - (1 << (exponent_bits - 1));
    const int dropped = 52 - fraction_bits + (exponent < smallest ? smallest - exponent : 0);
    if (biased == 0 || dropped > 53) return sign;
    const uint64_t significand = fraction | (uint64_t)1 << 52;
    const uint64_t half = (uint64_t)1 << (dropped - 1), rest = significand & (2 * half - 1);
    uint64_t kept = significand >> dropped;
    if (rest > half || (rest == half && (kept & 1) != 0)) kept++;
    /* `kept` includes the leading one, which counts as one in the exponent field; a carry does the same. */
    if (exponent > smallest) kept += (uint64_t)(exponent - smallest) << fraction_bits;
    return sign | (kept < infinity ? kept : infinity);
}

/* The value of bits of `dtype`, exact. */
static inline double case_decode(uint64_t bits, gdn_dtype dtype) {
    if (dtype != GDN_F64) {
        const int fraction_bits = case_fraction_bits(dtype), exponent_bits = case_exponent_bits(dtype);
        const int largest = (1 << exponent_bits) - 1, bias = largest / 2;
        const uint64_t sign = bits >> (fraction_bits + exponent_bits) & 1;
        const uint64_t fraction = bits & (((uint64_t)1 << fraction_bits) - 1);
        const int biased = (int)(bits >> fraction_bits) & largest;
        if (biased == 0) {
            const double value = ldexp((double)fraction, 1 - bias - fraction_bits);
            return sign != 0 ? -value : value;
        }
        const uint64_t widened = biased == largest ? 0x7ff : (uint64_t)(biased - bias + 1023);
        bits = sign << 63 | widened << 52 | fraction << (52 - fraction_bits);
    }
    double value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* Element i of an array, as a double, and back. */
static inline double case_get(const void *data, gdn_dtype dtype, ptrdiff_t i) {
    const size_t size = case_dtype_size(dtype);
    const char *at = (const char *)data + (size_t)i * size;
    uint64_t bits = 0;
    uint32_t bits32;
    uint16_t bits16;
    if (size == 8) {
        memcpy(&bits, at, sizeof bits);
    } else if (size == 4) {
        memcpy(&bits32, at, sizeof bits32);
        bits = bits32;
    } else {
        memcpy(&bits16, at, sizeof bits16);
        bits = bits16;
    }
    return case_decode(bits, dtype);
}

static inline void case_set(void *data, gdn_dtype dtype, ptrdiff_t i, double value) {
    const size_t size = case_dtype_size(dtype);
    char *at = (char *)data + (size_t)i * size;
    const uint64_t bits = case_encode(value, dtype);
    const uint32_t bits32 = (uint32_t)bits;
    const uint16_t bits16 = (uint16_t)bits;
    if (size == 8)
        memcpy(at, &bits, sizeof bits);
    else if (size == 4)
        memcpy(at, &bits32, sizeof bits32);
    else
        memcpy(at, &bits16, sizeof bits16);
}

/* |actual - expected|; 0 for two NaNs and for equal infinities, infinite between a NaN and a number. */
static inline double case_difference(double expected, double actual) {
    if (expected == actual || (isnan(expected) && isnan(actual))) return 0;
    return isnan(expected) || isnan(actual) ? (double)INFINITY : fabs(actual - expected);
}

/* How many numbers of `dtype` lie between the two, once both are rounded to it. */
static inline double case_ulps(double expected, double actual, gdn_dtype dtype) {
    if (isnan(expected) || isnan(actual)) return isnan(expected) && isnan(actual) ? 0 : (double)INFINITY;
    const uint64_t sign = (uint64_t)1 << (case_fraction_bits(dtype) + case_exponent_bits(dtype));
    const uint64_t e = case_encode(expected, dtype), a = case_encode(actual, dtype);
    const uint64_t e_size = e & (sign - 1), a_size = a & (sign - 1);
    if (((e ^ a) & sign) != 0) return (double)(e_size + a_size);
    return (double)(e_size > a_size ? e_size - a_size : a_size - e_size);
}

/* ==== .npy files =================================================================================== */

typedef enum npy_type { NPY_F16, NPY_F32, NPY_F64, NPY_U16, NPY_I32, NPY_I64, NPY_U8, NPY_NUM_TYPES } npy_type;

static inline const char *npy_type_name(npy_type type) {
    static const char *const names[] = {"f2", "f4", "f8", "u2", "i4", "i8", "u1"};
    return names[type];
}

static inline size_t npy_type_size(npy_type type) { return (size_t)(npy_type_name(type)[1] - '0'); }

/* An array in C order; its data are the host's own bytes. */
typedef struct npy_array {
    npy_type type;
    int num_dims;
    ptrdiff_t shape[NPY_MAX_DIMS];
    ptrdiff_t count;
    void *data;
} npy_array;

static inline void npy_free(npy_array *x) {
    free(x->data);
    memset(x, 0, sizeof *x);
}

/* What the elements are: files of 16-bit integers hold whichever of bf16 and f16 is declared. NOT_SET where they are
 * no floating-point numbers, or not without a declaration. */
static inline gdn_dtype npy_dtype(const npy_array *x, gdn_dtype declared) {
    switch (x->type) {
    case NPY_F16: return GDN_F16;
    case NPY_F32: return GDN_F32;
    case NPY_F64: return GDN_F64;
    case NPY_U16: return declared == GDN_BF16 || declared == GDN_F16 ? declared : GDN_DTYPE_NOT_SET;
    default: return GDN_DTYPE_NOT_SET;
    }
}

/* "(2, 3)", "(2,)", "()". */
typedef struct npy_shape_text {
    char text[NPY_MAX_DIMS * 24];
} npy_shape_text;

static inline npy_shape_text npy_format_shape(int num_dims, const ptrdiff_t *shape) {
    npy_shape_text s;
    size_t n = 0;
    s.text[n++] = '(';
    for (int i = 0; i < num_dims; i++)
        n += (size_t)snprintf(s.text + n, sizeof s.text - n, "%s%lld", i == 0 ? "" : ", ", (long long)shape[i]);
    snprintf(s.text + n, sizeof s.text - n, num_dims == 1 ? ",)" : ")");
    return s;
}

/* An .npy file is little-endian here; on another host its items are reversed on the way in and out. */
static inline bool npy_host_is_little_endian(void) {
    const uint16_t one = 1;
    unsigned char first;
    memcpy(&first, &one, 1);
    return first == 1;
}

static inline void npy_to_host(void *data, size_t item_size, size_t count) {
    if (npy_host_is_little_endian()) return;
    unsigned char *item = (unsigned char *)data;
    for (size_t i = 0; i < count; i++, item += item_size) {
        for (size_t j = 0; j < item_size / 2; j++) {
            const unsigned char byte = item[j];
            item[j] = item[item_size - 1 - j];
            item[item_size - 1 - j] = byte;
        }
    }
}

/* The header is the text of a Python dict. */
typedef struct npy_cursor {
    const char *at, *end;
} npy_cursor;

static inline void npy_skip_blanks(npy_cursor *c) {
    while (c->at < c->end && *c->at != '\0' && strchr(" \t\r\n", *c->at)) c->at++;
}

static inline bool npy_accept(npy_cursor *c, const char *token) {
    npy_skip_blanks(c);
    const size_t length = strlen(token);
    if ((size_t)(c->end - c->at) < length || memcmp(c->at, token, length) != 0) return false;
    c->at += length;
    return true;
}

static inline bool npy_string(npy_cursor *c, char *text, size_t size) {
    const char *quote = npy_accept(c, "'") ? "'" : npy_accept(c, "\"") ? "\"" : NULL;
    if (!quote) return false;
    size_t n = 0;
    while (c->at < c->end && *c->at != *quote && n + 1 < size) text[n++] = *c->at++;
    text[n] = '\0';
    if (c->at == c->end || *c->at != *quote) return false;
    c->at++;
    return true;
}

static inline bool npy_descr(npy_cursor *c, npy_array *x, case_message *message) {
    char descr[16];
    if (!npy_string(c, descr, sizeof descr)) return case_fail(message, "the dtype is not a plain one");
    const bool order_known = descr[0] == '<' || (descr[0] == '=' && npy_host_is_little_endian());
    if (strcmp(descr, "|b1") == 0 || strcmp(descr, "|u1") == 0) { /* bytes have no order */
        x->type = NPY_U8;
        return true;
    }
    for (int type = 0; order_known && type < NPY_U8; type++) {
        if (strcmp(descr + 1, npy_type_name((npy_type)type)) == 0) {
            x->type = (npy_type)type;
            return true;
        }
    }
    return case_fail(message, "dtype '%s' is none of <f2 <f4 <f8 <u2 <i4 <i8 |u1 |b1", descr);
}

static inline bool npy_shape(npy_cursor *c, npy_array *x, case_message *message) {
    if (!npy_accept(c, "(")) return case_fail(message, "the shape is not a tuple");
    bool comma = true;
    for (x->num_dims = 0; !npy_accept(c, ")"); x->num_dims++) {
        npy_skip_blanks(c);
        if (!comma || c->at == c->end || *c->at < '0' || *c->at > '9')
            return case_fail(message, "the shape is not a tuple of sizes");
        if (x->num_dims == NPY_MAX_DIMS)
            return case_fail(message, "the shape has more than %d axes", (int)NPY_MAX_DIMS);
        ptrdiff_t size = 0;
        for (; c->at < c->end && *c->at >= '0' && *c->at <= '9'; c->at++) {
            const ptrdiff_t digit = *c->at - '0';
            if (size > (PTRDIFF_MAX - digit) / 10) return case_fail(message, "a size of the shape overflows");
            size = 10 * size + digit;
        }
        x->shape[x->num_dims] = size;
        comma = npy_accept(c, ",");
    }
    if (x->num_dims == 1 && !comma) return case_fail(message, "the shape is not a tuple");
    return true;
}

static inline bool npy_header(const char *text, size_t length, npy_array *x, case_message *message) {
    static const char *const keys[] = {"descr", "fortran_order", "shape"};
    bool seen[3] = {false, false, false};
    npy_cursor c = {text, text + length};
    if (!npy_accept(&c, "{")) return case_fail(message, "the header is not a dict");
    bool comma = true;
    while (!npy_accept(&c, "}")) {
        char key[16];
        if (!comma || !npy_string(&c, key, sizeof key) || !npy_accept(&c, ":"))
            return case_fail(message, "the header is malformed");
        int i = 0;
        while (i < 3 && strcmp(key, keys[i]) != 0) i++;
        if (i == 3 || seen[i]) return case_fail(message, "key '%s' of the header is unknown or repeated", key);
        seen[i] = true;
        if (i == 0 && !npy_descr(&c, x, message)) return false;
        if (i == 1 && npy_accept(&c, "True")) return case_fail(message, "Fortran order is not supported");
        if (i == 1 && !npy_accept(&c, "False")) return case_fail(message, "fortran_order is not True or False");
        if (i == 2 && !npy_shape(&c, x, message)) return false;
        comma = npy_accept(&c, ",");
    }
    npy_skip_blanks(&c);
    if (c.at != c.end) return case_fail(message, "the header is malformed");
    for (int i = 0; i < 3; i++)
        if (!seen[i]) return case_fail(message, "the header lacks '%s'", keys[i]);
    return true;
}

/* Bytes in the file, with the position back at its start; -1 where it cannot tell. */
static inline long npy_file_size(FILE *file) {
    if (fseek(file, 0, SEEK_END) != 0) return -1;
    const long size = ftell(file);
    return fseek(file, 0, SEEK_SET) == 0 ? size : -1;
}

static inline bool npy_read_stream(FILE *file, npy_array *x, case_message *message) {
    unsigned char start[12];
    char *text = NULL;
    const long file_size = npy_file_size(file);
    if (file_size < 0) return case_fail(message, "cannot be measured");
    if (fread(start, 1, 8, file) != 8 || memcmp(start, "\x93NUMPY", 6) != 0)
        return case_fail(message, "not an .npy file");
    if (start[6] < 1 || start[6] > 3 || start[7] != 0)
        return case_fail(message, "version %d.%d of the format is not supported", start[6], start[7]);
    const size_t length_bytes = start[6] == 1 ? 2 : 4;
    if (fread(start + 8, 1, length_bytes, file) != length_bytes) return case_fail(message, "the header is truncated");
    uint32_t length = 0;
    for (size_t i = 0; i < length_bytes; i++) length |= (uint32_t)start[8 + i] << 8 * i;
    const uint64_t data_start = 8 + length_bytes + (uint64_t)length;
    if (data_start > (uint64_t)file_size) return case_fail(message, "the header is truncated");
    if (length > CASE_MAX_TEXT) return case_fail(message, "the header is too long");

    text = (char *)malloc((size_t)length + 1);
    if (!text) return case_fail(message, "out of memory");
    bool ok = fread(text, 1, length, file) == length;
    if (!ok) case_fail(message, "cannot be read");
    ok = ok && npy_header(text, length, x, message);
    free(text);
    if (!ok) return false;

    const size_t item_size = npy_type_size(x->type);
    x->count = 1;
    for (int i = 0; i < x->num_dims; i++) {
        if (x->shape[i] > 0 && x->count > PTRDIFF_MAX / (ptrdiff_t)item_size / x->shape[i])
            return case_fail(message, "the shape overflows");
        x->count *= x->shape[i];
    }
    const uint64_t present = (uint64_t)file_size - data_start, wanted = (uint64_t)x->count * item_size;
    if (present != wanted)
        return case_fail(message, "%s: %llu bytes of data where shape %s of %s has %llu",
                         present < wanted ? "truncated" : "trailing bytes", (unsigned long long)present,
                         npy_format_shape(x->num_dims, x->shape).text, npy_type_name(x->type),
                         (unsigned long long)wanted);
    x->data = malloc(wanted > 0 ? (size_t)wanted : 1);
    if (!x->data) return case_fail(message, "out of memory");
    if (fread(x->data, 1, (size_t)wanted, file) != wanted) return case_fail(message, "cannot be read");
    npy_to_host(x->data, item_size, (size_t)x->count);
    return true;
}

/* Reads a whole file; on failure *x is empty. */
static inline bool npy_read(const char *path, npy_array *x, case_message *message) {
    memset(x, 0, sizeof *x);
    FILE *file = fopen(path, "rb");
    if (!file) return case_fail(message, "%.600s: %s", path, strerror(errno));
    const bool ok = npy_read_stream(file, x, message);
    fclose(file);
    if (ok) return true;
    npy_free(x);
    return case_fail_at(message, path);
}

static inline bool npy_write(const char *path, const npy_array *x, case_message *message) {
    char dict[NPY_MAX_DIMS * 24 + 64], header[512];
    const int dict_length = snprintf(dict, sizeof dict, "{'descr': '<%s', 'fortran_order': False, 'shape': %s, }",
                                     npy_type_name(x->type), npy_format_shape(x->num_dims, x->shape).text);
    /* Ten bytes before the dict, a newline after it, and the data begin at a multiple of 64. */
    const int header_length = (10 + dict_length + 1 + 63) / 64 * 64;
    memset(header, ' ', sizeof header);
    memcpy(header, "\x93NUMPY\x01\x00", 8);
    header[8] = (char)((header_length - 10) & 0xff);
    header[9] = (char)((header_length - 10) >> 8);
    memcpy(header + 10, dict, (size_t)dict_length);
    header[header_length - 1] = '\n';

    const size_t item_size = npy_type_size(x->type), size = (size_t)x->count * item_size;
    void *swapped = NULL;
    if (!npy_host_is_little_endian()) {
        swapped = malloc(size > 0 ? size : 1);
        if (!swapped) return case_fail(message, "%.600s: out of memory", path);
        memcpy(swapped, x->data, size);
        npy_to_host(swapped, item_size, (size_t)x->count);
    }
    FILE *file = fopen(path, "wb");
    if (!file) {
        free(swapped);
        return case_fail(message, "%.600s: %s", path, strerror(errno));
    }
    bool ok = fwrite(header, 1, (size_t)header_length, file) == (size_t)header_length;
    ok = ok && fwrite(swapped ? swapped : x->data, 1, size, file) == size;
    ok = fclose(file) == 0 && ok;
    free(swapped);
    return ok || case_fail(message, "%.600s: cannot be written", path);
}

/* ==== cases ======================================================================================== */

/* o, the pool after the call, the cache after the call. */
enum { CASE_O, CASE_FINAL_STATE, CASE_INTERMEDIATE_STATES, CASE_NUM_OUTPUTS };

typedef struct case_output {
    gdn_dtype declared; /* what the file holds */
    gdn_dtype dtype;    /* what data holds now, see case_reset() */
    int num_dims;
    ptrdiff_t shape[5];
    ptrdiff_t count;
    void *data; /* room for `count` doubles; NULL where the case has no such output */
} case_output;

typedef struct case_call {
    gdn_params params; /* points into what follows */
    case_output outputs[CASE_NUM_OUTPUTS];
    npy_array arrays[CASE_MAX_ARRAYS]; /* the inputs, as read */
    int num_arrays;
    const char *names[CASE_MAX_ARRAYS]; /* of every input that a case may have */
    int num_names;
    const void *initial_state; /* data of one of them, or NULL */
    char source[64];           /* who computed the expected arrays; "" where the case does not say */
    double source_error_o;     /* how far that was from float64; NaN where the case does not say */
} case_call;

static inline void case_free(case_call *c) {
    for (int i = 0; i < c->num_arrays; i++) npy_free(&c->arrays[i]);
    for (int i = 0; i < CASE_NUM_OUTPUTS; i++) free(c->outputs[i].data);
    memset(c, 0, sizeof *c);
}

/* Everything that case_load() needs at hand. The first fault ends the work: after it ok is false, the message
 * says what it was, and every further step returns at once. */
typedef struct case_reader {
    case_call *c;
    const char *folder;
    case_message *message;
    bool ok;
    char *text;
    int num_keys;
    const char *key[CASE_MAX_KEYS], *value[CASE_MAX_KEYS];
    bool used[CASE_MAX_KEYS];
    ptrdiff_t num_seqs, num_states;
} case_reader;

static inline bool case_path(char *path, const char *folder, const char *name, const char *suffix,
                             case_message *message) {
    const int length = snprintf(path, CASE_MAX_PATH, "%s/%s%s", folder, name, suffix);
    return (length > 0 && length < CASE_MAX_PATH) || case_fail(message, "the path of the case is too long");
}

static inline void case_split_lines(case_reader *r) {
    int line_number = 1;
    for (char *line = r->text, *next; line && r->ok; line = next, line_number++) {
        next = strchr(line, '\n');
        if (next) *next++ = '\0';
        for (char *end = line + strlen(line); end > line && strchr(" \t\r", end[-1]);) *--end = '\0';
        line += strspn(line, " \t");
        if (*line == '\0') continue;
        char *value = line + strcspn(line, " \t");
        if (*value == '\0')
            r->ok = case_fail(r->message, "line %d: '%.60s' has no value", line_number, line);
        else
            *value++ = '\0';
        for (int i = 0; i < r->num_keys && r->ok; i++)
            if (strcmp(line, r->key[i]) == 0)
                r->ok = case_fail(r->message, "line %d: '%.60s' again", line_number, line);
        if (r->ok && r->num_keys == CASE_MAX_KEYS) r->ok = case_fail(r->message, "too many keys");
        if (!r->ok) return;
        r->key[r->num_keys] = line;
        r->value[r->num_keys++] = value + strspn(value, " \t");
    }
}

static inline void case_read_text(case_reader *r, const char *path) {
    FILE *file = fopen(path, "rb");
    if (!file) {
        r->ok = case_fail(r->message, "%s", strerror(errno));
        return;
    }
    const long size = npy_file_size(file);
    if (size < 0 || size > CASE_MAX_TEXT) {
        r->ok = case_fail(r->message, "not a text of at most %d bytes", (int)CASE_MAX_TEXT);
    } else {
        r->text = (char *)malloc((size_t)size + 1);
        r->ok = r->text || case_fail(r->message, "out of memory");
        if (r->ok && fread(r->text, 1, (size_t)size, file) != (size_t)size)
            r->ok = case_fail(r->message, "cannot be read");
        if (r->ok) r->text[size] = '\0';
        if (r->ok && (strncmp(r->text, "\xef\xbb\xbf", 3) == 0 || strncmp(r->text, "\xff\xfe", 2) == 0 ||
                      strncmp(r->text, "\xfe\xff", 2) == 0))
            r->ok = case_fail(r->message, "begins with a byte-order mark; save it as UTF-8 without one");
        if (r->ok && memchr(r->text, '\0', (size_t)size)) r->ok = case_fail(r->message, "not a text");
    }
    fclose(file);
    if (r->ok) case_split_lines(r);
}

/* The value of a key, or NULL where it is absent. */
static inline const char *case_value(case_reader *r, const char *key) {
    for (int i = 0; i < r->num_keys && r->ok; i++) {
        if (strcmp(key, r->key[i]) == 0) {
            r->used[i] = true;
            return r->value[i];
        }
    }
    return NULL;
}

static inline void case_bad_value(case_reader *r, const char *key, const char *value, const char *wanted) {
    r->ok = case_fail(r->message, "%.60s is '%.60s' and not %s", key, value, wanted);
}

static inline bool case_integer(case_reader *r, const char *key, int64_t *x) {
    const char *value = case_value(r, key);
    if (!value) return false;
    char *end;
    errno = 0;
    *x = strtoll(value, &end, 10);
    if (*end != '\0' || errno != 0) case_bad_value(r, key, value, "an integer");
    return r->ok;
}

/* A size, small enough for one more. Returns whether the case states it. */
static inline bool case_size(case_reader *r, const char *key, ptrdiff_t *x) {
    int64_t size;
    if (!case_integer(r, key, &size)) return false;
    if (size < 0 || size >= PTRDIFF_MAX) case_bad_value(r, key, case_value(r, key), "a size");
    *x = (ptrdiff_t)size;
    return r->ok;
}

static inline void case_required_size(case_reader *r, const char *key, ptrdiff_t *x) {
    if (!case_size(r, key, x) && r->ok) r->ok = case_fail(r->message, "'%s' is missing", key);
}

/* A number; `standing_for_none`, where it is given, is the word for an absent one. Returns whether there is one. */
static inline bool case_number(case_reader *r, const char *key, const char *standing_for_none, double *x) {
    const char *value = case_value(r, key);
    if (!value || (standing_for_none && strcmp(value, standing_for_none) == 0)) return false;
    char *end;
    *x = strtod(value, &end);
    if (*end != '\0') case_bad_value(r, key, value, "a number");
    return r->ok;
}

/* One of the words of a list that blanks separate, as its place there; 0 where the key is absent. */
static inline int case_word(case_reader *r, const char *key, const char *words) {
    const char *value = case_value(r, key);
    if (!value) return 0;
    const size_t length = strlen(value);
    int place = 0;
    for (const char *word = words; *word; place++) {
        const size_t n = strcspn(word, " ");
        if (n == length && memcmp(word, value, n) == 0) return place;
        word += n + strspn(word + n, " ");
    }
    case_message wanted;
    case_fail(&wanted, "one of: %s", words);
    case_bad_value(r, key, value, wanted.text);
    return 0;
}

static inline bool case_flag(case_reader *r, const char *key) { return case_word(r, key, "0 1") == 1; }

static inline void case_read_options(case_reader *r) {
    gdn_params *p = &r->c->params;
    case_required_size(r, "B", &p->batch_size);
    case_required_size(r, "T", &p->seq_len);
    case_required_size(r, "H", &p->num_key_heads);
    case_required_size(r, "HV", &p->num_value_heads);
    case_required_size(r, "K", &p->head_k_dim);
    case_required_size(r, "V", &p->head_v_dim);
    r->num_seqs = p->batch_size;
    if (case_size(r, "N", &r->num_seqs)) p->num_seqs = r->num_seqs;
    case_size(r, "num_states", &r->num_states);
    case_size(r, "intermediate_rows", &p->intermediate_states_buffer.num_rows);
    case_size(r, "intermediate_steps", &p->intermediate_states_buffer.num_steps);
    if (case_size(r, "step_interval", &p->step_interval) && p->step_interval == 0)
        case_bad_value(r, "step_interval", "0", "positive");

    /* No layout is the default: without the key it stays "not set", which is an error once there is a state. */
    if (case_value(r, "state_layout"))
        p->state_layout = case_word(r, "state_layout", "kv vk") == 0 ? GDN_STATE_KV : GDN_STATE_VK;
    /* The words are in the order of the enumerations, whose defaults come first. */
    p->head_map = (gdn_head_map)case_word(r, "head_map", "grouped tiled");
    p->gate_input = (gdn_gate_input)case_word(r, "gate_input", "raw log decay");
    p->beta_input = (gdn_beta_input)case_word(r, "beta_input", "raw given");
    p->l2norm_form =
        (gdn_l2norm_form)case_word(r, "l2norm_form", "sum_plus_eps mean_plus_eps max_norm_eps norm_plus_eps");
    p->padding = (gdn_padding)case_word(r, "padding", "compute zero leave");
    p->use_qk_l2norm_in_kernel = case_flag(r, "use_qk_l2norm");
    p->is_kda = case_flag(r, "is_kda");
    p->allow_neg_eigval = case_flag(r, "allow_neg_eigval");
    p->disable_state_update = case_flag(r, "disable_state_update");
    p->read_before_decay = case_flag(r, "read_before_decay");
    if (case_flag(r, "round_qk")) p->rounding |= GDN_ROUND_QK;
    if (case_flag(r, "round_q_scaled")) p->rounding |= GDN_ROUND_SCALED_Q;
    if (case_flag(r, "round_beta")) p->rounding |= GDN_ROUND_BETA;
    if (case_flag(r, "round_state")) p->rounding |= GDN_ROUND_STATE;

    /* In gdn_params a zero asks for the default; here a zero that is written down is meant. */
    if (case_number(r, "scale", "default", &p->scale) && p->scale == 0) case_bad_value(r, "scale", "0", "positive");
    if (case_number(r, "softplus_beta", NULL, &p->softplus_beta) && p->softplus_beta == 0)
        case_bad_value(r, "softplus_beta", "0", "positive");
    if (case_number(r, "softplus_threshold", NULL, &p->softplus_threshold) && p->softplus_threshold == 0)
        p->softplus_threshold = 1e-300;
    if (case_number(r, "l2norm_eps", NULL, &p->l2norm_eps) && p->l2norm_eps == 0) p->l2norm_eps = 1e-300;
    p->has_lower_bound = case_number(r, "lower_bound", "none", &p->lower_bound);
    const char *null_slot = case_value(r, "null_slot");
    if (null_slot && strcmp(null_slot, "none") != 0) p->has_null_slot = case_integer(r, "null_slot", &p->null_slot);

    const char *source = case_value(r, "source");
    if (source) snprintf(r->c->source, sizeof r->c->source, "%.60s", source);
    r->c->source_error_o = (double)NAN;
    case_number(r, "triton_rel_err_o", NULL, &r->c->source_error_o);
    case_number(r, "source_rel_err_o", NULL, &r->c->source_error_o);
}

/* Of the keys that nothing asked for, only those that inform are allowed. */
static inline void case_refuse_unknown_keys(case_reader *r) {
    for (int i = 0; i < r->num_keys && r->ok; i++) {
        double information;
        if (r->used[i]) continue;
        if (strncmp(r->key[i], "dtype_", 6) == 0)
            case_word(r, r->key[i], "f32 bf16 f16 f64 i32 i64 u8");
        else if (strstr(r->key[i], "_rel_err_"))
            case_number(r, r->key[i], NULL, &information);
        else
            r->ok = case_fail(r->message, "key '%.60s' is unknown", r->key[i]);
    }
}

/* What case.txt says of the dtype of an array, or NULL. */
static inline const char *case_declared(case_reader *r, const char *name) {
    char key[64];
    snprintf(key, sizeof key, "dtype_%s", name);
    return case_value(r, key);
}

/* Whether the shape is the one that `axes` spells up to its end or a blank, such as "B,T,HV,K"; "any" is any size. */
static inline bool case_has_shape(const case_reader *r, const npy_array *x, const char *axes) {
    const gdn_params *p = &r->c->params;
    const struct {
        const char *name;
        ptrdiff_t size;
    } sizes[] = {
        {"B", p->batch_size},       {"T", p->seq_len},        {"H", p->num_key_heads},
        {"HV", p->num_value_heads}, {"K", p->head_k_dim},     {"V", p->head_v_dim},
        {"N", r->num_seqs},         {"N+1", r->num_seqs + 1}, {"slots", r->num_states},
    };
    int axis = 0;
    for (const char *name = axes; *name && *name != ' '; axis++) {
        const size_t length = strcspn(name, ", ");
        if (axis == x->num_dims) return false;
        for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++)
            if (strlen(sizes[i].name) == length && memcmp(sizes[i].name, name, length) == 0 &&
                sizes[i].size != x->shape[axis])
                return false;
        name += length;
        if (*name == ',') name++;
    }
    return axis == x->num_dims;
}

/* Reads an input. NULL where it is absent, which is a fault where the array is required or its dtype is declared. */
static inline const npy_array *case_array(case_reader *r, const char *name, const char *axes, bool required) {
    char path[CASE_MAX_PATH];
    r->c->names[r->c->num_names++] = name;
    r->ok = r->ok && case_path(path, r->folder, name, ".npy", r->message);
    if (!r->ok) return NULL;
    FILE *file = fopen(path, "rb");
    if (file)
        fclose(file);
    else if (errno == ENOENT && !required && !case_declared(r, name))
        return NULL;

    npy_array *x = &r->c->arrays[r->c->num_arrays];
    r->ok = npy_read(path, x, r->message);
    if (!r->ok) return NULL;
    r->c->num_arrays++;
    const char *other = strstr(axes, " or ");
    if (!case_has_shape(r, x, axes) && !(other && case_has_shape(r, x, other + 4)))
        r->ok = case_fail(r->message, "%.600s: shape %s is not the [%s] of case.txt", path,
                          npy_format_shape(x->num_dims, x->shape).text, axes);
    return r->ok ? x : NULL;
}

/* Refuses elements that are not what case.txt declares, or that do not suit the array (`word` is NULL). */
static inline void case_check_dtype(case_reader *r, const char *name, const npy_array *x, const char *word) {
    const char *declared = case_declared(r, name);
    if (!word || (declared && strcmp(declared, word) != 0))
        r->ok = case_fail(r->message, "%.600s/%s.npy: holds %s, which does not go with dtype_%s %.60s", r->folder, name,
                          npy_type_name(x->type), name, declared ? declared : "absent");
}

static inline gdn_tensor case_tensor(case_reader *r, const char *name, const char *axes, bool required) {
    const npy_array *x = case_array(r, name, axes, required);
    if (!x) return gdn_tensor_of(NULL, GDN_DTYPE_NOT_SET);
    const char *declared = case_declared(r, name);
    const gdn_dtype dtype = npy_dtype(x, declared ? case_dtype_named(declared) : GDN_DTYPE_NOT_SET);
    case_check_dtype(r, name, x, dtype == GDN_DTYPE_NOT_SET ? NULL : case_dtype_word(dtype));
    return gdn_tensor_of(x->data, dtype);
}

static inline gdn_indices case_indices(case_reader *r, const char *name, const char *axes) {
    const npy_array *x = case_array(r, name, axes, false);
    if (!x) return gdn_indices_of(NULL, GDN_INDEX_NOT_SET, 0);
    const bool is_i32 = x->type == NPY_I32, is_i64 = x->type == NPY_I64;
    case_check_dtype(r, name, x, is_i32 ? "i32" : is_i64 ? "i64" : NULL);
    return gdn_indices_of(x->data, is_i32 ? GDN_I32 : GDN_I64, x->num_dims == 2 ? x->shape[1] : 1);
}

static inline gdn_mask case_mask(case_reader *r, const char *name) {
    gdn_mask mask = {NULL, 0, 0};
    const npy_array *x = case_array(r, name, "B,T", false);
    if (!x) return mask;
    case_check_dtype(r, name, x, x->type == NPY_U8 ? "u8" : NULL);
    mask.data = (const uint8_t *)x->data;
    return mask;
}

static inline void case_read_arrays(case_reader *r) {
    gdn_params *p = &r->c->params;
    p->A_log = case_tensor(r, "A_log", "HV", false);
    p->a = case_tensor(r, "a", p->is_kda ? "B,T,HV,K" : "B,T,HV", false);
    p->dt_bias = case_tensor(r, "dt_bias", p->is_kda ? "HV,K" : "HV", false);
    p->q = case_tensor(r, "q", "B,T,H,K", true);
    p->k = case_tensor(r, "k", "B,T,H,K", true);
    p->v = case_tensor(r, "v", "B,T,HV,V", true);
    p->b = case_tensor(r, "b", "B,T,HV or B,T,HV,V", false);
    p->beta_per_column = p->b.data && r->c->arrays[r->c->num_arrays - 1].num_dims == 4;
    p->k_read = case_tensor(r, "k_read", "B,T,H,K", false);
    p->erase = case_tensor(r, "erase", "B,T,HV,K", false);
    p->gv = case_tensor(r, "gv", "B,T,HV,V", false);
    p->token_mask = case_mask(r, "token_mask");

    p->cu_seqlens = case_indices(r, "cu_seqlens", "N+1");
    p->initial_state_indices = case_indices(r, "initial_state_indices", "N");
    p->output_state_indices = case_indices(r, "output_state_indices", "N");
    p->intermediate_state_indices = case_indices(r, "intermediate_state_indices", "N");
    p->retrieve_parent_token = case_indices(r, "retrieve_parent_token", "N,any");
    p->ssm_state_indices = case_indices(r, "ssm_state_indices", "N,any");
    p->num_accepted_tokens = case_indices(r, "num_accepted_tokens", "N");

    const bool vk = p->state_layout == GDN_STATE_VK;
    const gdn_tensor pool = case_tensor(r, "initial_state", vk ? "slots,HV,V,K" : "slots,HV,K,V", r->num_states > 0);
    r->c->initial_state = pool.data;
    p->initial_state_source.dtype = pool.dtype;
    p->initial_state_source.num_states = r->num_states;
}

/* Room for an output: `count` doubles, whatever its dtype. */
static inline void case_add_output(case_reader *r, int which, const char *name, gdn_dtype otherwise, int num_dims,
                                   const ptrdiff_t *shape, uint64_t max_bytes) {
    case_output *out = &r->c->outputs[which];
    const char *declared = case_declared(r, name);
    if (!r->ok) return;
    out->declared = declared ? case_dtype_named(declared) : otherwise;
    if (out->declared == GDN_DTYPE_NOT_SET) {
        r->ok = case_fail(r->message, "%.600s/case.txt: dtype_%s is '%.60s'", r->folder, name, declared);
        return;
    }
    const ptrdiff_t most = max_bytes / 8 < PTRDIFF_MAX / 8 ? (ptrdiff_t)(max_bytes / 8) : PTRDIFF_MAX / 8;
    out->num_dims = num_dims;
    out->count = 1;
    for (int i = 0; i < num_dims && r->ok; i++) {
        out->shape[i] = shape[i];
        if (shape[i] > 0 && out->count > most / shape[i])
            r->ok = case_fail(r->message, "%.600s/case.txt: %s would be too large", r->folder, name);
        else
            out->count *= shape[i];
    }
    if (!r->ok) return;
    out->data = malloc(out->count > 0 ? (size_t)out->count * 8 : 1);
    if (!out->data) r->ok = case_fail(r->message, "%.600s: out of memory", r->folder);
}

static inline void case_add_outputs(case_reader *r) {
    case_call *c = r->c;
    gdn_params *p = &c->params;
    gdn_state_cache *cache = &p->intermediate_states_buffer;
    const bool has_cache = cache->num_rows > 0 || cache->num_steps > 0, vk = p->state_layout == GDN_STATE_VK;
    if (r->ok && (c->initial_state || has_cache) && p->state_layout == GDN_STATE_LAYOUT_NOT_SET)
        r->ok = case_fail(r->message, "%.600s/case.txt: 'state_layout' is missing", r->folder);
    const ptrdiff_t rows = vk ? p->head_v_dim : p->head_k_dim, columns = vk ? p->head_k_dim : p->head_v_dim;

    const ptrdiff_t o[] = {p->batch_size, p->seq_len, p->num_value_heads, p->head_v_dim};
    case_add_output(r, CASE_O, "o", p->q.dtype, 4, o, UINT64_MAX);
    if (c->initial_state) {
        const ptrdiff_t pool[] = {r->num_states, p->num_value_heads, rows, columns};
        case_add_output(r, CASE_FINAL_STATE, "initial_state", p->initial_state_source.dtype, 4, pool, UINT64_MAX);
    }
    if (has_cache) {
        const ptrdiff_t steps[] = {cache->num_rows, cache->num_steps, p->num_value_heads, rows, columns};
        case_add_output(r, CASE_INTERMEDIATE_STATES, "intermediate_states", GDN_F32, 5, steps, CASE_MAX_CACHE_BYTES);
    }
    p->o.data = c->outputs[CASE_O].data;
    p->initial_state_source.data = c->outputs[CASE_FINAL_STATE].data;
    cache->data = c->outputs[CASE_INTERMEDIATE_STATES].data;
}

/* Makes the outputs what they are before a call: o and the cache zeros, the pool a copy of the initial state. Under
 * GDN_COMPUTE_F64 all three are float64, so that nothing is rounded on the way; a pool to whose dtype every state is to
 * be rounded keeps it. */
static inline void case_reset(case_call *c, gdn_compute compute) {
    gdn_params *p = &c->params;
    p->compute = compute;
    for (int i = 0; i < CASE_NUM_OUTPUTS; i++) {
        case_output *out = &c->outputs[i];
        if (!out->data) continue;
        const bool rounded = i == CASE_FINAL_STATE && (p->rounding & GDN_ROUND_STATE) != 0;
        out->dtype = compute == GDN_COMPUTE_F64 && !rounded ? GDN_F64 : out->declared;
        if (i != CASE_FINAL_STATE)
            memset(out->data, 0, (size_t)out->count * case_dtype_size(out->dtype));
        else if (out->dtype == out->declared)
            memcpy(out->data, c->initial_state, (size_t)out->count * case_dtype_size(out->dtype));
        else
            for (ptrdiff_t j = 0; j < out->count; j++)
                case_set(out->data, out->dtype, j, case_get(c->initial_state, out->declared, j));
    }
    p->o.dtype = c->outputs[CASE_O].dtype;
    if (p->initial_state_source.data) p->initial_state_source.dtype = c->outputs[CASE_FINAL_STATE].dtype;
    if (p->intermediate_states_buffer.data)
        p->intermediate_states_buffer.dtype = c->outputs[CASE_INTERMEDIATE_STATES].dtype;
}

/* Reads a folder; on failure *c is empty. The outputs are ready for GDN_COMPUTE_F32. Expected arrays are not read:
 * a folder of inputs is a case. */
static inline bool case_load(case_call *c, const char *folder, case_message *message) {
    char path[CASE_MAX_PATH];
    case_reader r = {.c = c, .folder = folder, .message = message, .ok = true};
    memset(c, 0, sizeof *c);
    if (!case_path(path, folder, "case", ".txt", message)) return false;
    case_read_text(&r, path);
    case_read_options(&r);
    case_refuse_unknown_keys(&r);
    if (!r.ok) case_fail_at(message, path);
    case_read_arrays(&r);
    case_add_outputs(&r);
    free(r.text);
    if (r.ok)
        case_reset(c, GDN_COMPUTE_F32);
    else
        case_free(c);
    return r.ok;
}

/* Whether a case may have an array of that name: an input, an output, or what tests compare with. */
static inline bool case_has_array(const case_call *c, const char *name) {
    static const char *const results[] = {"o", "final_state", "intermediate_states", "o_f64"};
    for (int i = 0; i < c->num_names; i++)
        if (strcmp(name, c->names[i]) == 0) return true;
    for (int i = 0; i < 4; i++)
        if (strcmp(name, results[i]) == 0) return true;
    return false;
}

/* Writes the outputs as NAME.npy, the states rounded to what the case declares, o as it was computed. */
static inline bool case_write_outputs(case_call *c, const char *folder, case_message *message) {
    static const char *const names[] = {"o", "final_state", "intermediate_states"};
    for (int i = 0; i < CASE_NUM_OUTPUTS; i++) {
        case_output *out = &c->outputs[i];
        char path[CASE_MAX_PATH];
        if (!out->data) continue;
        if (i != CASE_O && out->dtype != out->declared) {
            /* In place: element j of the narrower type ends before element j + 1 of the wider one begins. */
            for (ptrdiff_t j = 0; j < out->count; j++)
                case_set(out->data, out->declared, j, case_get(out->data, out->dtype, j));
            out->dtype = out->declared;
        }
        npy_array x = {.num_dims = out->num_dims, .count = out->count, .data = out->data};
        x.type = out->dtype == GDN_F64   ? NPY_F64
                 : out->dtype == GDN_F32 ? NPY_F32
                 : out->dtype == GDN_F16 ? NPY_F16
                                         : NPY_U16;
        memcpy(x.shape, out->shape, sizeof out->shape);
        if (!case_path(path, folder, names[i], ".npy", message) || !npy_write(path, &x, message)) return false;
    }
    return true;
}

#endif /* CASE_IO_H */
