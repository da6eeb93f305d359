package gossip

import (
	"sync"
	"time"

	"github.com/mootkube/moot/gossip/crdt"
)

// link is what this node knows of one peer from the streams between them.
type link struct {
	name string
	poke func() // the membership loop should look

	mu sync.Mutex

	// The stream on which this node tails the peer.
	wanted    bool   // it ought to be there
	connected bool   // it is
	accepted  bool   // and the peer has not refused this node as left behind
	broken    bool   // it was, and is not; or the peer refuses connections
	heard     uint64 // pieces of messages of the peer so far
	parts     uint64 // with changes of the peer that have been applied
	waiting   bool   // this node is behind in reading
	contact   time.Time
	err       string
	roundTrip time.Duration
	offset    time.Duration // the peer's clock minus ours
	said      seniority     // of itself
	saidAt    time.Time

	// The stream on which the peer tails this node.
	followers int

	vector   crdt.Vector // what the peer has, as far as known
	digest   string      // of its content
	digestOf crdt.Vector // when it had this vector

	// Of the membership loop.
	seen   uint64        // heard, when it last looked
	silent time.Duration // how long it has looked at the same
}

// hear notes that something of the peer arrived.
func (l *link) hear() {
	l.mu.Lock()
	l.heard++
	l.contact = time.Now()
	l.mu.Unlock()
}

// apply notes that changes of the peer have been applied.
func (l *link) apply(parts uint64) {
	l.mu.Lock()
	l.parts += parts
	l.mu.Unlock()
}

// applied counts what the peer sent and this node has applied.
func (l *link) applied() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.parts
}

// learn notes what the peer has.
func (l *link) learn(v crdt.Vector) {
	if len(v) == 0 {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.vector == nil {
		l.vector = make(crdt.Vector, len(v))
	}
	l.vector.Join(v)
}

// knows returns a copy of what the peer is known to have.
func (l *link) knows() crdt.Vector {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.vector.Clone()
}

// say notes how old the peer says that it is.
func (l *link) say(s seniority) {
	l.mu.Lock()
	l.said, l.saidAt = s, time.Now()
	l.mu.Unlock()
}

// seniority returns how old the peer is, zero when that is not known of the run
// that has this birth.
func (l *link) seniority(birth crdt.Stamp, now time.Time) seniority {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.said.birth != birth {
		return seniority{}
	}
	return seniority{birth: birth, age: l.said.age + now.Sub(l.saidAt)}
}

// ours returns by this node's clock what a time by the peer's is, as far as the
// offset is known. Offsets below a second are left alone: they are measured anew
// all the time.
func (l *link) ours(t time.Time) time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	return t.Add(-l.offset.Truncate(time.Second))
}

// up notes that the stream to the peer stands.
func (l *link) up() {
	l.mu.Lock()
	changed := !l.connected
	l.connected, l.accepted, l.broken, l.err = true, false, false, ""
	l.heard++
	l.contact = time.Now()
	l.mu.Unlock()
	if changed {
		l.poke()
	}
}

// down notes that the stream ended. Refused by the peer's own words it says
// nothing about whether the peer lives.
func (l *link) down(err error, answered bool) {
	l.mu.Lock()
	l.connected, l.accepted = false, false
	l.broken = !answered
	if err != nil {
		l.err = err.Error()
	}
	l.mu.Unlock()
	l.poke()
}

// count notes that the peer opened or closed streams to tail this node.
func (l *link) count(delta int) {
	l.mu.Lock()
	l.followers += delta
	l.mu.Unlock()
}

// streams reports whether there is a stream of either direction.
func (l *link) streams() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.connected || l.followers > 0
}

// want says whether the stream ought to be there.
func (l *link) want(w bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.wanted = w
	if !w {
		l.broken, l.err = false, ""
	}
}

// pause tells that this node reads no further for now, for reasons of its own.
func (l *link) pause(p bool) {
	l.mu.Lock()
	l.waiting = p
	l.mu.Unlock()
}

// look returns what the stream says about the peer, elapsed after the last
// look. Time counts only while this node runs: one that was paused itself does
// not blame its peers.
func (l *link) look(elapsed time.Duration) evidence {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.heard != l.seen || l.waiting {
		l.seen, l.silent = l.heard, 0
	} else {
		l.silent += elapsed
	}
	if !l.wanted || l.heard == 0 {
		return evidence{}
	}
	return evidence{known: l.connected || l.broken, broken: l.broken, silent: l.silent}
}

// evidence is what a replication stream says about the life of a peer.
type evidence struct {
	known  bool // there is, or just was, a stream
	broken bool // it was reset, or the peer cannot be reached
	silent time.Duration
}
