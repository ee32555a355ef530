#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include "cmocka.h"

static jmp_buf end_of_test;
static bool running;

void cmocka_fail(const char *file, int line, const char *format, ...) {
    const char *stop = getenv("CMOCKA_TEST_ABORT");
    va_list arguments;
    fflush(stdout);
    fprintf(stderr, "%s:%d: ", file, line);
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fprintf(stderr, "\n");
    if (!running || (stop != NULL && strcmp(stop, "1") == 0)) abort();
    longjmp(end_of_test, 1);
}

static bool passes(const struct CMUnitTest *test) {
    void *state = test->initial_state;
    if (setjmp(end_of_test) != 0) return false;
    if (test->setup_func != NULL && test->setup_func(&state) != 0) return false;
    test->test_func(&state);
    return test->teardown_func == NULL || test->teardown_func(&state) == 0;
}

int _cmocka_run_group_tests(const char *group, const struct CMUnitTest *tests, size_t num_tests,
                            CMFixtureFunction setup, CMFixtureFunction teardown) {
    void *state = NULL;
    int failed = 0;
    if (setup != NULL && setup(&state) != 0) return 1;
    running = true;
    for (size_t i = 0; i < num_tests; i++) {
        const bool ok = passes(&tests[i]);
        printf("[%s] %s\n", ok ? " ok " : "FAIL", tests[i].name);
        failed += !ok;
    }
    running = false;
    if (teardown != NULL && teardown(&state) != 0) failed++;
    printf("%s: %zu tests, %d failed\n", group, num_tests, failed);
    return failed;
}
