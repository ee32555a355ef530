/* The part of cmocka's interface that the tests use, for builds in which all code must be instrumented
 * (-DGDN_OWN_CMOCKA=ON: MemorySanitizer) and for machines without cmocka. */
#ifndef CMOCKA_H
#define CMOCKA_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

typedef void (*CMUnitTestFunction)(void **state);
typedef int (*CMFixtureFunction)(void **state);

struct CMUnitTest {
    const char *name;
    CMUnitTestFunction test_func;
    CMFixtureFunction setup_func, teardown_func;
    void *initial_state;
};

#define cmocka_unit_test(function)                                                                                     \
    { #function, function, NULL, NULL, NULL }
#define cmocka_unit_test_setup_teardown(function, setup, teardown)                                                     \
    { #function, function, setup, teardown, NULL }
#define cmocka_run_group_tests(tests, setup, teardown)                                                                 \
    _cmocka_run_group_tests(#tests, tests, sizeof(tests) / sizeof((tests)[0]), setup, teardown)

/* Returns the number of tests that failed. */
int _cmocka_run_group_tests(const char *group, const struct CMUnitTest *tests, size_t num_tests,
                            CMFixtureFunction setup, CMFixtureFunction teardown);

/* Prints the message and ends the running test; outside one, or with CMOCKA_TEST_ABORT=1, the program. */
#if defined(__GNUC__)
__attribute__((noreturn, format(printf, 3, 4)))
#endif
void cmocka_fail(const char *file, int line, const char *format, ...);

#define fail_msg(...) cmocka_fail(__FILE__, __LINE__, __VA_ARGS__)
#define cmocka_check(ok, text) ((ok) ? (void)0 : cmocka_fail(__FILE__, __LINE__, "%s", text))
#define assert_true(x) cmocka_check((x), #x)
#define assert_non_null(x) cmocka_check((x) != NULL, #x " is NULL")
#define assert_int_equal(x, y) cmocka_check((long long)(x) == (long long)(y), #x " is not " #y)
#define assert_int_not_equal(x, y) cmocka_check((long long)(x) != (long long)(y), #x " is " #y)
#define assert_string_equal(x, y) cmocka_check(strcmp(x, y) == 0, #x " is not " #y)
#define assert_string_not_equal(x, y) cmocka_check(strcmp(x, y) != 0, #x " is " #y)
#define assert_memory_equal(x, y, size) cmocka_check(memcmp(x, y, size) == 0, #x " is not " #y)
#define assert_memory_not_equal(x, y, size) cmocka_check(memcmp(x, y, size) != 0, #x " is " #y)

#define print_message(...) printf(__VA_ARGS__)
#define print_error(...) fprintf(stderr, __VA_ARGS__)

#endif
