/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Reading and rewriting a packet. */
#ifndef MOOT_PACKET_H
#define MOOT_PACKET_H

#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/pkt_cls.h>
#include <linux/tcp.h>
#include <linux/udp.h>
#include <stddef.h>
#include <bpf/bpf_endian.h>
#include "conntrack.h"

#define NEXT (-1) /* to the next program, and if there is none to the stack */
#define AF_INET 2
#define AF_INET6 10
#define OFFSET_MASK 0x1fff
#define MORE_FRAGMENTS 0x2000
#define DONT_FRAGMENT 0x4000
#define FRAGMENT_HEADER 44
#define VLAN_ID 0x0fff

/* <linux/icmp.h> wants a whole C library. */
enum icmp_types {
	ICMP_DEST_UNREACH = 3,
	ICMP_TIME_EXCEEDED = 11,
	ICMP_PARAMETERPROB = 12,
	ICMPV6_DEST_UNREACH = 1,
	ICMPV6_PARAMPROB = 4,
};

enum tcp_flags { TCP_FIN = 1, TCP_SYN = 2, TCP_RST = 4, TCP_ACK = 16 };

struct packet {
	struct flow_key key;
	__u32 l3;    /* where the IP header starts */
	__u32 l4;    /* where the transport header starts */
	__u16 size;  /* as the IP header tells, for the path's MTU */
	__u8 ipv6;
	__u8 bare;   /* a fragment without transport header */
	__u8 ttl;
	__u8 flags;  /* of TCP */
	__u8 tos;
	__u8 dont_fragment;
	__u16 check; /* of the IPv4 header */
	__u16 syn;   /* of the sequence number, if this is the first packet of a client's TCP */
};

static __always_inline void mapped(struct addr *a, __be32 v4)
{
	a->word[0] = 0;
	a->word[1] = 0;
	a->word[2] = bpf_htonl(0xffff);
	a->word[3] = v4;
}

static __always_inline int same(const struct addr *a, const struct addr *b)
{
	return a->word[0] == b->word[0] && a->word[1] == b->word[1] &&
	       a->word[2] == b->word[2] && a->word[3] == b->word[3];
}

static __always_inline void copy6(struct addr *a, const struct in6_addr *from)
{
	a->word[0] = from->in6_u.u6_addr32[0];
	a->word[1] = from->in6_u.u6_addr32[1];
	a->word[2] = from->in6_u.u6_addr32[2];
	a->word[3] = from->in6_u.u6_addr32[3];
}

/* Reads the IP header at p->l3. Returns whether there was one. *frag is set if
 * the packet is a fragment, with its id and its offset. */
static __always_inline int parse_ip(struct __sk_buff *skb, struct packet *p, int *frag, __u32 *id)
{
	*frag = 0;
	if (!p->ipv6) {
		struct iphdr ip;
		__u16 off;

		if (bpf_skb_load_bytes(skb, p->l3, &ip, sizeof(ip)) || ip.version != 4 || ip.ihl < 5)
			return 0;
		mapped(&p->key.src, ip.saddr);
		mapped(&p->key.dst, ip.daddr);
		p->key.proto = ip.protocol;
		p->l4 = p->l3 + ip.ihl * 4;
		p->size = bpf_ntohs(ip.tot_len);
		p->ttl = ip.ttl;
		p->tos = ip.tos;
		p->check = ip.check;
		off = bpf_ntohs(ip.frag_off);
		p->dont_fragment = (off & DONT_FRAGMENT) != 0;
		*frag = (off & (MORE_FRAGMENTS | OFFSET_MASK)) != 0;
		p->bare = (off & OFFSET_MASK) != 0;
		*id = ip.id;
		return 1;
	}
	struct ipv6hdr ip6;

	if (bpf_skb_load_bytes(skb, p->l3, &ip6, sizeof(ip6)) || ip6.version != 6)
		return 0;
	copy6(&p->key.src, &ip6.saddr);
	copy6(&p->key.dst, &ip6.daddr);
	p->key.proto = ip6.nexthdr;
	p->l4 = p->l3 + sizeof(ip6);
	p->size = bpf_ntohs(ip6.payload_len) + sizeof(ip6);
	p->ttl = ip6.hop_limit;
	p->dont_fragment = 1;
	if (ip6.nexthdr == FRAGMENT_HEADER) {
		struct { __u8 next, reserved; __be16 off; __be32 id; } fh;

		if (bpf_skb_load_bytes(skb, p->l4, &fh, sizeof(fh)))
			return 0;
		*frag = 1;
		p->bare = (bpf_ntohs(fh.off) & 0xfff8) != 0;
		*id = fh.id;
		p->key.proto = fh.next;
		p->l4 += sizeof(fh);
	}
	return 1;
}

/* Fills in addresses, ports and flags of a TCP or UDP packet; of an ICMP one
 * only the addresses. Returns whether it is one of these. */
