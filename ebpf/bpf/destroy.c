//go:build ignore
// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/* Destroys the sockets of one network namespace that a Service led to a backend
 * that is gone or does not answer. Each iterator writes a byte for each socket. It
 * wants kernel 6.5, so it is loaded apart from all else. */
#include "maps.h"
#include <linux/in.h>
#include <linux/in6.h>
#include <bpf/bpf_endian.h>

#define AF_INET 2
#define AF_INET6 10
#define SYN_SENT 2
#define TIME_WAIT 6

/* Of the kernel's own types what is used here, found by name when it is loaded. */
#define KERNEL __attribute__((preserve_access_index))

struct seq_file;

struct sock_common {
	__be32 skc_daddr;
	__be16 skc_dport;
	unsigned short skc_family;
	volatile unsigned char skc_state;
	struct in6_addr skc_v6_daddr;
} KERNEL;

struct udp_sock;

struct bpf_iter_meta {
	struct seq_file *seq;
} KERNEL;

struct bpf_iter__tcp {
	struct bpf_iter_meta *meta;
	struct sock_common *sk_common;
} KERNEL;

struct bpf_iter__udp {
	struct bpf_iter_meta *meta;
	struct udp_sock *udp_sk;
} KERNEL;

extern int bpf_sock_destroy(struct sock_common *sock) __ksym;

struct dead_key {
	struct addr addr;
	__be16 port;
	__u8 proto;
	__u8 pad;
};

/* Of whom to end what: the values of moot_dead. */
enum which { ALL = 0, OPENING = 1 };

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, struct dead_key);
	__type(value, __u8);
} moot_dead SEC(".maps");

enum outcome { DESTROYED = 0, FAILED = 1 };

static __always_inline int visit(struct bpf_iter_meta *meta, struct sock_common *sk, __u8 proto)
{
	struct dead_key dead = { .port = sk->skc_dport, .proto = proto };
	struct origin_key from = { .port = sk->skc_dport, .proto = proto };
	__u8 outcome = DESTROYED, *which;

	if (sk->skc_family == AF_INET) {
		dead.addr.word[2] = bpf_htonl(0xffff);
		dead.addr.word[3] = sk->skc_daddr;
	} else if (sk->skc_family == AF_INET6) {
		dead.addr.word[0] = sk->skc_v6_daddr.in6_u.u6_addr32[0];
		dead.addr.word[1] = sk->skc_v6_daddr.in6_u.u6_addr32[1];
		dead.addr.word[2] = sk->skc_v6_daddr.in6_u.u6_addr32[2];
		dead.addr.word[3] = sk->skc_v6_daddr.in6_u.u6_addr32[3];
	} else {
		return 0;
	}
	if (proto == IPPROTO_TCP && sk->skc_state == TIME_WAIT)
		return 0; /* no socket any more, the kernel would refuse */
	which = bpf_map_lookup_elem(&moot_dead, &dead);
	if (!which || (*which == OPENING && !(proto == IPPROTO_TCP && sk->skc_state == SYN_SENT)))
		return 0;
	from.addr = dead.addr;
	from.cookie = bpf_get_socket_cookie(sk);
	if (!bpf_map_lookup_elem(&moot_origins, &from))
		return 0;
	if (bpf_sock_destroy(sk))
		outcome = FAILED;
	bpf_seq_write(meta->seq, &outcome, sizeof(outcome));
	return 0;
}

SEC("iter/tcp")
int moot_destroy_tcp(struct bpf_iter__tcp *ctx)
{
	struct sock_common *sk = ctx->sk_common;

	return sk ? visit(ctx->meta, sk, IPPROTO_TCP) : 0;
}

SEC("iter/udp")
int moot_destroy_udp(struct bpf_iter__udp *ctx)
{
	struct sock_common *sk = (struct sock_common *)ctx->udp_sk;

	return sk ? visit(ctx->meta, sk, IPPROTO_UDP) : 0;
}

char __license[] SEC("license") = "Dual BSD/GPL";
