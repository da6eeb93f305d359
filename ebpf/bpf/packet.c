//go:build ignore
// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/* Services for packets that come from outside the node: NodePorts, external
 * addresses, load balancers. A client is led to a backend by the Maglev table of
 * the frontend. To a backend on this node the packet goes on through the stack
 * with only its destination changed, and its answer is turned back as it leaves.
 * To one elsewhere it also takes a source of this node, so that the answer comes
 * back here, and neither way passes the stack: a packet with this node's own
 * address as its source would be refused there.
 *
 * What cannot be redirected (no route, too large, out of hops) goes to the stack
 * with its client's address; the stack tells the client by ICMP, which is turned
 * back like any answer. A client of a frontend without backends is led to port 0
 * of this node, which nothing can open: the stack refuses it.
 *
 * Where a driver runs moot_uplink_xdp, it sends on the packets of connections that
 * these programs have made and that leave by the device that they came in by. */
#include "packet.h"

#define PORT_FIRST 10240 /* below where Linux takes ephemeral ports and NodePorts from */
#define PORTS 19760
#define PORT_TRIES 32
#define TRIES 4 /* backends can be replaced between two look-ups */

/* Too large for the stack together. No program of these runs inside another. */
struct work {
	struct packet p;
	struct packet inner;
	struct flow forward;
	struct flow reply;
	struct flow_key other;
	struct bpf_fib_lookup fib;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct work);
} moot_work SEC(".maps");

static __always_inline struct work *work(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&moot_work, &zero);
}

static __always_inline __u32 mix(__u32 h, __u32 w)
{
	w *= 0xcc9e2d51;
	w = w << 15 | w >> 17;
	h ^= w * 0x1b873593;
	h = h << 13 | h >> 19;
	return h * 5 + 0xe6546b64;
}

/* The same for the same client and frontend on every node (MurmurHash3). */
static __always_inline __u32 hash(const struct addr *client, __be16 port, const struct frontend_key *fk)
{
	__u32 h = 0x6d6f6f74;

	for (int i = 0; i < 4; i++)
		h = mix(h, client->word[i]);
	for (int i = 0; i < 4; i++)
		h = mix(h, fk->addr.word[i]);
	h = mix(h, (__u32)port << 16 | fk->port);
	h = mix(h, fk->proto);
	h ^= h >> 16;
	h *= 0x85ebca6b;
	h ^= h >> 13;
	h *= 0xc2b2ae35;
	return h ^ h >> 16;
}

static __always_inline struct frontend *find(const struct packet *p, struct frontend_key *fk)
{
	struct frontend *front;

	__builtin_memset(fk, 0, sizeof(*fk));
	fk->addr = p->key.dst;
	fk->port = p->key.dport;
	fk->proto = p->key.proto;
	fk->side = SIDE_OUTSIDE;
	front = bpf_map_lookup_elem(&moot_services, fk);
	if (front || !bpf_map_lookup_elem(&moot_addresses, &fk->addr))
		return front;
	__builtin_memset(&fk->addr, 0, sizeof(fk->addr));
	if (!p->ipv6)
		mapped(&fk->addr, 0);
	return bpf_map_lookup_elem(&moot_services, fk);
}

static __always_inline int let_in(const struct service *svc, const struct addr *client)
{
	struct source_key key = { .prefixlen = 160, .id = svc->id, .addr = *client };

	return !(svc->flags & SERVICE_SOURCES) || bpf_map_lookup_elem(&moot_sources, &key);
}

static __always_inline int serves(__u32 id, const struct addr *a, __be16 port, __u8 *flags)
{
	struct member_key key = { .id = id, .addr = *a, .port = port };
	__u8 *member = bpf_map_lookup_elem(&moot_members, &key);

	if (!member)
		return 0;
	*flags = *member;
	return 1;
}

