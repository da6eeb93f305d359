// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/* Services for sockets of this node. The address is chosen once, when the socket
 * connects or sends, so that no packet has to be translated. */
#include "maps.h"
#include <bpf/bpf_endian.h>

#define AF_INET 2
#define SOCK_STREAM 1
#define SOCK_DGRAM 2
#define TCP 6
#define UDP 17
#define REFUSED 111
#define TIMED_OUT 110
#define TRIES 8 /* backends can be replaced between two look-ups */

/* The node's own network namespace: there loopback answers for NodePorts. */
const volatile __u64 node_netns = 0;

static __always_inline int is_v4(const struct addr *a)
{
	return !a->word[0] && !a->word[1] && a->word[2] == bpf_htonl(0xffff);
}

static __always_inline int is_zero(const struct addr *a)
{
	return !a->word[0] && !a->word[1] && !a->word[3] && (!a->word[2] || is_v4(a));
}

/* find gives the Service of the address; what is no Service costs two look-ups,
 * or one where no NodePort can be. */
static __always_inline struct frontend *find(struct bpf_sock_addr *ctx, struct frontend_key *key)
{
	int zero = is_zero(&key->addr), v4 = is_v4(&key->addr);
	struct frontend *front;

	if (!zero) {
		front = bpf_map_lookup_elem(&moot_services, key);
		if (front)
			return front;
	}
	if (zero || (v4 && (key->addr.word[3] & bpf_htonl(0xff000000)) == bpf_htonl(0x7f000000))) {
		if (!v4 || bpf_get_netns_cookie(ctx) != node_netns)
			return 0;
	} else if (!bpf_map_lookup_elem(&moot_addresses, &key->addr)) {
		return 0;
	}
	key->addr.word[3] = 0;
	if (!v4) {
		key->addr.word[0] = 0;
		key->addr.word[1] = 0;
		key->addr.word[2] = 0;
	}
	return bpf_map_lookup_elem(&moot_services, key);
}

/* The kernel may give the memory of an entry to another as soon as the entry is
 * replaced, also to the next of the same frontend but one. So what is read holds
 * only if the set is known before, and two look-ups still find it, one before and
 * one after: a number that is written once, with slots that are deleted only after
 * it is replaced. Who finds it in one look-up only may have seen it half written. */
static __always_inline struct frontend *again(const struct frontend_key *key, __u32 set)
{
	struct frontend *now = bpf_map_lookup_elem(&moot_services, key);

	return now && now->service.set == set ? now : 0;
}

static __always_inline int still_serves(const struct service *svc, const struct affinity *last)
{
	struct member_key mk = { .id = svc->id, .addr = last->addr, .port = last->port };

	return bpf_map_lookup_elem(&moot_members, &mk) != 0;
}

/* A number that says which slot is taken: any for a connection. What one socket
 * sends to one frontend without connecting is one flow: it stays with its slot. */
static __always_inline __u32 choice(struct bpf_sock_addr *ctx)
{
	__u64 h;

	if (ctx->type == SOCK_STREAM)
		return bpf_get_prandom_u32();
	h = bpf_get_socket_cookie(ctx) * 0x9e3779b97f4a7c15ULL;
	return h >> 32;
}

/* take puts the backend of a new connection into to. */
static __always_inline int take(struct bpf_sock_addr *ctx, const struct service *svc, const struct frontend *front,
				struct backend *to)
{
	struct slot_key slot = { .set = svc->set };
	struct affinity_key ak = { .id = svc->id };
	const struct backend *b;

	if (svc->affinity_s) {
		__u64 now = bpf_ktime_get_ns(), cookie = bpf_get_netns_cookie(ctx);
		struct affinity *last;

		ak.client.word[2] = cookie >> 32;
		ak.client.word[3] = (__u32)cookie;
		last = bpf_map_lookup_elem(&moot_affinity, &ak);
		if (last && lasts(last, now, svc->affinity_s) && still_serves(svc, last)) {
			to->addr = last->addr;
			to->port = last->port;
			last->seen_ns = now;
			return 1;
		}
	}
	slot.index = choice(ctx) % svc->slots;
	if (svc->flags & SERVICE_NEAR)
		b = &front->near[slot.index % NEAR];
	else
		b = bpf_map_lookup_elem(&moot_slots, &slot);
	if (!b)
		return 0;
	to->addr = b->addr;
	to->port = b->port;
	if (svc->affinity_s) {
		struct affinity now_is = { .addr = b->addr, .port = b->port, .seen_ns = bpf_ktime_get_ns() };

		bpf_map_update_elem(&moot_affinity, &ak, &now_is, BPF_ANY);
	}
	return 1;
}

/* remember notes the way back, once a socket and backend. */
static __always_inline void remember(struct bpf_sock_addr *ctx, const struct backend *b,
				     const struct addr *addr, __be16 port, __u8 proto)
{
	struct origin_key key = {
		.cookie = bpf_get_socket_cookie(ctx), .addr = b->addr, .port = b->port, .proto = proto,
	};
	struct origin value = { .addr = *addr, .port = port }, *held;

	if (proto == UDP) {
		held = bpf_map_lookup_elem(&moot_origins, &key);
		if (held && held->port == port && held->addr.word[3] == addr->word[3] &&
		    held->addr.word[2] == addr->word[2] && held->addr.word[1] == addr->word[1] &&
		    held->addr.word[0] == addr->word[0])
			return;
	}
	bpf_map_update_elem(&moot_origins, &key, &value, BPF_ANY);
}