static __always_inline int parse(struct __sk_buff *skb, struct packet *p)
{
	struct fragment_key fk = {};
	struct ports ports;
	__u32 id = 0;
	int frag;

	p->l3 = ETH_HLEN;
	if (skb->protocol == bpf_htons(ETH_P_IP))
		p->ipv6 = 0;
	else if (skb->protocol == bpf_htons(ETH_P_IPV6))
		p->ipv6 = 1;
	else
		return 0;
	if (!parse_ip(skb, p, &frag, &id))
		return 0;
	if (p->key.proto == (p->ipv6 ? IPPROTO_ICMPV6 : IPPROTO_ICMP))
		return !frag;
	if (p->key.proto != IPPROTO_TCP && p->key.proto != IPPROTO_UDP)
		return 0;
	if (frag) {
		fk.src = p->key.src;
		fk.dst = p->key.dst;
		fk.id = id;
		fk.proto = p->key.proto;
	}
	if (p->bare) {
		struct ports *known = bpf_map_lookup_elem(&moot_fragments, &fk);

		if (!known)
			return 0;
		p->key.sport = known->src;
		p->key.dport = known->dst;
		return 1;
	}
	if (p->key.proto == IPPROTO_TCP) {
		struct { __be16 source, dest; __be32 seq, ack; __u8 off, flags; } th;

		if (bpf_skb_load_bytes(skb, p->l4, &th, 14))
			return 0;
		p->key.sport = th.source;
		p->key.dport = th.dest;
		p->flags = th.flags;
		if ((th.flags & (TCP_SYN | TCP_ACK)) == TCP_SYN)
			p->syn = (th.seq ^ th.seq >> 16) | 1; /* never 0 */
	} else {
		if (bpf_skb_load_bytes(skb, p->l4, &ports, sizeof(ports)))
			return 0;
		p->key.sport = ports.src;
		p->key.dport = ports.dst;
	}
	if (frag) {
		ports.src = p->key.sport;
		ports.dst = p->key.dport;
		bpf_map_update_elem(&moot_fragments, &fk, &ports, BPF_ANY);
	}
	return 1;
}

/* What replacing from by to adds to a sum. */
static __always_inline __u64 change(__be32 from, __be32 to)
{
	return (__u64)(__u32)~from + to;
}

/* The checksum of what had the sum check before all the changes (RFC 1624). */
static __always_inline __u16 sum(__u16 check, __u64 changes)
{
	changes += (__u16)~check;
	changes = (changes & 0xffffffff) + (changes >> 32);
	for (int i = 0; i < 3; i++)
		changes = (changes & 0xffff) + (changes >> 16);
	return ~changes;
}

/* Writes addresses and hops into the packet's IP header. Returns by how much the
 * sum that a transport's checksum takes over the addresses changes. For IPv6 there
 * is no header checksum to make up for the change; whole says to note it in the sum
 * of the whole packet that a device may have computed, which BPF_F_PSEUDO_HDR takes
 * back later. */
static __always_inline __s64 write_header(struct __sk_buff *skb, const struct packet *p,
					  const struct addr *from_src, const struct addr *from_dst,
					  const struct addr *src, const struct addr *dst, __u8 ttl, __u64 whole)
{
	__u64 diff = 0;

	for (int i = p->ipv6 ? 0 : 3; i < 4; i++)
		diff += change(from_src->word[i], src->word[i]) + change(from_dst->word[i], dst->word[i]);
	if (!p->ipv6) {
		struct { __u8 ttl, proto; __u16 check; __be32 src, dst; } header = {
			.ttl = ttl, .proto = p->key.proto, .src = src->word[3], .dst = dst->word[3],
			.check = sum(p->check, diff + change(bpf_htons(p->ttl << 8), bpf_htons(ttl << 8))),
		};

		bpf_skb_store_bytes(skb, p->l3 + offsetof(struct iphdr, ttl), &header, sizeof(header), 0);
	} else {
		struct addr addrs[2] = { *src, *dst };

		bpf_skb_store_bytes(skb, p->l3 + offsetof(struct ipv6hdr, saddr), addrs, sizeof(addrs), whole);
		if (ttl != p->ttl)
			bpf_skb_store_bytes(skb, p->l3 + offsetof(struct ipv6hdr, hop_limit), &ttl, 1, whole);
	}
	diff = (diff & 0xffffffff) + (diff >> 32);
	return (__u32)(diff + (diff >> 32));
}

/* Makes the packet what the flow says, checksums and all, with so many hops less. */
static __always_inline void translate(struct __sk_buff *skb, const struct packet *p, const struct addr *src,
				      const struct addr *dst, __be16 sport, __be16 dport, __u8 hops)
{
	struct ports before = { .src = p->key.sport, .dst = p->key.dport }, after = { .src = sport, .dst = dport };
	__u32 check = p->l4 + (p->key.proto == IPPROTO_TCP ? 16 : 6);
	__u64 udp = p->key.proto == IPPROTO_UDP ? BPF_F_MARK_MANGLED_0 : 0;
	__s64 diff = write_header(skb, p, &p->key.src, &p->key.dst, src, dst, p->ttl - hops, BPF_F_RECOMPUTE_CSUM);

	if (p->bare)
		return;
	bpf_l4_csum_replace(skb, check, 0, diff, BPF_F_PSEUDO_HDR | udp);
	if (before.src == after.src && before.dst == after.dst)
		return;
	bpf_l4_csum_replace(skb, check, *(__u32 *)&before, *(__u32 *)&after, 4 | udp);
	bpf_skb_store_bytes(skb, p->l4, &after, sizeof(after), 0);
}

#endif
