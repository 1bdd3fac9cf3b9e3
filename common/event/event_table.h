/*
 * The one table of audit event types. A row: stable number, C name, public name, usual severity, class,
 * metadata keys (space separated; a key ending in '?' may be absent). Numbers are stored in audit.db and in
 * agents' spools: never reuse or renumber one, add new ones at the end of their group.
 */
#ifndef STRATA_EVENT_TABLE_H
#define STRATA_EVENT_TABLE_H

#define EVENT_TABLE(X)                                                                                       \
    X(1, DEVICE_LIST, "device.list", INFO, KEEP, "count?")                                                   \
    X(2, DEVICE_INFO, "device.info", INFO, KEEP, "")                                                         \
    X(3, DEVICE_ALLOCATE, "device.allocate", INFO, MUST, "lease? ttl_us?")                                   \
    X(10, MEMORY_ALLOCATE, "memory.allocate", INFO, MUST, "bytes handle? used? quota?")                      \
    X(11, MEMORY_DEALLOCATE, "memory.deallocate", INFO, MUST, "bytes handle?")                               \
    X(12, MEMORY_COPY_TO_DEVICE, "memory.copy_to_device", INFO, KEEP, "bytes handle? us?")                   \
    X(13, MEMORY_COPY_FROM_DEVICE, "memory.copy_from_device", INFO, KEEP, "bytes handle? us?")               \
    X(14, MEMORY_COPY_DEVICE_TO_DEVICE, "memory.copy_device_to_device", INFO, KEEP, "bytes to? us?")         \
    X(20, COMPUTE_EXECUTE, "compute.execute", INFO, KEEP, "kernel? digest? us?")                             \
    X(21, COMPUTE_SYNCHRONIZE, "compute.synchronize", DEBUG, SHED, "us?")                                    \
    X(30, MONITOR_MEMORY, "monitor.memory", DEBUG, SHED, "")                                                 \
    X(31, MONITOR_TEMPERATURE, "monitor.temperature", DEBUG, SHED, "")                                       \
    X(32, MONITOR_POWER, "monitor.power", DEBUG, SHED, "")                                                   \
    X(33, MONITOR_CLOCK, "monitor.clock", DEBUG, SHED, "")                                                   \
    X(40, SECURITY_ACCESS_DENIED, "security.access_denied", WARNING, MUST,                                   \
      "reason permission? rule? policy?")                                                                    \
    X(41, SECURITY_QUOTA_EXCEEDED, "security.quota_exceeded", WARNING, MUST, "bytes used quota where?")      \
    X(42, SECURITY_POLICY_ADDED, "security.policy_added", INFO, MUST,                                        \
      "subject? roles? after? policy? reason?")                                                              \
    X(43, SECURITY_POLICY_REMOVED, "security.policy_removed", INFO, MUST,                                    \
      "subject? before? policy? reason?")                                                                    \
    X(44, SECURITY_POLICY_UPDATED, "security.policy_updated", INFO, MUST,                                    \
      "subject? before? after? policy? reason?")                                                             \
    X(45, SECURITY_HANDSHAKE_REFUSED, "security.handshake_refused", WARNING, MUST, "reason peer? count?")    \
    X(46, SECURITY_TICKET_ISSUED, "security.ticket_issued", INFO, MUST, "ticket bytes? expires_us?")         \
    X(47, SECURITY_TICKET_REFUSED, "security.ticket_refused", WARNING, MUST, "reason ticket?")               \
    X(48, SECURITY_TICKET_REVOKED, "security.ticket_revoked", INFO, MUST, "reason subject?")                 \
    X(49, SECURITY_SESSION_OPENED, "security.session_opened", INFO, MUST, "peer? bytes? policy? reason?")    \
    X(50, SECURITY_SESSION_CLOSED, "security.session_closed", INFO, MUST, "reason?")                         \
    X(51, SECURITY_PROTOCOL_VIOLATION, "security.protocol_violation", WARNING, MUST, "reason peer?")         \
    X(58, SECURITY_USER_ENROLLED, "security.user_enrolled", INFO, MUST, "address? spki? token?")             \
    X(60, SYSTEM_BACKEND_INITIALIZED, "system.backend_initialized", INFO, KEEP, "backend devices? driver?")  \
    X(61, SYSTEM_BACKEND_SHUTDOWN, "system.backend_shutdown", INFO, KEEP, "backend reason?")                 \
    X(62, SYSTEM_DISCOVERY_STARTED, "system.discovery_started", INFO, KEEP, "")                              \
    X(63, SYSTEM_DISCOVERY_COMPLETED, "system.discovery_completed", INFO, KEEP, "devices us?")               \
    X(64, SYSTEM_STARTED, "system.started", INFO, KEEP, "version")                                           \
    X(65, SYSTEM_STOPPED, "system.stopped", INFO, KEEP, "reason?")                                           \
    X(66, SYSTEM_CONFIG_CHANGED, "system.config_changed", WARNING, MUST, "keys?")                            \
    X(67, SYSTEM_RECOVERED, "system.recovered", WARNING, KEEP, "jobs? outbox? reason?")                      \
    X(68, SYSTEM_WORKER_DIED, "system.worker_died", ERROR, KEEP, "pid? signal? bytes?")                      \
    X(69, SYSTEM_DISK_FULL, "system.disk_full", CRITICAL, KEEP, "path")                                      \
    X(80, NODE_ENROLLED, "node.enrolled", INFO, MUST, "address? spki? token?")                               \
    X(81, NODE_CONNECTED, "node.connected", INFO, KEEP, "address? version? incarnation?")                    \
    X(82, NODE_DISCONNECTED, "node.disconnected", WARNING, KEEP, "reason?")                                  \
    X(83, NODE_SUSPECT, "node.suspect", WARNING, KEEP, "silent_us?")                                         \
    X(84, NODE_DEAD, "node.dead", ERROR, MUST, "silent_us?")                                                 \
    X(85, NODE_RECOVERED, "node.recovered", INFO, KEEP, "down_us?")                                          \
    X(86, NODE_DRAINED, "node.drained", INFO, MUST, "layers?")                                               \
    X(87, NODE_RESUMED, "node.resumed", INFO, MUST, "")                                                      \
    X(88, NODE_FORGOTTEN, "node.forgotten", INFO, MUST, "reason?")                                           \
    X(89, NODE_TOKEN_CREATED, "node.token_created", INFO, MUST, "token expires_us? uses?")                   \
    X(90, NODE_TOKEN_REVOKED, "node.token_revoked", INFO, MUST, "token")                                     \
    X(91, NODE_DEVICES_CHANGED, "node.devices_changed", INFO, MUST, "added? removed? devices?")              \
    X(97, NODE_ENROLL_REFUSED, "node.enroll_refused", WARNING, MUST, "reason peer? token? count?")           \
    X(98, NODE_DUPLICATE, "node.duplicate", CRITICAL, MUST, "reason peer?")                                  \
    X(110, CERTIFICATE_ISSUED, "certificate.issued", INFO, MUST, "serial subject expires_us?")               \
    X(111, CERTIFICATE_RENEWED, "certificate.renewed", INFO, MUST, "serial subject? expires_us?")            \
    X(112, CERTIFICATE_ROTATED, "certificate.rotated", INFO, MUST, "serial? subject?")                       \
    X(113, CERTIFICATE_REVOKED, "certificate.revoked", WARNING, MUST, "serial? subject? reason?")            \
    X(114, CERTIFICATE_PINNED, "certificate.pinned", INFO, MUST, "spki subject?")                            \
    X(115, CERTIFICATE_REFUSED, "certificate.refused", WARNING, MUST, "reason serial? peer?")                \
    X(116, CERTIFICATE_CA_ROTATED, "certificate.ca_rotated", WARNING, MUST, "serial? old?")                  \
    X(117, CERTIFICATE_EXPIRING, "certificate.expiring", WARNING, MUST, "serial? expires_us")                \
    X(118, CERTIFICATE_RESTORED, "certificate.restored", WARNING, MUST, "serial? subject? reason?")          \
    X(119, CERTIFICATE_UNPINNED, "certificate.unpinned", WARNING, MUST, "spki subject?")                     \
    X(130, JOB_SUBMITTED, "job.submitted", INFO, MUST, "model? layers? bytes? goal? plan?")                  \
    X(131, JOB_QUEUED, "job.queued", INFO, MUST, "reason?")                                                  \
    X(132, JOB_RESERVED, "job.reserved", INFO, MUST, "plan? bytes?")                                         \
    X(133, JOB_LOADING, "job.loading", INFO, MUST, "layers? reason?")                                        \
    X(134, JOB_READY, "job.ready", INFO, MUST, "us? reason?")                                                \
    X(135, JOB_MIGRATING, "job.migrating", INFO, MUST, "layers? reason?")                                    \
    X(136, JOB_PAUSED, "job.paused", WARNING, MUST, "reason?")                                               \
    X(137, JOB_DEGRADED, "job.degraded", ERROR, MUST, "layers? reason?")                                     \
    X(138, JOB_PREEMPTED, "job.preempted", WARNING, MUST, "by? reason?")                                     \
    X(139, JOB_RELEASING, "job.releasing", INFO, MUST, "reason?")                                            \
    X(140, JOB_RELEASED, "job.released", INFO, MUST, "bytes? reason?")                                       \
    X(141, JOB_FAILED, "job.failed", ERROR, MUST, "reason?")                                                 \
    X(142, JOB_CANCELLED, "job.cancelled", INFO, MUST, "reason?")                                            \
    X(143, JOB_REBALANCED, "job.rebalanced", INFO, MUST, "layers? bytes? gain? reason?")                     \
    X(160, PLAN_CREATED, "plan.created", INFO, MUST, "plan? goal? solver? objective? bound? gap? us?")       \
    X(161, PLAN_REJECTED, "plan.rejected", WARNING, KEEP, "reason")                                          \
    X(162, PLAN_CALIBRATED, "plan.calibrated", INFO, MUST, "layers memory? compute? predicted? measured?")   \
    X(170, LAYER_LOADED, "layer.loaded", INFO, MUST, "layer bytes? us?")                                     \
    X(171, LAYER_VERIFIED, "layer.verified", INFO, KEEP, "layer checksum?")                                  \
    X(172, LAYER_RELEASED, "layer.released", INFO, MUST, "layer bytes?")                                     \
    X(173, LAYER_FETCHED, "layer.fetched", INFO, KEEP, "layer bytes? from? us?")                             \
    X(174, LAYER_MIGRATED, "layer.migrated", INFO, MUST, "layer from to bytes? us?")                         \
    X(175, LAYER_FAILED, "layer.failed", ERROR, MUST, "layer reason")                                        \
    X(190, THERMAL_WARNED, "thermal.warned", WARNING, KEEP, "celsius? limit? seconds?")                      \
    X(191, THERMAL_DERATED, "thermal.derated", WARNING, MUST, "factor celsius?")                             \
    X(192, THERMAL_PAUSED, "thermal.paused", WARNING, MUST, "celsius?")                                      \
    X(193, THERMAL_RESUMED, "thermal.resumed", INFO, MUST, "celsius?")                                       \
    X(194, THERMAL_MOVED, "thermal.moved", WARNING, MUST, "layers? to?")                                     \
    X(195, THERMAL_SET, "thermal.set", INFO, MUST, "limit? mode?")                                           \
    X(210, NET_MEASURED, "net.measured", DEBUG, SHED, "to rtt_us? bps? loss?")                               \
    X(211, NET_DEGRADED, "net.degraded", WARNING, KEEP, "to rtt_us? bps? loss?")                             \
    X(212, BENCH_COMPLETED, "bench.completed", INFO, KEEP, "area? cases? us?")                               \
    X(213, NET_TOPOLOGY, "net.topology_measured", INFO, KEEP, "pairs failed? rounds? us? reason?")           \
    X(214, NET_DISPUTED, "net.disputed", WARNING, KEEP, "to reason")                                         \
    X(230, AUDIT_CHECKPOINT, "audit.checkpoint", INFO, KEEP, "size head")                                    \
    X(231, AUDIT_LOSS, "audit.loss", ERROR, KEEP, "dropped since_us?")                                       \
    X(232, AUDIT_EXPORTED, "audit.exported", INFO, MUST, "rows? since_us? until_us?")                        \
    X(233, AUDIT_QUERIED, "audit.queried", INFO, KEEP, "rows?")                                              \
    X(234, AUDIT_VERIFIED, "audit.verified", INFO, KEEP, "batches rows")                                     \
    X(235, AUDIT_BROKEN, "audit.broken", CRITICAL, MUST, "first last")                                       \
    X(236, AUDIT_SEALED, "audit.sealed", INFO, KEEP, "segment first last file sha256 rows bytes? us?")       \
    X(237, AUDIT_RETIRED, "audit.retired", WARNING, KEEP, "segment first last file")                         \
    X(238, AUDIT_CLOCK_STEPPED, "audit.clock_stepped", WARNING, KEEP, "back_us")                             \
    X(239, AUDIT_SPOOL_TAKEN, "audit.spool_taken", DEBUG, SHED, "first last rows")                           \
    X(240, AUDIT_SPOOL_REFUSED, "audit.spool_refused", ERROR, MUST, "reason first? expected?")               \
    X(241, AUDIT_FILE_REPLACED, "audit.file_replaced", CRITICAL, KEEP, "since_us")

#endif
