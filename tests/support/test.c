#include "test.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "cpu.h"

static char context[256];

uint64_t test_seed(void) {
    const char *text = getenv("GDN_TEST_SEED");
    return text != NULL && text[0] != '\0' ? strtoull(text, NULL, 0) : 20250607u;
}

gdn_isa test_isa(void) {
    const char *text = getenv("GDN_TEST_ISA");
    for (gdn_isa isa = GDN_ISA_AUTO; isa < GDN_NUM_ISAS; isa++)
        if (text != NULL && strcmp(text, gdn_isa_name(isa)) == 0) return isa;
    if (text == NULL || text[0] == '\0') return GDN_ISA_AUTO;
    fprintf(stderr, "GDN_TEST_ISA=%s: no such instance\n", text);
    exit(2);
}

gdn_compute test_compute(void) {
    const char *text = getenv("GDN_TEST_COMPUTE");
    if (text == NULL || text[0] == '\0' || strcmp(text, "f32") == 0) return GDN_COMPUTE_F32;
    if (strcmp(text, "f32_chunks") == 0) return GDN_COMPUTE_F32_CHUNKS;
    fprintf(stderr, "GDN_TEST_COMPUTE=%s: no such computation\n", text);
    exit(2);
}

void test_banner(const char *program) {
    gdn_isa isa = test_isa();
    printf("%s: GDN_TEST_SEED=%" PRIu64 ", instruction set %s%s\n", program, test_seed(),
           gdn_isa_name(isa == GDN_ISA_AUTO ? gdn_isa_selected() : isa),
           test_compute() == GDN_COMPUTE_F32_CHUNKS ? ", in chunks" : "");
    fflush(stdout);
    if (gdn_isa_supported(isa)) return;
    printf("%s: %s is not there\n", cpu_requires(isa) ? "FAILED" : "skipped", gdn_isa_name(isa));
    exit(cpu_requires(isa) ? 1 : TEST_SKIPPED);
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
