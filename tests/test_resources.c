/* What does a call use besides its arguments? No heap when scratch is passed, and no more stack than stated. */
#define _DEFAULT_SOURCE /* MAP_ANONYMOUS, pthread_attr_setstack under -std=c11 */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "configs.h"
#include "test.h"

/* Bytes of stack that one call may use, of an optimised build. */
enum { STATED_STACK = 16 * 1024 };

/* Room for builds without optimisation. */
enum { STACK = 1 << 20, PAINT = 0xa5 };

/* ---- the heap: this program is linked with --wrap, so that every allocation comes through here -------- */

void *__real_malloc(size_t size);
void *__real_calloc(size_t count, size_t size);
void *__real_realloc(void *data, size_t size);
void __real_free(void *data);
void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t count, size_t size);
void *__wrap_realloc(void *data, size_t size);
void __wrap_free(void *data);

static int allocations, releases;

void *__wrap_malloc(size_t size) {
    allocations++;
    return __real_malloc(size);
}
void *__wrap_calloc(size_t count, size_t size) {
    allocations++;
    return __real_calloc(count, size);
}
void *__wrap_realloc(void *data, size_t size) {
    allocations++;
    return __real_realloc(data, size);
}
void __wrap_free(void *data) {
    releases += data != NULL;
    __real_free(data);
}

/* ---- each use of the library, on a thread whose stack was painted before ----------------------------------- */

typedef enum use { NOTHING, VALIDATE, CALL, WORK_ITEMS, NUM_USES } use;
static const char *const use_names[NUM_USES] = {"nothing", "gdn_validate", "one call", "gdn_run_work_items"};

typedef struct job {
    const gdn_params *p;
    use how;
    gdn_status status;
    int allocations, releases;
} job;

static void *work(void *argument) {
    job *j = argument;
    const gdn_params *p = j->p;
    gdn_error error;
    allocations = releases = 0;
    if (j->how == VALIDATE) j->status = gdn_validate(p, &error);
    if (j->how == CALL) j->status = gdn_fused_sigmoid_gating_delta_rule_update(p, &error);
    if (j->how == WORK_ITEMS) j->status = gdn_run_work_items(p, 0, gdn_num_work_items(p), p->scratch, p->scratch_size);
    j->allocations = allocations;
    j->releases = releases;
    return NULL;
}

/* Bytes of stack that the thread touched, its own start included. */
static ptrdiff_t measure(unsigned char *stack, job *j) {
    pthread_t thread;
    pthread_attr_t attributes;
    ptrdiff_t untouched = 0;
    memset(stack, PAINT, STACK);
    if (pthread_attr_init(&attributes) != 0 || pthread_attr_setstack(&attributes, stack, STACK) != 0 ||
        pthread_create(&thread, &attributes, work, j) != 0 || pthread_join(thread, NULL) != 0)
        abort();
    pthread_attr_destroy(&attributes);
    while (untouched < STACK && stack[untouched] == PAINT) untouched++;
    return STACK - untouched;
}

typedef struct high_water {
    ptrdiff_t bytes;
    char where[96];
} high_water;

static void measure_uses(unsigned char *stack, call *c, const char *name, high_water *most) {
    void *scratch = malloc(gdn_scratch_size(&c->p));
    if (scratch == NULL) abort();
    c->p.scratch = scratch;
    c->p.scratch_size = gdn_scratch_size(&c->p);
    ptrdiff_t thread = 0;
    for (use how = NOTHING; how < NUM_USES; how++) {
        job j = {&c->p, how, GDN_OK, 0, 0};
        const ptrdiff_t used = measure(stack, &j) - thread;
        test_context("%s, %s, %s", name, gdn_isa_name(c->p.isa), use_names[how]);
        if (j.status != GDN_OK) test_fail("%s", gdn_status_name(j.status));
        if (j.allocations != 0 || j.releases != 0) test_fail("%d allocations, %d releases", j.allocations, j.releases);
        if (how == NOTHING) thread = used;
        if (how != NOTHING && used > most[how].bytes) {
            most[how].bytes = used;
            snprintf(most[how].where, sizeof most[how].where, "%s, %s", name,
                     c->p.compute == GDN_COMPUTE_F64 ? "float64" : gdn_isa_name(c->p.isa));
        }
    }
    free(scratch);
}

static void stack_and_heap(void **state) {
    (void)state;
    high_water most[NUM_USES] = {{0, ""}};
    unsigned char *stack = mmap(NULL, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (stack == MAP_FAILED) abort();
    for (ptrdiff_t i = 0; i < num_configs; i++) {
        call *c = call_new(&configs[i]);
        for (gdn_isa isa = GDN_ISA_PLAIN; isa < GDN_NUM_ISAS; isa++) {
            c->p.isa = isa;
            if (gdn_isa_supported(isa)) measure_uses(stack, c, configs[i].name, most);
        }
        call *oracle = call_clone_f64(c);
        measure_uses(stack, oracle, configs[i].name, most);
        call_free(oracle);
        call_free(c);
    }
    munmap(stack, STACK);
    for (use how = VALIDATE; how < NUM_USES; how++)
        printf("stack: %6td bytes at most for %s (%s)\n", most[how].bytes, use_names[how], most[how].where);
#if defined(GDN_SANITIZED) || (!defined(__OPTIMIZE__) && !defined(_MSC_VER))
    printf("not held against the %d bytes stated: a sanitizer's build, or one without optimisation\n", STATED_STACK);
#else
    for (use how = VALIDATE; how < NUM_USES; how++)
        if (most[how].bytes > STATED_STACK) test_fail("%s: %td bytes", use_names[how], most[how].bytes);
#endif
}

/* Without scratch: one block, which is given back. */
static void one_block_without_scratch(void **state) {
    (void)state;
    for (ptrdiff_t i = 0; i < num_configs; i++) {
        call *c = call_new(&configs[i]);
        job j = {&c->p, CALL, GDN_OK, 0, 0};
        work(&j);
        test_context("%s without scratch", configs[i].name);
        if (j.status != GDN_OK || j.allocations != 1 || j.releases != 1)
            test_fail("%s, %d allocations, %d releases", gdn_status_name(j.status), j.allocations, j.releases);
        call_free(c);
    }
}

int main(void) {
    test_banner("test_resources");
    const struct CMUnitTest tests[] = {cmocka_unit_test(stack_and_heap), cmocka_unit_test(one_block_without_scratch)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
