/*
 * A stand-in for libcuda.so.1 that tests load by path: two devices whose memory is the host's, the kernels
 * compiled from the same source as the PTX, and faults on demand. It proves error paths and bookkeeping; that
 * the driver and the PTX behave so on hardware it cannot prove.
 */
#ifndef STRATA_TESTS_FAKE_CUDA_H
#define STRATA_TESTS_FAKE_CUDA_H

struct fake_cuda {
    char fail[40];  /* name of the function that fails; "" = any but frees */
    long countdown; /* calls until it does; 0 = never */
    int code;       /* what it then returns */
    int sticky;     /* and everything after it */
    int hang;       /* events never complete */
    long fired;     /* faults given so far */
    /* what is alive: */
    long allocations, pinned, registered, streams, events, modules, contexts;
    long bad; /* calls that a driver would have punished: out of bounds, double frees, no context */
};

extern struct fake_cuda fake_cuda;

#endif