/* The Maglev table's word on who serves the hash. */
static __always_inline int pick(const struct service *svc, __u32 h, __u32 *index)
{
	__u32 slot = h % svc->slots, at = slot % TABLE_PART;
	struct slot_key key = { .set = svc->set, .index = slot / TABLE_PART };
	struct table *part;

	*index = 0;
	if (svc->slots == 1)
		return 1;
	part = bpf_map_lookup_elem(&moot_tables, &key);
	barrier_var(at); /* the compiler knows that it is in bounds, the verifier does not */
	if (!part || at >= TABLE_PART)
		return 0;
	*index = part->slot[at];
	return 1;
}

/* Takes the backend that the client last had, if it is to, else its slot's. */
static __always_inline int choose(const struct packet *p, const struct service *svc, const struct frontend *front,
				  const struct frontend_key *fk, __u64 now, struct backend *to)
{
	struct affinity_key ak = { .client = p->key.src, .id = svc->id };
	struct affinity *last = 0;
	struct slot_key slot = { .set = svc->set };
	const struct backend *b;
	__u8 flags = 0;

	if (svc->affinity_s)
		last = bpf_map_lookup_elem(&moot_affinity, &ak);
	if (last && lasts(last, now, svc->affinity_s) &&
	    serves(svc->id, &last->addr, last->port, &flags) && !(flags & BACKEND_DRAINS)) {
		to->addr = last->addr;
		to->port = last->port;
		to->flags = flags & BACKEND_LOCAL;
		last->seen_ns = now;
		return 1;
	}
	if (!pick(svc, hash(&p->key.src, svc->affinity_s ? 0 : p->key.sport, fk), &slot.index))
		return 0;
	if (svc->flags & SERVICE_NEAR)
		b = &front->near[slot.index % NEAR];
	else
		b = bpf_map_lookup_elem(&moot_slots, &slot);
	if (!b)
		return 0;
	*to = *b;
	if (svc->affinity_s) {
		struct affinity now_is = { .addr = b->addr, .port = b->port, .seen_ns = now };

		bpf_map_update_elem(&moot_affinity, &ak, &now_is, BPF_ANY);
	}
	return 1;
}

/* Where a packet of w->forward would leave. Returns BPF_FIB_LKUP_RET_*. */
static __always_inline int route(struct __sk_buff *skb, struct work *w, const struct addr *src, const struct addr *dst)
{
	__builtin_memset(&w->fib, 0, sizeof(w->fib));
	w->fib.ifindex = skb->ifindex;
	w->fib.l4_protocol = w->p.key.proto;
	if (w->p.ipv6) {
		w->fib.family = AF_INET6;
		*(struct addr *)w->fib.ipv6_src = *src;
		*(struct addr *)w->fib.ipv6_dst = *dst;
	} else {
		w->fib.family = AF_INET;
		w->fib.tos = w->p.tos & 0x1c;
		w->fib.ipv4_src = src->word[3];
		w->fib.ipv4_dst = dst->word[3];
	}
	return bpf_fib_lookup(skb, &w->fib, sizeof(w->fib), 0);
}

static __always_inline int own_address(__u32 ifindex, __u8 ipv6, struct addr *out)
{
	struct device *d = bpf_map_lookup_elem(&moot_devices, &ifindex);

	if (!d)
		return 0;
	*out = ipv6 ? d->ipv6 : d->ipv4;
	return (out->word[0] | out->word[1] | out->word[2] | out->word[3]) != 0;
}

/* Enters w->reply under a port that no other connection to the backend has:
 * the client's own if it keeps its address and can, else one by its hash, so that
 * a node that forgot the connection gives it the same again. */
static __always_inline int claim(struct work *w, __u32 h, __u64 now)
{
	other_way(&w->p.key, &w->forward, &w->other);
	for (int i = 0; i < PORT_TRIES; i++) {
		struct flow *held;

		if (i || (w->forward.flags & FLOW_REMOTE))
			w->forward.sport = w->other.dport = bpf_htons(PORT_FIRST + (h + i * i * 7) % PORTS);
		if (!bpf_map_update_elem(&moot_flows, &w->other, &w->reply, BPF_NOEXIST))
			return 1;
		held = bpf_map_lookup_elem(&moot_flows, &w->other);
		if (!held)
			continue;
		/* What is left of this very connection, or of one that is over. */
		if ((same(&held->dst, &w->reply.dst) && same(&held->src, &w->reply.src) &&
		     held->dport == w->reply.dport && held->sport == w->reply.sport) ||
		    quiet(now, held->seen_ns) > lifetime(held, w->p.key.proto)) {
			bpf_map_update_elem(&moot_flows, &w->other, &w->reply, BPF_ANY);
			return 1;
		}
	}
	return 0;
}

