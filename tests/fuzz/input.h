/* What the fuzz targets share: small numbers taken from the input one byte at a time; zeros once it is used up, so that
 * every input means something and a shorter one means something simpler. */
#ifndef INPUT_H
#define INPUT_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

typedef struct input {
    const uint8_t *at, *end;
} input;

static inline uint8_t input_byte(input *b) { return (uint8_t)(b->at < b->end ? *b->at++ : 0); }

/* 0 .. bound-1, for bounds up to 256. */
static inline int input_below(input *b, int bound) { return input_byte(b) % bound; }

/* One of the elements of an array. */
#define INPUT_PICK(b, array) ((array)[input_below(b, (int)(sizeof(array) / sizeof((array)[0])))])

/* A property that does not hold ends the program, which is how libFuzzer learns of it. */
#define REQUIRE(condition)                                                                                             \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            fprintf(stderr, "%s:%d: does not hold: %s\n", __FILE__, __LINE__, #condition);                             \
            abort();                                                                                                   \
        }                                                                                                              \
    } while (0)

/* One input; returns 0. Called by libFuzzer, or by replay.c. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Before the first input. */
int LLVMFuzzerInitialize(int *argc, char ***argv);

#endif
