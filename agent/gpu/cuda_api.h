/*
 * The part of the CUDA Driver API that is used here, as its ABI has been since CUDA 11: own declarations,
 * because NVIDIA's header is not free and a build must not need it. Names carry their version suffixes
 * explicitly. tests/unit/gpu/test_cuda_abi.c holds them against cuda.h where that is installed.
 */
#ifndef STRATA_GPU_CUDA_API_H
#define STRATA_GPU_CUDA_API_H

#include <stddef.h>

typedef int cu_device;
typedef unsigned long long cu_ptr;
typedef struct CUctx_st *cu_context;
typedef struct CUstream_st *cu_stream;
typedef struct CUevent_st *cu_event;
typedef struct CUmod_st *cu_module;
typedef struct CUfunc_st *cu_function;
typedef struct CUmemPoolHandle_st *cu_pool;
typedef struct {
    unsigned char bytes[16];
} cu_uuid;

enum {
    CU_OK = 0,
    CU_E_INVALID_VALUE = 1,
    CU_E_OUT_OF_MEMORY = 2,
    CU_E_NOT_INITIALIZED = 3,
    CU_E_DEINITIALIZED = 4,
    CU_E_STUB_LIBRARY = 34,
    CU_E_DEVICE_UNAVAILABLE = 46,
    CU_E_NO_DEVICE = 100,
    CU_E_INVALID_IMAGE = 200,
    CU_E_INVALID_CONTEXT = 201,
    CU_E_NO_BINARY_FOR_GPU = 209,
    CU_E_ECC_UNCORRECTABLE = 214,
    CU_E_INVALID_PTX = 218,
    CU_E_UNSUPPORTED_PTX = 222,
    CU_E_NOT_FOUND = 500,
    CU_E_NOT_READY = 600,
    CU_E_ILLEGAL_ADDRESS = 700,
    CU_E_LAUNCH_OUT_OF_RESOURCES = 701,
    CU_E_LAUNCH_TIMEOUT = 702,
    CU_E_CONTEXT_IS_DESTROYED = 709,
    CU_E_ASSERT = 710,
    CU_E_ALREADY_REGISTERED = 712,
    CU_E_HARDWARE_STACK = 714,
    CU_E_ILLEGAL_INSTRUCTION = 715,
    CU_E_MISALIGNED_ADDRESS = 716,
    CU_E_INVALID_ADDRESS_SPACE = 717,
    CU_E_INVALID_PC = 718,
    CU_E_LAUNCH_FAILED = 719,
    CU_E_NOT_PERMITTED = 800,
    CU_E_NOT_SUPPORTED = 801,
    CU_E_SYSTEM_NOT_READY = 802,
    CU_E_DRIVER_MISMATCH = 803,
    CU_E_COMPAT_NOT_SUPPORTED = 804,
    CU_E_UNKNOWN = 999,
};
enum {
    CU_ATTR_CLOCK_KHZ = 13,
    CU_ATTR_PROCESSORS = 16,
    CU_ATTR_INTEGRATED = 18,
    CU_ATTR_MAJOR = 75,
    CU_ATTR_MINOR = 76,
    CU_ATTR_MEMORY_POOLS = 115
};
enum {
    CU_SCHED_BLOCKING = 4,
    CU_STREAM_NON_BLOCKING = 1,
    CU_EVENT_DISABLE_TIMING = 2,
    CU_POOL_RELEASE_THRESHOLD = 4
};

/* X(name in libcuda, our name, required, arguments) */
#define CUDA_FUNCTIONS(X)                                                                                    \
    X(cuInit, init, 1, (unsigned))                                                                           \
    X(cuDriverGetVersion, driver_version, 1, (int *))                                                        \
    X(cuDeviceGetCount, count, 1, (int *))                                                                   \
    X(cuDeviceGet, device, 1, (cu_device *, int))                                                            \
    X(cuDeviceGetName, name, 1, (char *, int, cu_device))                                                    \
    X(cuDeviceTotalMem_v2, total, 1, (size_t *, cu_device))                                                  \
    X(cuDeviceGetAttribute, attribute, 1, (int *, int, cu_device))                                           \
    X(cuDeviceGetUuid, uuid, 1, (cu_uuid *, cu_device))                                                      \
    X(cuDevicePrimaryCtxSetFlags_v2, primary_flags, 1, (cu_device, unsigned))                                \
    X(cuDevicePrimaryCtxRetain, primary_retain, 1, (cu_context *, cu_device))                                \
    X(cuDevicePrimaryCtxRelease_v2, primary_release, 1, (cu_device))                                         \
    X(cuCtxSetCurrent, set_current, 1, (cu_context))                                                         \
    X(cuMemAlloc_v2, alloc, 1, (cu_ptr *, size_t))                                                           \
    X(cuMemFree_v2, free, 1, (cu_ptr))                                                                       \
    X(cuMemHostAlloc, host_alloc, 1, (void **, size_t, unsigned))                                            \
    X(cuMemFreeHost, host_free, 1, (void *))                                                                 \
    X(cuMemHostRegister_v2, host_register, 1, (void *, size_t, unsigned))                                    \
    X(cuMemHostUnregister, host_unregister, 1, (void *))                                                     \
    X(cuMemcpyHtoDAsync_v2, h2d, 1, (cu_ptr, const void *, size_t, cu_stream))                               \
    X(cuMemcpyDtoHAsync_v2, d2h, 1, (void *, cu_ptr, size_t, cu_stream))                                     \
    X(cuMemcpyDtoDAsync_v2, d2d, 1, (cu_ptr, cu_ptr, size_t, cu_stream))                                     \
    X(cuMemsetD32Async, fill, 1, (cu_ptr, unsigned, size_t, cu_stream))                                      \
    X(cuStreamCreate, stream_new, 1, (cu_stream *, unsigned))                                                \
    X(cuStreamDestroy_v2, stream_free, 1, (cu_stream))                                                       \
    X(cuEventCreate, event_new, 1, (cu_event *, unsigned))                                                   \
    X(cuEventDestroy_v2, event_free, 1, (cu_event))                                                          \
    X(cuEventRecord, event_record, 1, (cu_event, cu_stream))                                                 \
    X(cuEventQuery, event_query, 1, (cu_event))                                                              \
    X(cuModuleLoadDataEx, module_load, 1, (cu_module *, const void *, unsigned, int *, void **))             \
    X(cuModuleUnload, module_free, 1, (cu_module))                                                           \
    X(cuModuleGetFunction, function, 1, (cu_function *, cu_module, const char *))                            \
    X(cuLaunchKernel, launch, 1,                                                                             \
      (cu_function, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, cu_stream,         \
       void **, void **))                                                                                    \
    X(cuMemcpyPeerAsync, peer, 0, (cu_ptr, cu_context, cu_ptr, cu_context, size_t, cu_stream))               \
    X(cuMemAllocAsync, alloc_async, 0, (cu_ptr *, size_t, cu_stream))                                        \
    X(cuMemFreeAsync, free_async, 0, (cu_ptr, cu_stream))                                                    \
    X(cuDeviceGetDefaultMemPool, default_pool, 0, (cu_pool *, cu_device))                                    \
    X(cuMemPoolSetAttribute, pool_attribute, 0, (cu_pool, int, void *))

struct cuda_api {
    void *library;
#define X(symbol, field, required, args) int(*field) args;
    CUDA_FUNCTIONS(X)
#undef X
};

#endif
