package gossip

import (
	"bytes"
	"fmt"
	"log"
	"log/slog"
	"net/netip"
	"strings"
	"sync/atomic"
	"time"

	"github.com/hashicorp/memberlist"
	"github.com/hashicorp/serf/serf"
)

// How serf is tuned: a death is known within three seconds among 50 members,
// and a starved machine does not die of it. A member is probed twice a probe
// interval or so; one that does not answer, directly, through three others or
// over TCP, is suspected for three intervals times the decimal logarithm of the
// members, and refutes that when it hears of it. Lifeguard (Dadgar et al.,
// 2018) is on: a member that is slow itself probes more slowly, and a suspicion
// that nobody confirms lasts longer.
const (
	probeInterval  = 300 * time.Millisecond
	probeTimeout   = 150 * time.Millisecond
	suspicionMult  = 3
	suspicionMax   = 8
	gossipInterval = 100 * time.Millisecond
	gossipNodes    = 4
	retransmitMult = 5
	pushPull       = 15 * time.Second
	streamTimeout  = 5 * time.Second
	dialTimeout    = 2 * time.Second
	leaveDelay     = 300 * time.Millisecond
	reclaimAfter   = time.Second    // a dead member's name may come back at another address
	leftFor        = 24 * time.Hour // members that left are remembered
)

// newSerf starts serf on the port of r.
func (a *Agent) newSerf(r *running) error {
	a.mu.Lock()
	tags := a.card.tags()
	a.mu.Unlock()
	keyring, err := memberlist.NewKeyring(a.cfg.Keys, a.cfg.Keys[0])
	if err != nil {
		return fmt.Errorf("make gossip keyring: %w", err)
	}
	logger := log.New(&hashiLog{limited: limitedLog{log: a.log}}, "", 0)
	ml := memberlist.DefaultLANConfig()
	ml.Transport = r.transport
	ml.Label = label(a.cfg.Cluster)
	ml.BindAddr, ml.BindPort = a.advertise().Addr().String(), int(a.advertise().Port())
	ml.AdvertiseAddr, ml.AdvertisePort = ml.BindAddr, ml.BindPort
	ml.Keyring = keyring
	ml.ProbeInterval, ml.ProbeTimeout = probeInterval, probeTimeout
	ml.SuspicionMult, ml.SuspicionMaxTimeoutMult = suspicionMult, suspicionMax
	ml.GossipInterval, ml.GossipNodes, ml.RetransmitMult = gossipInterval, gossipNodes, retransmitMult
	ml.PushPullInterval = pushPull
	ml.TCPTimeout = streamTimeout
	ml.DeadNodeReclaimTime = reclaimAfter
	ml.Logger = logger

	g := &gate{self: a.cfg.Name, addr: a.advertise(), version: a.cfg.Version, clash: make(chan netip.AddrPort, 4)}
	cfg := serf.DefaultConfig()
	cfg.NodeName = a.cfg.Name
	cfg.Tags = tags
	cfg.MemberlistConfig = ml
	cfg.Logger = logger
	cfg.Merge = g
	cfg.EventCh = a.events
	cfg.DisableCoordinates = true
	cfg.EnableNameConflictResolution = false // the gate does it, by age
	cfg.BroadcastTimeout = time.Second
	cfg.LeavePropagateDelay = leaveDelay
	cfg.ReconnectInterval = time.Hour // rejoin.go does it, and better
	cfg.TombstoneTimeout = leftFor
	s, err := serf.Create(cfg)
	if err != nil {
		return fmt.Errorf("start membership: %w", err)
	}
	r.serf, r.gate, r.keyring = s, g, keyring
	return nil
}

// label marks the cluster's datagrams and gossip streams.
func label(cluster string) string { return "moot/" + cluster }

// advertise is where peers reach this node.
func (a *Agent) advertise() netip.AddrPort {
	if a.cfg.Advertise.IsValid() {
		return a.cfg.Advertise
	}
	return a.cfg.Bind
}

// readPeers returns serf's members but this node.
func (a *Agent) readPeers(s *serf.Serf) map[string]peer {
	members := s.Members()
	out := make(map[string]peer, len(members))
	for _, m := range members {
		if m.Name == a.cfg.Name {
			continue
		}
		ip, _ := netip.AddrFromSlice(m.Addr)
		p := peer{name: m.Name, addr: netip.AddrPortFrom(ip.Unmap(), m.Port), card: readCard(m.Tags)}
		if !p.card.restart.IsZero() {
			p.card.restart = a.link(m.Name).ours(p.card.restart)
		}
		switch m.Status {
		case serf.StatusAlive:
			p.standing = standingAlive
		case serf.StatusFailed:
			p.standing = standingFailed
		case serf.StatusLeaving, serf.StatusLeft:
			p.standing = standingLeft
		default:
			continue
		}
		out[m.Name] = p
	}
	return out
}

// gate keeps out members that cannot be in the cluster with this node.
type gate struct {
	self    string
	addr    netip.AddrPort
	version string
	clash   chan netip.AddrPort // where someone with this node's name may be
	refused atomic.Pointer[error]
}

// NotifyMerge looks at members that are about to be merged in. It is called
// with locks of memberlist held.
func (g *gate) NotifyMerge(members []*serf.Member) error {
	for _, m := range members {
		if err := compatible(g.version, m.Tags[tagVersion]); err != nil {
			err = fmt.Errorf("member %s: %w", m.Name, err)
			g.refused.Store(&err)
			return err
		}
		ip, _ := netip.AddrFromSlice(m.Addr)
		at := netip.AddrPortFrom(ip.Unmap(), m.Port)
		if m.Name != g.self || at == g.addr || m.Status == serf.StatusLeft {
			continue
		}
		g.suspect(at)
	}
	return nil
}

// suspect has it looked into whether someone else has this node's name.
func (g *gate) suspect(at netip.AddrPort) {
	select {
	case g.clash <- at:
	default:
	}
}

// refusal returns why members were last kept out, and forgets it.
func (g *gate) refusal() error {
	if p := g.refused.Swap(nil); p != nil {
		return *p
	}
	return nil
}

// hashiLog passes the log lines of serf and memberlist on. While members come
// and go they complain a lot; a line a second is enough.
type hashiLog struct{ limited limitedLog }

func (h *hashiLog) Write(line []byte) (int, error) {
	text := strings.TrimSpace(string(line))
	level, msg, ok := strings.Cut(text, "] ")
	switch {
	case !ok:
		msg = text
		fallthrough
	case level == "[WARN", level == "[ERR", level == "[ERROR":
		h.limited.write(slog.LevelInfo, msg)
	}
	return len(line), nil
}

// setKeys makes the keyring hold exactly keys, the first to encrypt with.
func setKeys(ring *memberlist.Keyring, keys [][]byte) error {
	for _, k := range keys {
		if err := ring.AddKey(k); err != nil {
			return fmt.Errorf("add gossip key: %w", err)
		}
	}
	if err := ring.UseKey(keys[0]); err != nil {
		return fmt.Errorf("use gossip key: %w", err)
	}
	for _, held := range ring.GetKeys() {
		kept := false
		for _, k := range keys {
			kept = kept || bytes.Equal(k, held)
		}
		if kept {
			continue
		}
		if err := ring.RemoveKey(held); err != nil {
			return fmt.Errorf("remove gossip key: %w", err)
		}
	}
	return nil
}
