/* The commands of `strata net`, and what netcmd.c (what is known) and netprobe.c (what is done) share. */
#ifndef STRATA_CTL_NETCMD_H
#define STRATA_CTL_NETCMD_H

#include "coordinator/ctl/ctl.h"
#include "strata/v1/net.pb-c.h"

int ctl_net_matrix(struct ctl *c, int argc, char **argv);
int ctl_net_topo(struct ctl *c, int argc, char **argv);
int ctl_net_bottleneck(struct ctl *c, int argc, char **argv);
int ctl_net_probe(struct ctl *c, int argc, char **argv);
int ctl_net_estimate(struct ctl *c, int argc, char **argv);
int ctl_net_history(struct ctl *c, int argc, char **argv);
int ctl_net_doctor(struct ctl *c, int argc, char **argv);

/* ---- shared ---- */

json_t *net_link_json(const Strata__V1__NetLink *l);
void net_rate_text(char out[24], double bytes_per_s); /* "941 Mbit/s" */
/* A call of service Net; 0, or an exit code after saying why. */
int net_call(struct ctl *c, const char *method, const ProtobufCMessage *req, ProtobufCMessage **resp);

#endif
