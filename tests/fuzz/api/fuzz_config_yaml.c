/* Both daemons' YAML readers on arbitrary bytes: an error with a sentence, or a configuration that can be
 * freed. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "agent/config.h"
#include "coordinator/config/config.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char path[64];
    int fd = memfd_create("config", MFD_CLOEXEC);
    if (fd < 0 || write(fd, data, size) != (ssize_t)size)
        abort();
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    struct coord_config c;
    struct agent_config a;
    struct err e = {0};
    if (coord_config_read(&c, path, &e) == ST_OK)
        coord_config_fini(&c);
    else if (!e.text[0])
        abort();
    e = (struct err){0};
    if (agent_config_read(&a, path, &e) == ST_OK)
        agent_config_fini(&a);
    else if (!e.text[0])
        abort();
    close(fd);
    return 0;
}
