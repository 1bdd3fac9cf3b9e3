/* Multi-producer list with an eventfd: only the push that finds the list empty writes the eventfd. */
#include "common/base/port.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

struct port {
    _Atomic(struct port_item *) head;
    int efd;
};

int port_new(struct port **out)
{
    struct port *p = calloc(1, sizeof *p);
    if (!p)
        return ST_ENOMEM;
    p->efd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (p->efd < 0) {
        int rc = status_from_errno(errno);
        free(p);
        return rc;
    }
    *out = p;
    return ST_OK;
}

void port_free(struct port *p)
{
    if (!p)
        return;
    close(p->efd);
    free(p);
}

int port_fd(const struct port *p)
{
    return p->efd;
}

void port_post(struct port *p, struct port_item *it)
{
    port_post_chain(p, it, it);
}

void port_post_chain(struct port *p, struct port_item *last, struct port_item *first)
{
    struct port_item *h = atomic_load(&p->head);
    do
        first->next = h;
    while (!atomic_compare_exchange_weak(&p->head, &h, last));
    /* After the exchange the items may already be gone: only h, which is a value, is looked at. */
    if (!h) {
        ssize_t w = write(p->efd, &(uint64_t){1}, 8);
        (void)w; /* an eventfd at its maximum is readable, which is all we want */
    }
}

void port_drain(struct port *p)
{
    uint64_t n;
    ssize_t r = read(p->efd, &n, 8); /* before the exchange, or a wake-up could be lost */
    (void)r;
    struct port_item *it = atomic_exchange(&p->head, NULL), *fifo = NULL;
    while (it) {
        struct port_item *next = it->next;
        it->next = fifo;
        fifo = it;
        it = next;
    }
    while (fifo) {
        struct port_item *next = fifo->next;
        fifo->run(fifo);
        fifo = next;
    }
}
