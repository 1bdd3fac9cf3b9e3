/* Any bytes as a ticket: never a crash, never a pass; what decodes must be within its bounds. */
#include <stdlib.h>
#include <string.h>

#include "common/base/str.h"
#include "common/ticket/ticket.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const uint8_t pub[TICKET_PUB_LEN] = {
        0xd7, 0x5a, 0x98, 0x01, 0x82, 0xb1, 0x0a, 0xb7, 0xd5, 0x4b, 0xfe, 0xd3, 0xc9, 0x64, 0x07, 0x3a,
        0x0e, 0xe1, 0x72, 0xf3, 0xda, 0xa6, 0x23, 0x25, 0xaf, 0x02, 0x1a, 0x68, 0xf7, 0x07, 0x51, 0x1a};
    struct ticket t;
    struct err e;
    if (ticket_decode(data, size, &t, &e) == ST_OK) {
        if (!str_ident_ok(t.node, TICKET_NODE_MAX) || strlen(t.resource) > TICKET_RESOURCE_MAX ||
            t.expires_us <= t.issued_us || t.expires_us - t.issued_us > TICKET_MAX_LIFE_US)
            abort();
        const struct ticket_grant *g = &t.grant;
        if (t.purpose == TICKET_DEVICE
                ? !g->n_devices || g->n_devices > TICKET_DEVICES_MAX || !g->permissions || !*g->principal ||
                      !memchr(g->principal, 0, sizeof g->principal)
                : ticket_grants(&t, PERM_DEVICE_LIST) || g->n_devices || g->permissions)
            abort();
        (void)ticket_device_ok(&t, "cpu:0");
        if (ticket_verify(pub, data, size, t.issued_us, t.node, t.holder, &t, &e) == ST_OK)
            abort();
    }
    return 0;
}