/* A packet that no Service is asked by may go straight to a pod from a port that
 * was led there before. What is kept of that connection, if it is over, would turn
 * the answers; a datagram is always of the latest. */
static __always_inline void give_way(struct work *w, __u64 now)
{
	struct flow *held;

	if (w->p.key.proto == IPPROTO_TCP && (w->p.flags & (TCP_SYN | TCP_ACK)) != TCP_SYN)
		return;
	w->other = w->p.key;
	w->other.src = w->p.key.dst;
	w->other.dst = w->p.key.src;
	w->other.sport = w->p.key.dport;
	w->other.dport = w->p.key.sport;
	held = bpf_map_lookup_elem(&moot_flows, &w->other);
	if (!held || (held->flags & (FLOW_REPLY | FLOW_REMOTE)) != FLOW_REPLY)
		return;
	if (w->p.key.proto == IPPROTO_TCP && !over(held) && quiet(now, held->seen_ns) <= lifetime(held, IPPROTO_TCP))
		return;
	w->reply = *held;
	bpf_map_delete_elem(&moot_flows, &w->other);
	other_way(&w->other, &w->reply, &w->other);
	bpf_map_delete_elem(&moot_flows, &w->other);
}

/* Whether a socket of this node has a connection that the packet belongs to, which
 * began here from a port that is a frontend's. A SYN begins one, from there. */
static __always_inline int is_own(struct __sk_buff *skb, const struct packet *p)
{
	struct bpf_sock_tuple at = {};
	struct bpf_sock *sk;
	__u32 size = sizeof(at.ipv4);
	int own;

	if (p->syn)
		return 0;
	if (p->ipv6) {
		size = sizeof(at.ipv6);
		*(struct addr *)at.ipv6.saddr = p->key.src;
		*(struct addr *)at.ipv6.daddr = p->key.dst;
		at.ipv6.sport = p->key.sport;
		at.ipv6.dport = p->key.dport;
	} else {
		at.ipv4.saddr = p->key.src.word[3];
		at.ipv4.daddr = p->key.dst.word[3];
		at.ipv4.sport = p->key.sport;
		at.ipv4.dport = p->key.dport;
	}
	if (p->key.proto == IPPROTO_TCP)
		sk = bpf_sk_lookup_tcp(skb, &at, size, BPF_F_CURRENT_NETNS, 0);
	else
		sk = bpf_sk_lookup_udp(skb, &at, size, BPF_F_CURRENT_NETNS, 0);
	if (!sk)
		return 0;
	own = sk->dst_port != 0; /* else it takes whatever comes */
	bpf_sk_release(sk);
	return own;
}

/* Makes a connection of the packet in w->p. Returns 1, and its entry in
 * w->forward, or else what to do with the packet. */
