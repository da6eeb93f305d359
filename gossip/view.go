package gossip

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"time"
)

// standing is what serf holds of a member.
type standing int

const (
	standingNone standing = iota // serf does not know it
	standingAlive
	standingFailed
	standingLeft
)

// peer is a member as serf reports it.
type peer struct {
	name     string
	addr     netip.AddrPort
	card     card
	standing standing
}

// thresholds are the silences that count: for a suspicion, for a death that
// serf declared and a call confirmed, and for one that serf alone declared.
type thresholds struct {
	suspect, called, dead time.Duration
}

// reached counts the thresholds that a silence is over.
func (t thresholds) reached(silent time.Duration) int {
	n := 0
	for _, limit := range []time.Duration{t.suspect, t.called, t.dead} {
		if silent >= limit {
			n++
		}
	}
	return n
}

// state decides what a member is, from serf's word, what its stream says, and
// what it announced. Serf alone can declare death; but while the stream spoke
// a moment ago the declaration is doubted, because serf's datagrams may be lost
// where a stream is not.
func state(p peer, e evidence, now time.Time, t thresholds) State {
	switch {
	case p.standing == standingNone:
		return StateDead
	case p.standing == standingLeft, p.card.leaving:
		return StateLeft
	case now.Before(p.card.restart):
		return StateRestarting
	case p.standing == standingFailed:
		if e.known && e.silent < t.dead {
			return StateSuspect
		}
		return StateDead
	case e.known && (e.broken || e.silent >= t.suspect):
		return StateSuspect
	}
	return StateAlive
}

// view is what the members are computed from.
type view struct {
	now      time.Time
	self     Member
	peers    map[string]peer
	register map[string]registration
	evidence map[string]evidence
	before   map[string]Member // as last computed
	limits   thresholds
}

// members computes all members. Those that left stay on as long as serf, or the
// one before, remembers them, so that what was theirs can be cleared away.
func (v view) members() map[string]Member {
	out := make(map[string]Member, len(v.peers)+1)
	for name, reg := range v.register {
		m, ok := v.before[name]
		if !ok {
			m = Member{Name: name, Number: reg.Number, Addr: reg.Address, Version: reg.Version, Unheard: true}
		}
		m.State = StateDead
		out[name] = m
	}
	for name, m := range v.before {
		if _, registered := v.register[name]; !registered && !m.Self {
			m.State = StateLeft // unless serf knows better, below
			out[name] = m
		}
	}
	for name, p := range v.peers {
		m := Member{
			Name: name, Number: p.card.number, Origin: p.card.origin, Birth: p.card.birth,
			Addr: p.addr, API: p.card.api, Version: p.card.version, Until: p.card.restart, NoPods: p.card.noPods,
		}
		m.State = state(p, v.evidence[name], v.now, v.limits)
		if !v.now.Before(m.Until) {
			m.Until = time.Time{}
		}
		out[name] = m
	}
	out[v.self.Name] = v.self
	for name, m := range out {
		m.Since = v.now
		if b, ok := v.before[name]; ok && b.State == m.State && b.Birth == m.Birth {
			m.Since = b.Since
		}
		out[name] = m
	}
	return out
}

// sorted returns the members in order of name.
func sorted(members map[string]Member) []Member {
	return slices.SortedFunc(maps.Values(members), func(a, b Member) int { return cmp.Compare(a.Name, b.Name) })
}
