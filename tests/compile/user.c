/* A user of the header, as C or as C++: one token whose output is known. What is defined before decides what it
 * tests: GDN_IMPLEMENTATION, GDN_API, GDN_NO_MALLOC, GDN_NO_AVX2 and its like, or HEADER, the way the header is written
 * in #include. */
#ifndef HEADER
#define HEADER "gdn_varlen.h"
#endif
#include HEADER
#include HEADER

#include <stdio.h>

static unsigned char scratch[1 << 16];

int main(void) {
    static const float q[] = {5}, k[] = {2}, v[] = {3}, decay[] = {1};
    float o[] = {0};
    static gdn_params p;
    p.batch_size = p.seq_len = p.num_key_heads = p.num_value_heads = p.head_k_dim = p.head_v_dim = 1;
    p.q = gdn_f32(q);
    p.k = gdn_f32(k);
    p.v = gdn_f32(v);
    p.a = gdn_f32(decay);
    p.gate_input = GDN_GATE_DECAY;
    p.o = gdn_out_f32(o);

    gdn_error error;
    bool left_out = false; /* an instance that is there all the same */
#ifdef GDN_NO_AVX2
    left_out = left_out || gdn_isa_supported(GDN_ISA_AVX2);
#endif
#ifdef GDN_NO_AVX512
    left_out = left_out || gdn_isa_supported(GDN_ISA_AVX512);
#endif
#ifdef GDN_NO_NEON
    left_out = left_out || gdn_isa_supported(GDN_ISA_NEON);
#endif
    if (left_out) return 1;
#ifdef GDN_NO_MALLOC
    if (gdn_fused_sigmoid_gating_delta_rule_update(&p, &error) != GDN_ERROR_SCRATCH) return 1;
    if (gdn_validate(&p, &error) != GDN_OK) return 1; /* work items bring their own scratch */
    p.scratch = scratch;
    p.scratch_size = sizeof scratch;
#else
    (void)scratch;
#endif
    if (gdn_fused_sigmoid_gating_delta_rule_update(&p, &error) != GDN_OK) {
        printf("%s: %s\n", error.argument, gdn_status_text(error.status));
        return 1;
    }
    if (o[0] != 30.0f || gdn_version() != GDN_VERSION) {
        printf("o = %g, expected 30; version %d, expected %d\n", (double)o[0], gdn_version(), GDN_VERSION);
        return 1;
    }
    return 0;
}