/* serve gives 0 for no Service, 1 with to filled in, or what the call returns. */
static __always_inline int serve(struct bpf_sock_addr *ctx, const struct addr *addr, struct backend *to)
{
	struct frontend_key key = { .addr = *addr, .port = (__be16)ctx->user_port, .side = SIDE_INSIDE };
	struct frontend *front;

	if (ctx->type == SOCK_STREAM)
		key.proto = TCP;
	else if (ctx->type == SOCK_DGRAM && ctx->protocol == UDP)
		key.proto = UDP;
	else
		return 0;
	front = find(ctx, &key);
	for (int i = 0; front && i < TRIES; i++) {
		__u32 set = front->service.set;

		front = again(&key, set);
		if (front) {
			struct service read = front->service;
			int took = read.slots && take(ctx, &read, front, to);

			if (again(&key, set)) {
				if (took) {
					remember(ctx, to, addr, (__be16)ctx->user_port, key.proto);
					return 1;
				}
				if (!read.slots)
					return read.flags & SERVICE_DROP ? -TIMED_OUT : -REFUSED;
			}
		}
		front = bpf_map_lookup_elem(&moot_services, &key);
	}
	return front ? -REFUSED : 0;
}

static __always_inline int start4(struct bpf_sock_addr *ctx)
{
	struct addr addr = { { 0, 0, bpf_htonl(0xffff), ctx->user_ip4 } };
	struct backend to = {};
	int is = serve(ctx, &addr, &to);

	if (is < 0) {
		bpf_set_retval(is);
		return 0;
	}
	if (is) {
		ctx->user_ip4 = to.addr.word[3];
		ctx->user_port = to.port;
	}
	return 1;
}

static __always_inline int start6(struct bpf_sock_addr *ctx)
{
	struct addr addr = { { ctx->user_ip6[0], ctx->user_ip6[1], ctx->user_ip6[2], ctx->user_ip6[3] } };
	struct backend to = {};
	int is = serve(ctx, &addr, &to);

	if (is < 0) {
		bpf_set_retval(is);
		return 0;
	}
	if (is) {
		ctx->user_ip6[0] = to.addr.word[0];
		ctx->user_ip6[1] = to.addr.word[1];
		ctx->user_ip6[2] = to.addr.word[2];
		ctx->user_ip6[3] = to.addr.word[3];
		ctx->user_port = to.port;
	}
	return 1;
}

static __always_inline struct origin *back(struct bpf_sock_addr *ctx, const struct addr *addr)
{
	struct origin_key key = {
		.cookie = bpf_get_socket_cookie(ctx), .addr = *addr, .port = (__be16)ctx->user_port,
		.proto = ctx->type == SOCK_STREAM ? TCP : UDP,
	};

	return bpf_map_lookup_elem(&moot_origins, &key);
}

static __always_inline int back4(struct bpf_sock_addr *ctx)
{
	struct addr addr = { { 0, 0, bpf_htonl(0xffff), ctx->user_ip4 } };
	struct origin *o = back(ctx, &addr);

	if (o) {
		ctx->user_ip4 = o->addr.word[3];
		ctx->user_port = o->port;
	}
	return 1;
}

static __always_inline int back6(struct bpf_sock_addr *ctx)
{
	struct addr addr = { { ctx->user_ip6[0], ctx->user_ip6[1], ctx->user_ip6[2], ctx->user_ip6[3] } };
	struct origin *o = back(ctx, &addr);

	if (o) {
		ctx->user_ip6[0] = o->addr.word[0];
		ctx->user_ip6[1] = o->addr.word[1];
		ctx->user_ip6[2] = o->addr.word[2];
		ctx->user_ip6[3] = o->addr.word[3];
		ctx->user_port = o->port;
	}
	return 1;
}

/* What a socket asked for is asked no more when it is closed. Then the map holds
 * the open ones, and its memory stays in the caches. */
static __always_inline int forget(struct bpf_sock *ctx)
{
	struct origin_key key = { .port = (__be16)ctx->dst_port, .proto = ctx->type == SOCK_STREAM ? TCP : UDP };
	__be32 ip4;

	if (!key.port)
		return 1;
	ip4 = ctx->dst_ip4;
	barrier_var(ip4); /* or the compiler reads one word at an address that it computed, which the verifier refuses */
	if (ctx->family == AF_INET) {
		key.addr.word[2] = bpf_htonl(0xffff);
		key.addr.word[3] = ip4;
	} else {
		key.addr.word[0] = ctx->dst_ip6[0];
		key.addr.word[1] = ctx->dst_ip6[1];
		key.addr.word[2] = ctx->dst_ip6[2];
		key.addr.word[3] = ctx->dst_ip6[3];
	}
	key.cookie = bpf_get_socket_cookie(ctx);
	bpf_map_delete_elem(&moot_origins, &key);
	return 1;
}

SEC("cgroup/sock_release") int moot_release(struct bpf_sock *ctx) { return forget(ctx); }
SEC("cgroup/connect4") int moot_connect4(struct bpf_sock_addr *ctx) { return start4(ctx); }
SEC("cgroup/connect6") int moot_connect6(struct bpf_sock_addr *ctx) { return start6(ctx); }
SEC("cgroup/sendmsg4") int moot_sendmsg4(struct bpf_sock_addr *ctx) { return start4(ctx); }
SEC("cgroup/sendmsg6") int moot_sendmsg6(struct bpf_sock_addr *ctx) { return start6(ctx); }
SEC("cgroup/recvmsg4") int moot_recvmsg4(struct bpf_sock_addr *ctx) { return back4(ctx); }
SEC("cgroup/recvmsg6") int moot_recvmsg6(struct bpf_sock_addr *ctx) { return back6(ctx); }
SEC("cgroup/getpeername4") int moot_getpeername4(struct bpf_sock_addr *ctx) { return back4(ctx); }
SEC("cgroup/getpeername6") int moot_getpeername6(struct bpf_sock_addr *ctx) { return back6(ctx); }

char __license[] SEC("license") = "Dual BSD/GPL";
