/*
 * The way back from a thread to the loop: a lock-free multi-producer list drained through an eventfd. Threads
 * post items; the loop watches port_fd() for reading and calls port_drain(), which runs each item's `run` in
 * posting order. An item is caller-allocated and belongs to the port from post until its run begins.
 */
#ifndef STRATA_BASE_PORT_H
#define STRATA_BASE_PORT_H

#include "common/base/status.h"

struct port_item {
    void (*run)(struct port_item *it); /* loop thread; may free the item */
    struct port_item *next;
};
struct port;

int port_new(struct port **out) ST_CHECK;
void port_free(struct port *p); /* no producer may be left; undrained items are not run */
int port_fd(const struct port *p);
void port_post(struct port *p, struct port_item *it); /* any thread */
/* Several with one wake-up: linked through `next` from the last to run to the first. Any thread. */
void port_post_chain(struct port *p, struct port_item *last, struct port_item *first);
void port_drain(struct port *p); /* loop thread */

#endif
