// The kernels of exec.h for NVIDIA devices, in the part of OpenCL C that is also C: clang lowers it to PTX that every
// driver since 2018 takes (deploy/ptx writes cuda_kernels.ptx.inc from it), and the tests' stand-in for the driver
// compiles it for the host, threads and barriers included. The includer may define KERNEL and the rest.
#ifndef KERNEL
#define KERNEL kernel
#define GLOBAL global
#define SHARED local
#define TID ((uint)__nvvm_read_ptx_sreg_tid_x())
#define NTID ((uint)__nvvm_read_ptx_sreg_ntid_x())
#define BLOCK ((uint)__nvvm_read_ptx_sreg_ctaid_x())
#define BLOCKS ((uint)__nvvm_read_ptx_sreg_nctaid_x())
#define BLOCK_Y ((uint)__nvvm_read_ptx_sreg_ctaid_y())
#define BARRIER() __syncthreads()
#define FMA(x, m, a) __nvvm_fma_rn_f(x, m, a)
#define AS_FLOAT(u) as_float(u)
#endif

#ifndef THREADS
#define THREADS 128u // as the backend starts them
#endif

static uint mix1(uint x)
{
    x ^= x >> 16;
    x *= 0x85ebca6bu;
    x ^= x >> 13;
    x *= 0xc2b2ae35u;
    return x ^ x >> 16;
}

static uint mix2(uint x)
{
    x ^= x >> 16;
    x *= 0x7feb352du;
    x ^= x >> 15;
    x *= 0x846ca68bu;
    return x ^ x >> 16;
}

// Each block leaves its part of the two halves of the checksum of `words` words; the last one keeps the bytes of
// last_mask. The host adds the parts up.
KERNEL void strata_checksum(GLOBAL const uint *w, ulong words, uint last_mask, GLOBAL uint *sum)
{
    SHARED uint low[THREADS], high[THREADS];
    uint l = 0, h = 0, t = TID;
    for (ulong i = (ulong)BLOCK * THREADS + t; i < words; i += (ulong)BLOCKS * THREADS) {
        uint v = w[i], lo = (uint)i, hi = (uint)(i >> 32);
        if (i == words - 1)
            v &= last_mask;
        l += mix1(v + lo * 0x9e3779b1u + hi * 0x85ebca77u);
        h += mix2(v ^ (lo * 0xc2b2ae3du + hi * 0x27d4eb2fu + 0x165667b1u));
    }
    low[t] = l;
    high[t] = h;
    BARRIER();
    for (uint n = THREADS / 2; n > 0; n >>= 1) {
        if (t < n) {
            low[t] += low[t + n];
            high[t] += high[t + n];
        }
        BARRIER();
    }
    if (t == 0) {
        sum[2 * BLOCK] = low[0];
        sum[2 * BLOCK + 1] = high[0];
    }
}

// x = x * m + a, `rounds` times.
KERNEL void strata_axpb(GLOBAL float *x, ulong n, uint rounds, float m, float a)
{
    for (ulong i = (ulong)BLOCK * NTID + TID; i < n; i += (ulong)BLOCKS * NTID) {
        float v = x[i];
        for (uint r = 0; r < rounds; r++)
            v = FMA(v, m, a);
        x[i] = v;
    }
}

// 8 chains of multiply-adds a thread, 16 operations a round; the sum is stored so that none is dropped.
KERNEL void strata_fma_rate(GLOBAL float *out, uint rounds, float m, float a)
{
    float v0 = (float)TID, v1 = v0 + 1, v2 = v0 + 2, v3 = v0 + 3, v4 = v0 + 4, v5 = v0 + 5, v6 = v0 + 6, v7 = v0 + 7;
    for (uint r = 0; r < rounds; r++) {
        v0 = FMA(v0, m, a), v1 = FMA(v1, m, a), v2 = FMA(v2, m, a), v3 = FMA(v3, m, a);
        v4 = FMA(v4, m, a), v5 = FMA(v5, m, a), v6 = FMA(v6, m, a), v7 = FMA(v7, m, a);
    }
    out[(ulong)BLOCK * NTID + TID] = ((v0 + v1) + (v2 + v3)) + ((v4 + v5) + (v6 + v7));
}

static float half_at(GLOBAL const uchar *p)
{
    uint h = (uint)p[0] | (uint)p[1] << 8, e = h >> 10 & 31u, f = h & 0x3ffu;
    float v = e == 0 ? (float)f * 5.9604644775390625e-8f : AS_FLOAT((e == 31 ? 255u << 23 : (e + 112) << 23) | f << 13);
    return h & 0x8000u ? -v : v;
}

// Weight c of a row.
static float weight(GLOBAL const uchar *row, uint c, uint type)
{
    if (type == 0)
        return ((GLOBAL const float *)row)[c];
    if (type == 1)
        return half_at(row + 2ul * c);
    if (type == 2) {
        GLOBAL const uchar *b = row + (ulong)(c / 32) * 34;
        return half_at(b) * (float)(signed char)b[2 + c % 32];
    }
    GLOBAL const uchar *b = row + (ulong)(c / 32) * 18;
    uint j = c % 32, q = b[2 + (j & 15u)];
    return half_at(b) * (float)((int)(j < 16 ? q & 15u : q >> 4) - 8);
}

// y[k][r] = sum over c of w[r][c] x[k][c]: one block a row and vector.
KERNEL void strata_matmul(GLOBAL float *y, GLOBAL const uchar *w, GLOBAL const float *x, ulong row_bytes, uint rows,
                          uint cols, uint type)
{
    SHARED float part[THREADS];
    uint t = TID;
    ulong k = BLOCK_Y;
    for (uint r = BLOCK; r < rows; r += BLOCKS) {
        float s = 0;
        for (uint c = t; c < cols; c += THREADS)
            s += weight(w + r * row_bytes, c, type) * x[k * cols + c];
        part[t] = s;
        BARRIER();
        for (uint n = THREADS / 2; n > 0; n >>= 1) {
            if (t < n)
                part[t] += part[t + n];
            BARRIER();
        }
        if (t == 0)
            y[k * rows + r] = part[0];
        BARRIER();
    }
}
