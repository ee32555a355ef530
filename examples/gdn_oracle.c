/*
 * gdn_oracle - runs a case that lies in a folder, and compares two arrays
 * SPDX-License-Identifier: MIT
 *
 *     cc -O2 -I. examples/gdn_oracle.c -o gdn_oracle -lm
 *
 * For whoever tests another implementation, in any language: write the inputs of a call into a folder, in the
 * format of tests/golden/README.md, run this program on it and compare. From Python:
 *
 *     numpy.save("case/q.npy", q)  # and the others; Julia: NPZ.npzwrite, Rust: ndarray_npy::write_npy
 *     open("case/case.txt", "w").write("B 1\nT 5\nN 1\nH 2\nHV 2\nK 8\nV 8\n")
 *     subprocess.run(["gdn_oracle", "run", "case", "out", "--compute", "f64"], check=True)
 *     numpy.testing.assert_allclose(mine, numpy.load("out/o.npy"), rtol=1e-5, atol=1e-6)
 *
 * and from where no array library is at hand:
 *
 *     gdn_oracle compare out/o.npy mine.npy --rtol 1e-5 --atol 1e-6
 */
#define GDN_IMPLEMENTATION
#include "gdn_varlen.h"
#include "case_io.h"

#include <sys/stat.h>
#include <sys/types.h>
#ifdef _WIN32
#include <direct.h>
#include <io.h>
#else
#include <dirent.h>
#endif

enum { EXIT_SAME = 0, EXIT_DIFFERENT = 1, EXIT_UNUSABLE = 2 };

static const char help[] =
    "gdn_oracle run CASE_DIR OUT_DIR [--compute f32|f32_chunks|f64] [--isa NAME]\n"
    "    Computes the case and writes OUT_DIR/o.npy and, where the case has them, final_state.npy and\n"
    "    intermediate_states.npy, in the dtypes that the case declares. --compute f64 does every step in double and\n"
    "    leaves o.npy in float64. --isa forces an instruction set of f32 or f32_chunks; all give the same bits.\n"
    "\n"
    "gdn_oracle compare EXPECTED.npy ACTUAL.npy [--dtype bf16|f16|f32|f64] [--atol X] [--rtol X]\n"
    "    Prints how far ACTUAL is from EXPECTED; OK and status 0 where |actual - expected| <= atol + rtol * "
    "|expected|\n"
    "    for every element, else FAIL and status 1. Both tolerances are 0 unless given. Equal infinities and any two\n"
    "    NaNs do not differ; a NaN and a number differ infinitely. --dtype says what files of 16-bit integers hold\n"
    "    and in whose units in the last place to count; without it in those of the narrower of the two dtypes.\n"
    "\n"
    "gdn_oracle --help | --version\n"
    "\n"
    "Exit status 2: bad usage, an unreadable file or a refused call, in one line on standard error.\n";

static int complain(const case_message *message) {
    fprintf(stderr, "gdn_oracle: %s\n", message->text);
    return EXIT_UNUSABLE;
}

/* The command line after the command: two paths, and options with one value each, in any order. */
typedef struct arguments {
    const char *path[2];
    const char *compute, *isa, *dtype, *atol, *rtol;
} arguments;

static bool parse_arguments(int argc, char **argv, bool is_run, arguments *a, case_message *message) {
    const struct {
        const char *name;
        bool of_run;
        const char **value;
    } options[] = {
        {"--compute", true, &a->compute}, {"--isa", true, &a->isa},    {"--dtype", false, &a->dtype},
        {"--atol", false, &a->atol},      {"--rtol", false, &a->rtol},
    };
    int num_paths = 0;
    for (int i = 2; i < argc; i++) {
        if (strncmp(argv[i], "--", 2) != 0) {
            if (num_paths == 2) return case_fail(message, "unexpected argument '%s'; see --help", argv[i]);
            a->path[num_paths++] = argv[i];
            continue;
        }
        size_t o = 0;
        const size_t count = sizeof options / sizeof options[0];
        while (o < count && (options[o].of_run != is_run || strcmp(argv[i], options[o].name) != 0)) o++;
        if (o == count) return case_fail(message, "%s has no option '%s'; see --help", argv[1], argv[i]);
        if (i + 1 == argc) return case_fail(message, "%s needs a value; see --help", argv[i]);
        *options[o].value = argv[++i];
    }
    return num_paths == 2 || case_fail(message, "%s needs two paths; see --help", argv[1]);
}

