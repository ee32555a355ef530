/* What every test program shares: cmocka, the seed, and failures that say where they happened. */
#ifndef TEST_H
#define TEST_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <cmocka.h>

#include "gdn_varlen.h"

#define COUNT(array) ((ptrdiff_t)(sizeof(array) / sizeof((array)[0])))

/* The seed of all data: GDN_TEST_SEED from the environment, or a fixed one. */
uint64_t test_seed(void);

/* The instance that calls run on which name none: GDN_TEST_ISA from the environment, or GDN_ISA_AUTO. */
gdn_isa test_isa(void);

/* What GDN_COMPUTE_F32 means in a test: GDN_TEST_COMPUTE from the environment, f32 (the default) or f32_chunks. */
gdn_compute test_compute(void);

/* Exit status of a program that cannot test anything here. */
enum { TEST_SKIPPED = 77 };

/* Prints what is needed to repeat a run of this program; to be called first in main(). Ends the
 * program where the instance asked for is not there: as a failure if the CPU has it, as skipped if not. */
void test_banner(const char *program);

/* Says what is being tested from here on, in the manner of printf; test_fail() repeats it. */
void test_context(const char *format, ...);

/* Fails the running test. */
void test_fail(const char *format, ...);

#endif
