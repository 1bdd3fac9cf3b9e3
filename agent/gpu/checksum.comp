#version 450
// The checksum of gpu.h over `words` 32-bit words from word `skip` of the binding on. first_low and first_high are
// the index of the first word; the last word keeps the bytes of last_mask.
layout(local_size_x = 128) in;
layout(push_constant) uniform Params { uint skip; uint words; uint first_low; uint first_high; uint last_mask; } p;
layout(std430, binding = 0) readonly buffer In { uint w[]; } src;
layout(std430, binding = 1) buffer Sum { uint low; uint high; } sum;
shared uint low[128], high[128];

uint mix1(uint x)
{
    x ^= x >> 16; x *= 0x85ebca6bu; x ^= x >> 13; x *= 0xc2b2ae35u;
    return x ^ (x >> 16);
}

uint mix2(uint x)
{
    x ^= x >> 16; x *= 0x7feb352du; x ^= x >> 15; x *= 0x846ca68bu;
    return x ^ (x >> 16);
}

void main()
{
    uint l = 0u, h = 0u, t = gl_LocalInvocationID.x, step = gl_NumWorkGroups.x * 128u;
    uint a = p.first_high * 0x85ebca77u, b = p.first_high * 0x27d4eb2fu + 0x165667b1u;
    for (uint k = gl_GlobalInvocationID.x; k < p.words; k += step) {
        uint w = src.w[p.skip + k], i = p.first_low + k;
        if (k == p.words - 1u)
            w &= p.last_mask;
        l += mix1(w + i * 0x9e3779b1u + a);
        h += mix2(w ^ (i * 0xc2b2ae3du + b));
    }
    low[t] = l;
    high[t] = h;
    barrier();
    for (uint n = 64u; n > 0u; n >>= 1) {
        if (t < n) {
            low[t] += low[t + n];
            high[t] += high[t + n];
        }
        barrier();
    }
    if (t == 0u) {
        atomicAdd(sum.low, low[0]);
        atomicAdd(sum.high, high[0]);
    }
}
