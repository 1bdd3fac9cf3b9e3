#version 450
// x = x * m + a, `rounds` times, for `words` floats from float `skip` of the binding on.
layout(local_size_x = 128) in;
layout(push_constant) uniform Params { uint skip; uint words; uint rounds; float m; float a; } p;
layout(std430, binding = 0) buffer X { float x[]; } v;

void main()
{
    uint step = gl_NumWorkGroups.x * 128u;
    for (uint k = gl_GlobalInvocationID.x; k < p.words; k += step) {
        float x = v.x[p.skip + k];
        for (uint r = 0u; r < p.rounds; r++)
            x = fma(x, p.m, p.a);
        v.x[p.skip + k] = x;
    }
}