static __always_inline int begin(struct __sk_buff *skb, struct work *w, __u64 now)
{
	struct frontend_key fk;
	struct backend to = {};
	struct frontend *front = find(&w->p, &fk);
	struct service read = {}, *svc;
	int allowed = 0, took = 0;
	__u32 h;

	/* As for sockets: another entry may have its memory by now, or half of it. */
	for (int i = 0; front && i < TRIES; i++) {
		__u32 set = front->service.set;
		struct frontend *again;

		front = bpf_map_lookup_elem(&moot_services, &fk);
		if (!front || front->service.set != set)
			continue;
		read = front->service;
		allowed = let_in(&read, &w->p.key.src);
		took = allowed && read.slots && choose(&w->p, &read, front, &fk, now, &to);
		again = bpf_map_lookup_elem(&moot_services, &fk);
		if (again && again->service.set == set)
			break;
		allowed = took = 0;
		front = again;
	}
	if (!front) {
		give_way(w, now);
		return NEXT;
	}
	if (is_own(skb, &w->p))
		return NEXT;
	svc = &read;
	if (!allowed || (w->p.flags & TCP_RST))
		return TC_ACT_SHOT;
	__builtin_memset(&w->forward, 0, sizeof(w->forward));
	if (!svc->slots) {
		if ((svc->flags & SERVICE_DROP) || !own_address(skb->ifindex, w->p.ipv6, &to.addr))
			return TC_ACT_SHOT;
		to.flags = BACKEND_LOCAL;
		w->forward.flags = FLOW_REFUSE;
	} else if (!took) {
		return TC_ACT_SHOT; /* they are replaced faster than read; the client asks again */
	}
	w->forward.dst = to.addr;
	w->forward.dport = to.port;
	w->forward.src = w->p.key.src;
	w->forward.sport = w->p.key.sport;
	w->forward.ifindex = skb->ifindex;
	w->forward.seen_ns = now;
	w->forward.syn = w->p.syn;
	w->forward.id = svc->id;
	if (!(to.flags & BACKEND_LOCAL)) {
		int rc = route(skb, w, &w->p.key.src, &to.addr);

		w->forward.flags |= FLOW_REMOTE;
		if (!(rc == BPF_FIB_LKUP_RET_SUCCESS || rc == BPF_FIB_LKUP_RET_NO_NEIGH || rc == BPF_FIB_LKUP_RET_FRAG_NEEDED) ||
		    !own_address(w->fib.ifindex, w->p.ipv6, &w->forward.src))
			if (!own_address(skb->ifindex, w->p.ipv6, &w->forward.src))
				return TC_ACT_SHOT;
	}
	w->reply = w->forward;
	w->reply.src = w->p.key.dst;
	w->reply.sport = w->p.key.dport;
	w->reply.dst = w->p.key.src;
	w->reply.dport = w->p.key.sport;
	w->reply.flags |= FLOW_REPLY;
	h = hash(&w->p.key.src, w->p.key.sport, &fk);
	if (!claim(w, h, now))
		return TC_ACT_SHOT; /* every port to this backend is taken */
	bpf_map_update_elem(&moot_flows, &w->p.key, &w->forward, BPF_ANY);
	return 1;
}

/* Notes in both entries what the packet tells of the connection. A client's way to
 * this node may change, and the way back with it. */
static __always_inline void note(struct __sk_buff *skb, struct work *w, struct flow *f, __u64 now)
{
	__u32 ifindex = skb->ifindex;
	__u8 state = f->state;
	struct flow *other;

	barrier_var(ifindex); /* or the compiler reads either at an address that it chose, which the verifier refuses */
	if (f->flags & FLOW_REPLY)
		ifindex = f->ifindex;
	if (f->flags & FLOW_REPLY)
		state |= STATE_REPLIED;
	if (w->p.flags & TCP_FIN)
		state |= (f->flags & FLOW_REPLY) ? STATE_BACKEND_FIN : STATE_CLIENT_FIN;
	if (w->p.flags & TCP_RST)
		state |= STATE_RESET;
	if (state == f->state && ifindex == f->ifindex && quiet(now, f->seen_ns) < SECOND)
		return;
	f->state = state;
	f->ifindex = ifindex;
	f->seen_ns = now;
	other_way(&w->p.key, f, &w->other);
	other = bpf_map_lookup_elem(&moot_flows, &w->other);
	if (other) {
		other->state = state;
		other->ifindex = ifindex;
		other->seen_ns = now;
	}
}

/* Whether the entry still says where the packet belongs. Where nothing was
 * answered yet, or could be told from an answer before, a backend that left the
 * frontend is let go of; the packets of an open connection to one go on. A SYN
 * with another sequence number is a client's that takes its port again: it may not
 * know any more of the connection before, whose backend may be gone without a
 * word. Who forges one for another's connection to a backend that drains ends it. */