/* ==== run ========================================================================================== */

static bool make_one_folder(const char *path) {
#ifdef _WIN32
    return _mkdir(path) == 0 || errno == EEXIST;
#else
    return mkdir(path, 0777) == 0 || errno == EEXIST;
#endif
}

/* With the folders above it; whether those exist shows when the last one is made. */
static bool make_folder(const char *path, case_message *message) {
    char part[CASE_MAX_PATH];
    if (snprintf(part, sizeof part, "%s", path) >= (int)sizeof part) return case_fail(message, "OUT_DIR is too long");
    for (char *s = part; *s; s++) {
        if (*s != '/' || s == part) continue;
        *s = '\0';
        make_one_folder(part);
        *s = '/';
    }
    return make_one_folder(path) || case_fail(message, "%.600s: %s", path, strerror(errno));
}

static bool parse_isa(const char *name, gdn_isa *isa, case_message *message) {
    for (int i = 0; i < GDN_NUM_ISAS; i++) {
        if (strcmp(name, gdn_isa_name((gdn_isa)i)) == 0) {
            *isa = (gdn_isa)i;
            return true;
        }
    }
    case_fail(message, "--isa is '%s' and not one of:", name);
    for (int i = 0; i < GDN_NUM_ISAS; i++) {
        const case_message names = *message;
        case_fail(message, "%.900s %s", names.text, gdn_isa_name((gdn_isa)i));
    }
    return false;
}

/* An array under another name would silently be an absent one. */
static bool check_name(const case_call *c, const char *folder, const char *file, case_message *message) {
    char name[64];
    const size_t length = strlen(file), suffix = strlen(".npy");
    if (length < suffix || strcmp(file + length - suffix, ".npy") != 0) return true;
    snprintf(name, sizeof name, "%.*s", (int)(length - suffix < sizeof name ? length - suffix : sizeof name), file);
    return case_has_array(c, name) || case_fail(message, "%.600s/%.255s: a case has no such array", folder, file);
}

static bool check_names(const case_call *c, const char *folder, case_message *message) {
    bool ok = true;
#ifdef _WIN32
    char pattern[CASE_MAX_PATH];
    struct _finddata_t entry;
    if (!case_path(pattern, folder, "*", "", message)) return false;
    const intptr_t search = _findfirst(pattern, &entry);
    for (bool more = search != -1; ok && more; more = _findnext(search, &entry) == 0)
        ok = check_name(c, folder, entry.name, message);
    if (search != -1) _findclose(search);
#else
    DIR *search = opendir(folder);
    if (!search) return case_fail(message, "%.600s: %s", folder, strerror(errno));
    for (const struct dirent *entry; ok && (entry = readdir(search)) != NULL;)
        ok = check_name(c, folder, entry->d_name, message);
    closedir(search);
#endif
    return ok;
}

static bool run_case(case_call *c, const arguments *a, gdn_compute compute, gdn_isa isa, case_message *message) {
    gdn_error error;
    char place[64] = "";
    case_reset(c, compute);
    c->params.isa = isa;
    if (gdn_fused_sigmoid_gating_delta_rule_update(&c->params, &error) != GDN_OK) {
        if (error.other >= 0)
            snprintf(place, sizeof place, "[%lld] and [%lld]", (long long)error.index, (long long)error.other);
        else if (error.index >= 0)
            snprintf(place, sizeof place, "[%lld]", (long long)error.index);
        return case_fail(message, "%.600s: %s%s%s%s (%s)", a->path[0], error.argument, place,
                         error.argument[0] != '\0' ? ": " : "", gdn_status_text(error.status),
                         gdn_status_name(error.status));
    }
    return make_folder(a->path[1], message) && case_write_outputs(c, a->path[1], message);
}

