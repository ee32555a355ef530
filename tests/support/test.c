#include "test.h"

#include <inttypes.h>
#include <stdlib.h>

#include "gdn_varlen.h"

static char context[256];

uint64_t test_seed(void) {
    const char *text = getenv("GDN_TEST_SEED");
    return text != NULL && text[0] != '\0' ? strtoull(text, NULL, 0) : 20250607u;
}

void test_banner(const char *program) {
    printf("%s: GDN_TEST_SEED=%" PRIu64 ", instruction set %s\n", program, test_seed(),
           gdn_isa_name(gdn_isa_selected()));
    fflush(stdout);
}

void test_context(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(context, sizeof context, format, arguments);
    va_end(arguments);
}

void test_fail(const char *format, ...) {
    char message[512];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(message, sizeof message, format, arguments);
    va_end(arguments);
    fail_msg("%s: %s", context, message);
}