static __always_inline int holds(const struct work *w, const struct flow *f, __u64 now)
{
	__u8 ignored;

	if ((f->flags & FLOW_REFUSE) || quiet(now, f->seen_ns) > lifetime(f, w->p.key.proto))
		return 0;
	if (w->p.key.proto == IPPROTO_TCP) {
		if (!w->p.syn)
			return 1;
		if (over(f) || w->p.syn != f->syn)
			return 0;
		if (f->state & STATE_REPLIED)
			return 1;
	}
	return serves(f->id, &f->dst, f->dport, &ignored);
}

/* Forgets the connection of the entry that the packet in w->p was found by. The
 * port of one that was quiet for long may be another's by now. */
static __always_inline void forget(struct work *w, const struct flow *f)
{
	struct flow *other;

	other_way(&w->p.key, f, &w->other);
	other = bpf_map_lookup_elem(&moot_flows, &w->other);
	if (other && same(&other->dst, &w->p.key.src) && same(&other->src, &w->p.key.dst) &&
	    other->dport == w->p.key.sport && other->sport == w->p.key.dport)
		bpf_map_delete_elem(&moot_flows, &w->other);
	bpf_map_delete_elem(&moot_flows, &w->p.key);
}

/* To the stack with the client's address, for it to say what is wrong. */
static __always_inline int complain(struct __sk_buff *skb, struct work *w, const struct flow *f)
{
	if (f != &w->forward)
		w->forward = *f;
	w->forward.flags = 0;
	w->forward.src = w->p.key.src;
	w->forward.sport = w->p.key.sport;
	w->reply = w->forward;
	w->reply.flags = FLOW_REPLY;
	w->reply.src = w->p.key.dst;
	w->reply.sport = w->p.key.dport;
	w->reply.dst = w->p.key.src;
	w->reply.dport = w->p.key.sport;
	other_way(&w->p.key, &w->forward, &w->other);
	bpf_map_update_elem(&moot_flows, &w->other, &w->reply, BPF_ANY);
	translate(skb, &w->p, &w->p.key.src, &w->forward.dst, w->p.key.sport, w->forward.dport, 0);
	return NEXT;
}

static __always_inline int send_on(struct __sk_buff *skb, struct work *w, struct flow *f)
{
	struct bpf_redir_neigh to = {};
	int rc = route(skb, w, &f->src, &f->dst);

	/* The overlay's device cuts what it makes of it in two; any other drops it. */
	if (rc == BPF_FIB_LKUP_RET_FRAG_NEEDED && !w->p.dont_fragment)
		rc = BPF_FIB_LKUP_RET_SUCCESS;
	if ((rc != BPF_FIB_LKUP_RET_SUCCESS && rc != BPF_FIB_LKUP_RET_NO_NEIGH) || w->p.ttl <= 1)
		return complain(skb, w, f);
	translate(skb, &w->p, &f->src, &f->dst, f->sport, f->dport, 1);
	to.nh_family = w->fib.family;
	if (w->fib.family == AF_INET)
		to.ipv4_nh = w->fib.ipv4_dst;
	else
		*(struct addr *)to.ipv6_nh = *(struct addr *)w->fib.ipv6_dst;
	return bpf_redirect_neigh(w->fib.ifindex, &to, sizeof(to), 0);
}

/* An answer from a backend elsewhere, back out the way its client came in. */
static __always_inline int send_back(struct __sk_buff *skb, struct work *w, struct flow *f)
{
	if (w->p.ttl <= 1)
		return TC_ACT_SHOT;
	translate(skb, &w->p, &f->src, &f->dst, f->sport, f->dport, 1);
	return bpf_redirect_neigh(f->ifindex, 0, 0, 0);
}

static __always_inline int is_error(__u8 ipv6, __u8 type)
{
	if (ipv6)
		return type >= ICMPV6_DEST_UNREACH && type <= ICMPV6_PARAMPROB;
	return type == ICMP_DEST_UNREACH || type == ICMP_TIME_EXCEEDED || type == ICMP_PARAMETERPROB;
}