static int run(const arguments *a) {
    case_message message;
    case_call c;
    gdn_isa isa = GDN_ISA_AUTO;
    gdn_compute compute = GDN_COMPUTE_F32;
    if (a->compute && strcmp(a->compute, "f64") == 0) {
        compute = GDN_COMPUTE_F64;
    } else if (a->compute && strcmp(a->compute, "f32_chunks") == 0) {
        compute = GDN_COMPUTE_F32_CHUNKS;
    } else if (a->compute && strcmp(a->compute, "f32") != 0) {
        case_fail(&message, "--compute is '%s' and not f32, f32_chunks or f64", a->compute);
        return complain(&message);
    }
    if ((a->isa && !parse_isa(a->isa, &isa, &message)) || !case_load(&c, a->path[0], &message))
        return complain(&message);
    const bool ok = check_names(&c, a->path[0], &message) && run_case(&c, a, compute, isa, &message);
    case_free(&c);
    return ok ? EXIT_SAME : complain(&message);
}

/* ==== compare ====================================================================================== */

typedef struct comparison {
    double max_absolute, max_relative, max_ulps;
    double sum_error, sum_expected; /* of squares */
    ptrdiff_t worst;                /* the largest difference, among those past tolerance if there are any */
    double worst_difference;
    ptrdiff_t num_past;
} comparison;

typedef struct operand {
    npy_array array;
    gdn_dtype dtype;
} operand;

static comparison compare_arrays(const operand *expected, const operand *actual, gdn_dtype unit, double atol,
                                 double rtol) {
    comparison r = {.worst = -1};
    for (ptrdiff_t i = 0; i < expected->array.count; i++) {
        const double e = case_get(expected->array.data, expected->dtype, i);
        const double a = case_get(actual->array.data, actual->dtype, i);
        const double difference = case_difference(e, a);
        const double relative = difference == 0 ? 0 : isfinite(e) ? difference / fabs(e) : (double)INFINITY;
        const bool past = difference > 0 && !(isfinite(difference) && difference <= atol + rtol * fabs(e));

        r.max_absolute = fmax(r.max_absolute, difference);
        r.max_relative = fmax(r.max_relative, relative);
        r.max_ulps = fmax(r.max_ulps, case_ulps(e, a, unit));
        r.sum_error += difference * difference;
        if (isfinite(e)) r.sum_expected += e * e;
        if (r.worst < 0 || (past && r.num_past == 0) || (past == (r.num_past > 0) && difference > r.worst_difference)) {
            r.worst = i;
            r.worst_difference = difference;
        }
        if (past) r.num_past++;
    }
    return r;
}

static void print_comparison(const comparison *r, const operand *expected, const operand *actual, gdn_dtype unit) {
    const npy_array *x = &expected->array;
    printf("shape %s\n", npy_format_shape(x->num_dims, x->shape).text);
    printf("dtypes %s %s\n", case_dtype_word(expected->dtype), case_dtype_word(actual->dtype));
    printf("max_abs_diff %.9g\n", r->max_absolute);
    printf("max_rel_diff %.9g\n", r->max_relative);
    printf("max_ulp_diff %.9g %s\n", r->max_ulps, case_dtype_word(unit));
    printf("nmse %.9g\n", r->sum_error > 0 ? r->sum_error / r->sum_expected : 0);
    if (r->worst >= 0) {
        ptrdiff_t at[NPY_MAX_DIMS] = {0}, rest = r->worst;
        for (int i = x->num_dims - 1; i >= 0; i--) {
            at[i] = rest % x->shape[i];
            rest /= x->shape[i];
        }
        printf("worst %s expected %.17g actual %.17g\n", npy_format_shape(x->num_dims, at).text,
               case_get(x->data, expected->dtype, r->worst), case_get(actual->array.data, actual->dtype, r->worst));
    }
    printf("past_tolerance %lld of %lld\n", (long long)r->num_past, (long long)x->count);
    puts(r->num_past == 0 ? "OK" : "FAIL");
}

