/* The Vulkan loader's loader, compiled in from Debian's source: libvulkan itself is opened at run time. */
#define VK_NO_PROTOTYPES
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wshadow"
#pragma GCC diagnostic ignored "-Wconversion"
#include <volk.c>
#pragma GCC diagnostic pop
