/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* What the programs and the daemon share. The daemon's side of each layout is
 * in ebpf/maps.go; a test compares the two by BTF. All addresses are 16 bytes
 * in network order, IPv4 as ::ffff:a.b.c.d; ports are in network order. */
#ifndef MOOT_MAPS_H
#define MOOT_MAPS_H

#include <linux/bpf.h>
#include <linux/types.h>
#include <bpf/bpf_helpers.h>

#define SECOND 1000000000ULL

struct addr {
	__be32 word[4];
};

/* Where a connection comes from decides who serves it: a socket on this node
 * (internalTrafficPolicy), or a packet from elsewhere (externalTrafficPolicy). */
enum side {
	SIDE_INSIDE = 0,
	SIDE_OUTSIDE = 1,
};

/* A frontend. The unspecified address stands for every address of this node. */
struct frontend_key {
	struct addr addr;
	__be16 port;
	__u8 proto; /* IPPROTO_TCP or IPPROTO_UDP */
	__u8 side;
};

enum service_flags {
	SERVICE_DROP = 1 << 0,    /* with no slots: say nothing, do not refuse */
	SERVICE_SOURCES = 1 << 1, /* only clients in the map sources are let in */
	SERVICE_NEAR = 1 << 2,    /* all backends lie in the frontend, none in the map slots */
};

struct service {
	__u32 id;         /* stays while the frontend exists: key of affinity, members, sources */
	__u32 set;        /* first half of the slots' keys; a change of backends takes a new one */
	__u32 slots;      /* how many, in the Maglev table if there is one; 0: there is no backend */
	__u32 affinity_s; /* seconds a client stays with its backend; 0: none */
	__u32 flags;
};

/* One slot a backend. For SIDE_INSIDE one is taken at random; for SIDE_OUTSIDE
 * a Maglev table says which, by the hash of the client, the same on every node. */
struct slot_key {
	__u32 set;
	__u32 index;
};

enum backend_flags {
	BACKEND_LOCAL = 1 << 0,  /* runs on this node */
	BACKEND_DRAINS = 1 << 1, /* of a member: takes nothing new */
};

struct backend {
	struct addr addr;
	__be16 port;
	__u16 flags;
};

/* Most Services have a few backends. These lie beside the service, since each
 * look-up in another map waits for memory that the caches no longer hold. The
 * number is a power of two, and what a 192 byte block of the kernel holds. */
#define NEAR 4

struct frontend {
	struct service service;
	struct backend near[NEAR];
};

/* A part of a Maglev table: for each of its slots the index of a backend's. The
 * key is the set and the number of the part. A set of one backend has none. The
 * size is what a 512 byte block of the kernel holds beside its own words. */
#define TABLE_PART 224

struct table {
	__u16 slot[TABLE_PART];
};

/* Which backends a frontend has, with their flags: where there is affinity, to
 * check that one still serves, and of every frontend from outside, to let go of a
 * connection that one has not answered yet, or of a flow of UDP, when it goes. Of
 * UDP's also those that drain. */
struct member_key {
	__u32 id;
	struct addr addr;
	__be16 port;
	__u16 pad;
};

/* A client of a frontend with affinity: its address, or for a socket the cookie
 * of its network namespace in the last two words, the first two being zero. */
struct affinity_key {
	struct addr client;
	__u32 id;
	__u32 pad;
};

struct affinity {
	struct addr addr;
	__be16 port;
	__u16 pad[3];
	__u64 seen_ns; /* CLOCK_MONOTONIC of the last new connection */
};

/* Whether the client's time with its backend has not run out. Another CPU may
 * have renewed it later than the clock was read here. */
static __always_inline int lasts(const struct affinity *a, __u64 now, __u32 affinity_s)
{
	return now < a->seen_ns || now - a->seen_ns <= affinity_s * SECOND;
}

/* The way back for a socket: what it asked for, by what it got. */
struct origin_key {
	__u64 cookie; /* of the socket */
	struct addr addr;
	__be16 port;
	__u8 proto;
	__u8 pad[5];
};

struct origin {
	struct addr addr;
	__be16 port;
	__u16 pad;
};

/* A range of clients that a frontend lets in. */
struct source_key {
	__u32 prefixlen; /* bits of id and addr together: 32 and up */
	__u32 id;
	struct addr addr;
};

/* How many entries a map has for each GiB of the machine's memory, which the
 * daemon multiplies, up to 8 GiB (ebpf/sizes.go). Of a plain hash that is only a
 * bound, for some 16 bytes an entry, and it refuses more; an LRU hash takes all
 * its memory at once, some 100 bytes an entry and 170 for a connection, and lets
 * go of what was least recently used. */
#define PER_GIB(n) (n)

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, PER_GIB(32768));
	__type(key, struct frontend_key);
	__type(value, struct frontend);
} moot_services SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, PER_GIB(131072));
	__type(key, struct slot_key);
	__type(value, struct backend);
} moot_slots SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, PER_GIB(32768));
	__type(key, struct slot_key);
	__type(value, struct table);
} moot_tables SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, PER_GIB(65536));
	__type(key, struct member_key);
	__type(value, __u8);
} moot_members SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, PER_GIB(8192));
	__type(key, struct affinity_key);
	__type(value, struct affinity);
} moot_affinity SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, PER_GIB(16384));
	__type(key, struct origin_key);
	__type(value, struct origin);
} moot_origins SEC(".maps");

/* This node's own addresses, on which NodePorts answer. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1024);
	__type(key, struct addr);
	__type(value, __u8);
} moot_addresses SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, struct source_key);
	__type(value, __u8);
} moot_sources SEC(".maps");

#endif