static bool parse_tolerance(const char *name, const char *value, double *x, case_message *message) {
    char *end;
    *x = value ? strtod(value, &end) : 0;
    if (!value || (end != value && *end == '\0' && isfinite(*x) && *x >= 0)) return true;
    return case_fail(message, "%s is '%s' and not a finite number of at least 0", name, value);
}

static bool read_operand(const char *path, gdn_dtype declared, operand *x, case_message *message) {
    if (!npy_read(path, &x->array, message)) return false;
    x->dtype = npy_dtype(&x->array, declared);
    if (x->dtype != GDN_DTYPE_NOT_SET) return true;
    return case_fail(message, "%.600s: holds integers (%s)%s", path, npy_type_name(x->array.type),
                     x->array.type == NPY_U16 ? "; where they stand for numbers, say --dtype bf16 or f16" : "");
}

static bool compare_files(const arguments *a, operand *expected, operand *actual, int *exit_status,
                          case_message *message) {
    double atol, rtol;
    gdn_dtype unit = a->dtype ? case_dtype_named(a->dtype) : GDN_DTYPE_NOT_SET;
    if (a->dtype && unit == GDN_DTYPE_NOT_SET)
        return case_fail(message, "--dtype is '%s' and not one of: bf16 f16 f32 f64", a->dtype);
    if (!parse_tolerance("--atol", a->atol, &atol, message) || !parse_tolerance("--rtol", a->rtol, &rtol, message))
        return false;
    if (!read_operand(a->path[0], unit, expected, message) || !read_operand(a->path[1], unit, actual, message))
        return false;
    const npy_array *e = &expected->array, *x = &actual->array;
    if (e->num_dims != x->num_dims || memcmp(e->shape, x->shape, sizeof e->shape) != 0)
        return case_fail(message, "the shapes differ: %s and %s", npy_format_shape(e->num_dims, e->shape).text,
                         npy_format_shape(x->num_dims, x->shape).text);

    if (unit == GDN_DTYPE_NOT_SET)
        unit =
            case_fraction_bits(expected->dtype) < case_fraction_bits(actual->dtype) ? expected->dtype : actual->dtype;
    const comparison r = compare_arrays(expected, actual, unit, atol, rtol);
    print_comparison(&r, expected, actual, unit);
    *exit_status = r.num_past == 0 ? EXIT_SAME : EXIT_DIFFERENT;
    return true;
}

static int compare(const arguments *a) {
    case_message message;
    operand expected, actual;
    int exit_status = EXIT_UNUSABLE;
    memset(&expected, 0, sizeof expected);
    memset(&actual, 0, sizeof actual);
    if (!compare_files(a, &expected, &actual, &exit_status, &message)) complain(&message);
    npy_free(&expected.array);
    npy_free(&actual.array);
    return exit_status;
}

int main(int argc, char **argv) {
    case_message message;
    arguments a = {{NULL, NULL}, NULL, NULL, NULL, NULL, NULL};
    const char *command = argc > 1 ? argv[1] : "";
    if (strcmp(command, "--help") == 0) {
        fputs(help, stdout);
        return EXIT_SAME;
    }
    if (strcmp(command, "--version") == 0) {
        const int version = gdn_version();
        printf("gdn_oracle %d.%d.%d\n", version / 10000, version / 100 % 100, version % 100);
        return EXIT_SAME;
    }
    const bool is_run = strcmp(command, "run") == 0;
    if (!is_run && strcmp(command, "compare") != 0) {
        case_fail(&message, "usage: gdn_oracle run CASE_DIR OUT_DIR | compare EXPECTED.npy ACTUAL.npy; see --help");
        return complain(&message);
    }
    if (!parse_arguments(argc, argv, is_run, &a, &message)) return complain(&message);
    return is_run ? run(&a) : compare(&a);
}