/* An ICMP error about a packet of a connection: it quotes that packet, which
 * went the other way, as it was after its translation. */
static __always_inline int icmp(struct __sk_buff *skb, struct work *w, int leaving)
{
	struct packet *p = &w->p, *in = &w->inner;
	struct ports ports;
	struct addr outer_src;
	__u32 id, check = p->l4 + 2;
	__s64 diff;
	struct flow *f;
	__u8 type, remote;
	int frag;

	if (bpf_skb_load_bytes(skb, p->l4, &type, 1) || !is_error(p->ipv6, type))
		return NEXT;
	__builtin_memset(in, 0, sizeof(*in));
	in->ipv6 = p->ipv6;
	in->l3 = p->l4 + 8;
	if (!parse_ip(skb, in, &frag, &id) || in->bare || bpf_skb_load_bytes(skb, in->l4, &ports, sizeof(ports)))
		return NEXT;
	if (in->key.proto != IPPROTO_TCP && in->key.proto != IPPROTO_UDP)
		return NEXT;
	w->other.src = in->key.dst;
	w->other.dst = in->key.src;
	w->other.sport = ports.dst;
	w->other.dport = ports.src;
	w->other.proto = in->key.proto;
	w->other.pad[0] = w->other.pad[1] = w->other.pad[2] = 0;
	f = bpf_map_lookup_elem(&moot_flows, &w->other);
	if (!f || !same(&p->key.dst, &w->other.dst))
		return NEXT;
	if (leaving && ((f->flags & FLOW_REMOTE) || !(f->flags & FLOW_REPLY)))
		return NEXT;
	if (!leaving && !(f->flags & FLOW_REMOTE) && (f->flags & FLOW_REPLY))
		return NEXT;
	w->forward = *f;
	f = &w->forward;
	remote = (f->flags & FLOW_REMOTE) != 0;
	if (remote && p->ttl <= 1)
		return TC_ACT_SHOT;
	/* A router on the way keeps its address where this node kept the client's. */
	outer_src = (remote || same(&p->key.src, &w->other.src)) ? f->src : p->key.src;

	struct ports quoted = { .src = f->dport, .dst = f->sport };
	/* The quoted header's own checksum makes up for its addresses; IPv6 has none. */
	diff = write_header(skb, in, &in->key.src, &in->key.dst, &f->dst, &f->src, in->ttl, 0);
	if (p->ipv6)
		bpf_l4_csum_replace(skb, check, 0, diff, 0);
	diff = bpf_csum_diff((__be32 *)&ports, sizeof(ports), (__be32 *)&quoted, sizeof(quoted), 0);
	bpf_l4_csum_replace(skb, check, 0, diff, 0);
	bpf_skb_store_bytes(skb, in->l4, &quoted, sizeof(quoted), 0);
	diff = write_header(skb, p, &p->key.src, &p->key.dst, &outer_src, &f->dst, p->ttl - remote, BPF_F_RECOMPUTE_CSUM);
	if (p->ipv6)
		bpf_l4_csum_replace(skb, check, 0, diff, BPF_F_PSEUDO_HDR);
	if (!remote)
		return NEXT;
	if (f->flags & FLOW_REPLY)
		return bpf_redirect_neigh(f->ifindex, 0, 0, 0);
	int rc = route(skb, w, &f->src, &f->dst);

	if (rc != BPF_FIB_LKUP_RET_SUCCESS && rc != BPF_FIB_LKUP_RET_NO_NEIGH)
		return TC_ACT_SHOT;
	return bpf_redirect_neigh(w->fib.ifindex, 0, 0, 0);
}

/* The kernel takes a VLAN's tag off before it knows whose the packet is. It comes
 * again by the VLAN's device, if there is one. */
static __always_inline int is_tagged(const struct __sk_buff *skb)
{
	return skb->vlan_present && (skb->vlan_tci & VLAN_ID);
}

