/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Connections that packets from outside the node belong to. Each has two
 * entries, one for either way, found by what its packets look like as they come;
 * what they become is in the entry, and read backwards that is the key of the
 * other. The daemon's side is in ebpf/packet_flows.go. */
#ifndef MOOT_CONNTRACK_H
#define MOOT_CONNTRACK_H

#include "maps.h"

struct flow_key {
	struct addr src;
	struct addr dst;
	__be16 sport;
	__be16 dport;
	__u8 proto;
	__u8 pad[3];
};

enum flow_flags {
	FLOW_REPLY = 1 << 0,  /* from the backend */
	FLOW_REMOTE = 1 << 1, /* the backend is elsewhere: both ways are redirected */
	FLOW_REFUSE = 1 << 2, /* to a port of this node that nobody can open */
};

enum flow_state {
	STATE_REPLIED = 1 << 0,
	STATE_CLIENT_FIN = 1 << 1,
	STATE_BACKEND_FIN = 1 << 2,
	STATE_RESET = 1 << 3,
};

struct flow {
	struct addr src; /* what source and destination become */
	struct addr dst;
	__be16 sport;
	__be16 dport;
	__u32 ifindex; /* where the client came in last */
	__u64 seen_ns; /* CLOCK_MONOTONIC, at most a second old while packets come either way */
	__u32 id;      /* of the service */
	__u8 flags;
	__u8 state;
	__u16 syn; /* of the client's SYN: tells it sent again from another; 0: none seen */
};

/* Two entries a connection. The least recently used goes when it is full. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, PER_GIB(32768));
	__type(key, struct flow_key);
	__type(value, struct flow);
} moot_flows SEC(".maps");

/* The ports of a packet that comes in fragments, which only its first has. */
struct fragment_key {
	struct addr src;
	struct addr dst;
	__u32 id;
	__u8 proto;
	__u8 pad[3];
};

struct ports {
	__be16 src;
	__be16 dst;
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, struct fragment_key);
	__type(value, struct ports);
} moot_fragments SEC(".maps");

/* A device packets come in by, and the addresses this node speaks from when it
 * sends on by it what came from a client. Zero: it has none of the family. */
struct device {
	struct addr ipv4;
	struct addr ipv6;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 256);
	__type(key, __u32);
	__type(value, struct device);
} moot_devices SEC(".maps");

/* Another CPU may have seen a later packet than the one at hand. */
static __always_inline __u64 quiet(__u64 now, __u64 seen_ns)
{
	return now > seen_ns ? now - seen_ns : 0;
}

/* How long a connection is kept without a packet, as the kernel's own tracking
 * does under kube-proxy; a half-closed one may still carry a long answer. */
static __always_inline __u64 lifetime(const struct flow *f, __u8 proto)
{
	const __u8 closed = STATE_CLIENT_FIN | STATE_BACKEND_FIN;

	if (proto != IPPROTO_TCP)
		return (f->state & STATE_REPLIED) ? 120 * SECOND : 30 * SECOND;
	if (f->state & STATE_RESET)
		return 10 * SECOND;
	if ((f->state & closed) == closed)
		return 30 * SECOND;
	if (f->state & closed)
		return 3600 * SECOND;
	return (f->state & STATE_REPLIED) ? 86400 * SECOND : 60 * SECOND;
}

static __always_inline int over(const struct flow *f)
{
	const __u8 closed = STATE_CLIENT_FIN | STATE_BACKEND_FIN;

	return (f->state & STATE_RESET) || (f->state & closed) == closed;
}

static __always_inline void other_way(const struct flow_key *key, const struct flow *f, struct flow_key *other)
{
	other->src = f->dst;
	other->dst = f->src;
	other->sport = f->dport;
	other->dport = f->sport;
	other->proto = key->proto;
	other->pad[0] = other->pad[1] = other->pad[2] = 0;
}

#endif
