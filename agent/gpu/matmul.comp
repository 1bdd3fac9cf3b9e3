#version 450
// y[k][first + r] = sum over c of w[r][c] x[k][c], for `count` rows and n vectors: one group a row and tile of up to 4
// vectors. type as in enum gpu_dtype. The skips are in words from the start of each binding.
layout(local_size_x = 64) in;
layout(push_constant) uniform Params {
    uint y_skip; uint w_skip; uint x_skip; uint w_byte; uint first; uint count; uint rows; uint cols; uint n; uint type;
} p;
layout(std430, binding = 0) buffer Y { float v[]; } y;
layout(std430, binding = 1) readonly buffer W { uint v[]; } w;
layout(std430, binding = 2) readonly buffer X { float v[]; } x;
shared vec4 part[64];

uint half_bits(uint byte) // at an even byte
{
    return (w.v[p.w_skip + (byte >> 2)] >> ((byte & 2u) * 8u)) & 0xffffu;
}

float half_at(uint byte)
{
    return unpackHalf2x16(half_bits(byte)).x;
}

uint byte_at(uint byte)
{
    return (w.v[p.w_skip + (byte >> 2)] >> ((byte & 3u) * 8u)) & 0xffu;
}

vec4 x_at(uint c, uint k)
{
    vec4 r = vec4(x.v[p.x_skip + k * p.cols + c], 0.0, 0.0, 0.0);
    if (k + 1u < p.n) r.y = x.v[p.x_skip + (k + 1u) * p.cols + c];
    if (k + 2u < p.n) r.z = x.v[p.x_skip + (k + 2u) * p.cols + c];
    if (k + 3u < p.n) r.w = x.v[p.x_skip + (k + 3u) * p.cols + c];
    return r;
}

vec4 dot_row(uint r, uint k, uint t)
{
    vec4 s = vec4(0.0);
    if (p.type == 0u) {
        uint base = p.w_skip + r * p.cols;
        for (uint c = t; c < p.cols; c += 64u)
            s += uintBitsToFloat(w.v[base + c]) * x_at(c, k);
    } else if (p.type == 1u) {
        uint base = p.w_byte + r * p.cols * 2u;
        for (uint c = t; c < p.cols; c += 64u)
            s += half_at(base + c * 2u) * x_at(c, k);
    } else if (p.type == 2u) {
        uint blocks = p.cols / 32u, base = p.w_byte + r * blocks * 34u;
        for (uint c = t; c < p.cols; c += 64u) {
            uint b = base + (c / 32u) * 34u;
            int q = int(byte_at(b + 2u + c % 32u) << 24) >> 24;
            s += half_at(b) * float(q) * x_at(c, k);
        }
    } else {
        uint blocks = p.cols / 32u, base = p.w_byte + r * blocks * 18u;
        for (uint c = t; c < p.cols; c += 64u) {
            uint b = base + (c / 32u) * 18u, j = c % 32u, q = byte_at(b + 2u + (j & 15u));
            s += half_at(b) * float(int(j < 16u ? q & 15u : q >> 4) - 8) * x_at(c, k);
        }
    }
    return s;
}

void main()
{
    uint t = gl_LocalInvocationID.x, k = gl_WorkGroupID.y * 4u;
    for (uint r = gl_WorkGroupID.x; r < p.count; r += gl_NumWorkGroups.x) {
        part[t] = dot_row(r, k, t);
        barrier();
        for (uint n = 32u; n > 0u; n >>= 1) {
            if (t < n)
                part[t] += part[t + n];
            barrier();
        }
        if (t < 4u && k + t < p.n)
            y.v[p.y_skip + (k + t) * p.rows + p.first + r] = part[0][t];
        barrier();
    }
}
