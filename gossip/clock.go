package gossip

import "time"

// peerClock is what this node knows of a member's clock.
type peerClock struct {
	age    time.Duration // for which the member has run
	offset time.Duration // its clock minus this node's
}

// behind returns how far this node's clock, at this age, is behind those of all
// members that have clearly run for longer, zero when one of them agrees with it or
// is behind itself. A machine that keeps no time while it is off, and has found no
// time server yet, has no reason to believe its own clock rather than theirs; one
// that has run for longer does not follow those that come.
func behind(age time.Duration, peers []peerClock) time.Duration {
	least := time.Duration(-1)
	for _, p := range peers {
		if p.age-age <= ageError(p.age) {
			continue
		}
		if least < 0 || p.offset < least {
			least = max(p.offset, 0)
		}
	}
	return max(least, 0)
}

// clockMemory is for how long what was measured of a clock is believed.
const clockMemory = time.Minute

// ClockBehind returns how far this node's clock is behind those of the members that
// have run for longer, as far as it has measured them of late; zero when they do not
// all say so.
func (a *Agent) ClockBehind() time.Duration {
	own, _ := a.seniority()
	now := time.Now()
	var peers []peerClock
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, l := range a.links {
		if p, ok := l.clock(now); ok {
			peers = append(peers, p)
		}
	}
	return behind(own.age, peers)
}
