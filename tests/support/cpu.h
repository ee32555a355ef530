/* What the CPU has, read from another place than the library reads it: an instance that is missing without reason is
 * then a failure and not a test left out. */
#ifndef CPU_H
#define CPU_H

#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "gdn_varlen.h"

/* Whether /proc/cpuinfo lists every one of these features, each written with a blank on both sides. */
static inline bool cpu_lists(const char *const *features) {
    static char line[1 << 14];
    FILE *file = fopen("/proc/cpuinfo", "r");
    bool found = false;
    if (file == NULL) return false;
    while (!found && fgets(line, (int)sizeof line, file) != NULL) found = strncmp(line, "flags", 5) == 0;
    fclose(file);
    for (char *end = found ? strchr(line, '\n') : NULL; end != NULL; end = NULL) *end = ' ';
    for (; found && *features != NULL; features++) found = strstr(line, *features) != NULL;
    return found;
}

/* Whether this build has to have an instance that this CPU can run. */
static inline bool cpu_requires(gdn_isa isa) {
#if defined(GDN_NO_SIMD) || (!defined(__GNUC__) && !defined(__clang__))
    return isa == GDN_ISA_PLAIN;
#elif defined(__aarch64__)
    return isa == GDN_ISA_PLAIN || isa == GDN_ISA_NEON;
#elif defined(__x86_64__) || (defined(__i386__) && defined(__SSE2__))
    static const char *const avx2[] = {" avx2 ", " fma ", " f16c ", NULL};
    static const char *const avx512[] = {" avx512f ", " avx512bw ", " avx512dq ", " avx512vl ", NULL};
    if (isa == GDN_ISA_AVX2) return cpu_lists(avx2);
    if (isa == GDN_ISA_AVX512) return cpu_lists(avx2) && cpu_lists(avx512);
    return isa == GDN_ISA_PLAIN;
#else
    return isa == GDN_ISA_PLAIN;
#endif
}

/* Whether a name is in a list such as "avx2,avx512". */
static inline bool cpu_named(const char *list, const char *name) {
    const size_t length = strlen(name);
    while (*list != '\0') {
        const size_t word = strcspn(list, ", ");
        if (word == length && strncmp(list, name, length) == 0) return true;
        list += word + (list[word] != '\0');
    }
    return false;
}

#endif