static __always_inline int arrive(struct __sk_buff *skb, int from_clients)
{
	__u64 now = bpf_ktime_get_ns();
	struct work *w = work();
	struct flow *f;
	int verdict;

	if (!w || is_tagged(skb))
		return NEXT;
	__builtin_memset(&w->p, 0, sizeof(w->p));
	if (!parse(skb, &w->p))
		return NEXT;
	if (w->p.key.proto != IPPROTO_TCP && w->p.key.proto != IPPROTO_UDP)
		return icmp(skb, w, 0);
	f = bpf_map_lookup_elem(&moot_flows, &w->p.key);
	if (f && (f->flags & FLOW_REPLY)) {
		if (!(f->flags & FLOW_REMOTE))
			return NEXT;
		note(skb, w, f, now);
		return send_back(skb, w, f);
	}
	if (!from_clients)
		return NEXT;
	if (f && !holds(w, f, now)) {
		forget(w, f);
		f = 0;
	}
	if (f) {
		note(skb, w, f, now);
	} else {
		verdict = begin(skb, w, now);
		if (verdict != 1)
			return verdict;
		f = &w->forward;
	}
	if (f->flags & FLOW_REMOTE)
		return send_on(skb, w, f);
	translate(skb, &w->p, &f->src, &f->dst, f->sport, f->dport, 0);
	return NEXT;
}

/* What clients send, and answers of backends elsewhere. */
SEC("tc")
int moot_uplink_in(struct __sk_buff *skb)
{
	return arrive(skb, 1);
}

/* Answers of backends elsewhere. */
SEC("tc")
int moot_overlay_in(struct __sk_buff *skb)
{
	return arrive(skb, 0);
}

/* Answers of backends here. */
SEC("tc")
int moot_uplink_out(struct __sk_buff *skb)
{
	struct work *w = work();
	struct flow *f;

	if (!w)
		return NEXT;
	__builtin_memset(&w->p, 0, sizeof(w->p));
	if (!parse(skb, &w->p))
		return NEXT;
	if (w->p.key.proto != IPPROTO_TCP && w->p.key.proto != IPPROTO_UDP)
		return icmp(skb, w, 1);
	f = bpf_map_lookup_elem(&moot_flows, &w->p.key);
	if (!f || !(f->flags & FLOW_REPLY) || (f->flags & FLOW_REMOTE))
		return NEXT;
	note(skb, w, f, bpf_ktime_get_ns());
	translate(skb, &w->p, &f->src, &f->dst, f->sport, f->dport, 0);
	return NEXT;
}

static __always_inline int same_mac(const __u8 *a, const __u8 *b)
{
	const __u16 *x = (void *)a, *y = (void *)b;

	return x[0] == y[0] && x[1] == y[1] && x[2] == y[2];
}

/* Sends on what arrive would, if that is no more than to translate it and to send
 * it out by the device that it came in by. All else is arrive's: what makes, ends
 * or says anything of a connection, and of each connection one packet a second,
 * which keeps its entries and its neighbours from being forgotten. */
