/* Do elements more than 2^31 elements away from the start of their array work? The arrays are sparse: all but a few
 * of their pages are never touched and take no memory. */
#include <string.h>

#include "compare.h"
#include "configs.h"
#include "run.h"
#include "test.h"

#if PTRDIFF_MAX > 0x7fffffff

static const ptrdiff_t far_away = ((ptrdiff_t)1 << 31) + 64;

/* One axis of one array at a time is stretched: its second index lies past 2^31 elements. */
static void check_strides(const call_config *config) {
    call *c = call_new(config);
    run(c, RUN_WHOLE);
    for (call_array which = 0; which < CALL_NUM_ARRAYS; which++)
        for (int axis = 0; axis < 3 && call_has(c, which); axis++) {
            if (which == CALL_INITIAL_POOL || c->array[which].shape[axis] < 2) continue;
            call_layout layout = {.name = "stretched", .order = {0, 1, 2}, .strides_given = true, .sparse = true};
            layout.gap[axis] = far_away;
            layout.arrays = 1u << which;
            test_context("%s, axis %d of %s", config->name, axis, call_array_names[which]);
            call *stretched = call_clone(c, &layout, GUARD_AFTER);
            run(stretched, RUN_WHOLE);
            assert_same(c, stretched);
            call_free(stretched);
        }
    call_free(c);
}

static const call_config table[] = {
    {.name = "float32",
     .p = {FIXED(2, 2), HEADS(2, 2, 16, 32), POOL(KV, 2, GDN_F32), CACHE(2, 2, GDN_F32)},
     .initial_state_indices = LIST(1, 0),
     .retrieve_parent_token = LIST(0, 0, 0, 0)},
    {.name = "bfloat16, kda vk",
     .p = {FIXED(2, 2), HEADS(2, 2, 20, 33), DTYPES(GDN_BF16), POOL(VK, 2, GDN_BF16), CACHE(2, 2, GDN_BF16),
           .is_kda = true, .beta_per_column = true}},
    {.name = "slots for steps",
     .p = {HEADS(1, 2, 16, 16), POOL(VK, 2, GDN_F32)},
     .lens = LIST(1, 1),
     .ssm_state_indices = LIST(1, 0)},
    {.name = "oracle", .p = {FIXED(2, 2), HEADS(2, 2, 4, 4), POOL(KV, 2, GDN_F32), .compute = GDN_COMPUTE_F64}},
};

static void strides(void **state) {
    (void)state;
    for (ptrdiff_t i = 0; i < COUNT(table); i++) check_strides(&table[i]);
}

/* The last of so many contiguous slots that it lies past 2^31 elements gives what the only slot of a small pool gives.
 */
static void check_slots(gdn_state_layout layout, gdn_dtype dtype) {
    call_config config = {.p = {FIXED(1, 3), HEADS(1, 2, 16, 40), POOL(KV, 1, GDN_F32)},
                          .initial_state_indices = LIST(0)};
    config.p.state_layout = layout;
    config.p.initial_state_source.dtype = dtype;
    call *small = call_new(&config), *large = call_clone(small, &call_layouts[0], GUARD_AFTER);
    test_context("many slots, layout %d, dtype %d", (int)layout, (int)dtype);
    run(small, RUN_WHOLE);

    size_t slot = small->array[CALL_POOL].block->size,
           last = (size_t)far_away * element_size((element)dtype) / slot + 1;
    guard_block pool = guard_alloc((last + 1) * slot, GUARD_AFTER);
    memcpy(pool.data + last * slot, call_at(small, CALL_INITIAL_POOL, 0, 0, 0, 0), slot);
    call_set(large, CALL_INITIAL_INDICES, 0, 0, 0, 0, (double)last);
    large->p.initial_state_source.data = pool.data;
    large->p.initial_state_source.num_states = (ptrdiff_t)last + 1;
    run_params(&large->p);
    memcpy(call_at(large, CALL_POOL, 0, 0, 0, 0), pool.data + last * slot, slot);
    assert_same(small, large);
    guard_free(&pool);
    call_free(large);
    call_free(small);
}

static void slots(void **state) {
    (void)state;
    check_slots(GDN_STATE_KV, GDN_F32);
    check_slots(GDN_STATE_VK, GDN_F32);
    check_slots(GDN_STATE_VK, GDN_BF16);
}

int main(void) {
    test_banner("test_large_offsets");
    const struct CMUnitTest tests[] = {cmocka_unit_test(strides), cmocka_unit_test(slots)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}

#else

int main(void) {
    printf("test_large_offsets: ptrdiff_t has 32 bits here, so there are no such offsets\n");
    return 0;
}

#endif
