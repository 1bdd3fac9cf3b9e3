#ifndef STRATA_TESTS_FAKE_NVML_H
#define STRATA_TESTS_FAKE_NVML_H

struct fake_nvml {
    volatile int hang, lost, no_driver, opened, asked;
};
extern struct fake_nvml fake_nvml;

#endif