static __always_inline int turn(struct xdp_md *ctx, int ipv6)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct ethhdr *eth = data;
	struct iphdr *ip = data + ETH_HLEN;
	struct ipv6hdr *ip6 = data + ETH_HLEN;
	struct ports *ports = data + ETH_HLEN + (ipv6 ? sizeof(*ip6) : sizeof(*ip));
	struct bpf_fib_lookup fib = { .ifindex = ctx->ingress_ifindex };
	struct flow_key key = {};
	struct flow *f;
	__u64 changes;
	__u16 *check;
	__u8 ignored;

	if ((void *)(ports + 2) > end) /* at least an UDP header */
		return XDP_PASS;
	if (ipv6) {
		copy6(&key.src, &ip6->saddr);
		copy6(&key.dst, &ip6->daddr);
		key.proto = ip6->nexthdr;
		fib.family = AF_INET6;
		fib.tot_len = bpf_ntohs(ip6->payload_len) + sizeof(*ip6);
		if (ip6->version != 6 || ip6->hop_limit <= 1)
			return XDP_PASS;
	} else {
		mapped(&key.src, ip->saddr);
		mapped(&key.dst, ip->daddr);
		key.proto = ip->protocol;
		fib.family = AF_INET;
		fib.tot_len = bpf_ntohs(ip->tot_len);
		fib.tos = ip->tos & 0x1c;
		if (ip->version != 4 || ip->ihl != 5 || ip->ttl <= 1 ||
		    (ip->frag_off & bpf_htons(MORE_FRAGMENTS | OFFSET_MASK)))
			return XDP_PASS;
	}
	if (key.proto == IPPROTO_TCP) {
		struct tcphdr *th = (void *)ports;

		if ((void *)(th + 1) > end || th->syn || th->fin || th->rst)
			return XDP_PASS;
		check = &th->check;
	} else if (key.proto == IPPROTO_UDP) {
		check = &((struct udphdr *)ports)->check;
	} else {
		return XDP_PASS;
	}
	key.sport = ports->src;
	key.dport = ports->dst;
	f = bpf_map_lookup_elem(&moot_flows, &key);
	if (!f || !(f->flags & FLOW_REMOTE) || quiet(bpf_ktime_get_coarse_ns(), f->seen_ns) >= SECOND)
		return XDP_PASS;
	if (f->flags & FLOW_REPLY) {
		if (!(f->state & STATE_REPLIED) || f->ifindex != fib.ifindex)
			return XDP_PASS;
	} else if (key.proto == IPPROTO_UDP && !serves(f->id, &f->dst, f->dport, &ignored)) {
		return XDP_PASS;
	}
	fib.l4_protocol = key.proto;
	if (ipv6) {
		*(struct addr *)fib.ipv6_src = f->src;
		*(struct addr *)fib.ipv6_dst = f->dst;
	} else {
		fib.ipv4_src = f->src.word[3];
		fib.ipv4_dst = f->dst.word[3];
	}
	/* Not for this node but seen by it: what a bridge or a capture lets in. */
	if (bpf_fib_lookup(ctx, &fib, sizeof(fib), 0) != BPF_FIB_LKUP_RET_SUCCESS ||
	    fib.ifindex != ctx->ingress_ifindex || !same_mac(eth->h_dest, fib.smac))
		return XDP_PASS;

	__builtin_memcpy(eth->h_dest, fib.dmac, ETH_ALEN);
	__builtin_memcpy(eth->h_source, fib.smac, ETH_ALEN);
	changes = 0;
	for (int i = ipv6 ? 0 : 3; i < 4; i++)
		changes += change(key.src.word[i], f->src.word[i]) + change(key.dst.word[i], f->dst.word[i]);
	if (ipv6) {
		*(struct addr *)&ip6->saddr = f->src;
		*(struct addr *)&ip6->daddr = f->dst;
		ip6->hop_limit--;
	} else {
		ip->saddr = f->src.word[3];
		ip->daddr = f->dst.word[3];
		ip->ttl--;
		ip->check = sum(ip->check, changes + (__u16)~bpf_htons(0x100));
	}
	changes += change(key.sport, f->sport) + change(key.dport, f->dport);
	ports->src = f->sport;
	ports->dst = f->dport;
	if (key.proto == IPPROTO_TCP || *check) { /* a datagram may have none */
		*check = sum(*check, changes);
		if (key.proto == IPPROTO_UDP && !*check)
			*check = 0xffff;
	}
	return XDP_TX;
}

/* What arrive would send out as it came in, before the kernel makes a buffer of it. */
SEC("xdp")
int moot_uplink_xdp(struct xdp_md *ctx)
{
	struct ethhdr *eth = (void *)(long)ctx->data;

	if ((void *)(eth + 1) > (void *)(long)ctx->data_end)
		return XDP_PASS;
	if (eth->h_proto == bpf_htons(ETH_P_IP))
		return turn(ctx, 0);
	if (eth->h_proto == bpf_htons(ETH_P_IPV6))
		return turn(ctx, 1);
	return XDP_PASS;
}

char __license[] SEC("license") = "Dual MIT/GPL";
