#version 450
// Chains of multiply-adds with run-time operands and trip count, so that no compiler folds them; the sum is stored
// so that none drops them. 8 steps × 4 chains × 4 lanes × 2 operations a round.
layout(local_size_x = 64) in;
layout(push_constant) uniform Params { float m; float a; uint rounds; } p;
layout(std430, binding = 0) buffer Out { vec4 v[]; } o;

#define STEP x0 = fma(x0, m, a); x1 = fma(x1, m, a); x2 = fma(x2, m, a); x3 = fma(x3, m, a);

void main()
{
    uint i = gl_GlobalInvocationID.x;
    vec4 m = vec4(p.m), a = vec4(p.a);
    vec4 x0 = vec4(float(i & 255u)), x1 = x0 + 1.0, x2 = x0 + 2.0, x3 = x0 + 3.0;
    for (uint r = 0u; r < p.rounds; r++) {
        STEP STEP STEP STEP STEP STEP STEP STEP
    }
    o.v[i] = x0 + x1 + x2 + x3;
}
