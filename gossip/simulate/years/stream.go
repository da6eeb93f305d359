package years

import (
	"bytes"
	"cmp"
	"slices"
	"time"

	"github.com/mootkube/moot/gossip/crdt"
)

// Bounds of a stream. A frame is short so that most of what is sent is cut off
// in the middle now and then.
const (
	frameRecords = 8
	flyingMost   = 4
	retryFirst   = int64(50 * time.Millisecond / time.Microsecond)
	retryLast    = int64(time.Minute / time.Microsecond)
	ackWait      = 500 * time.Millisecond
)

// stream is how one node tails another: see gossip/store, tail.go.
type stream struct {
	w        *world
	from, to int

	open    bool
	epoch   int // counts openings; what an older one planned is void
	dialing bool
	backoff int64

	have, sent crdt.Vector
	next       int64
	cut        []*crdt.Record
	cutting    bool
	cutEnd     frame

	flying  int
	lastAt  int64
	polling bool
	acking  bool
}

// frame is a piece of what a replica holds.
type frame struct {
	records []*crdt.Record
	vector  crdt.Vector // nil within a cut
}

// planDial has the follower try to open the stream.
func (s *stream) planDial(after int64) {
	if s.dialing || s.open {
		return
	}
	s.dialing = true
	s.w.plan(after, evDial, s.from, s.to, func() {
		s.dialing = false
		if !s.open && s.w.reach(s.from, s.to) {
			s.dial()
		}
	})
}

// retry opens the stream again after a while.
func (s *stream) retry() {
	s.backoff = min(max(2*s.backoff, retryFirst), retryLast)
	s.planDial(s.w.rng.Int64N(s.backoff) + s.backoff/2)
}

func (s *stream) close() {
	s.open = false
	s.epoch++
	s.flying, s.polling, s.acking = 0, false, false
	s.cut, s.cutting = nil, false
}

// dial opens the stream: the follower says what it has, the server where it
// begins.
func (s *stream) dial() {
	from, to := s.w.nodes[s.from], s.w.nodes[s.to]
	s.close()
	to.hear(from.name, from.disk.claims)
	from.hear(to.name, to.disk.claims)
	if !to.takesFrom(from.disk.claims) {
		s.retry()
		return
	}
	s.have, s.sent, s.next = to.disk.claims.Clone(), crdt.Vector{}, 0
	if !s.sync(from.disk) {
		s.w.report.Refused++
		s.w.leftBehind(to, from)
		s.retry()
		return
	}
	s.open = true
	s.planPoll()
}

// sync makes sure that the follower can go on with the history, or begins a
// cut. It reports false when the follower lacks what is forgotten.
func (s *stream) sync(d *state) bool {
	switch {
	case s.next > 0 && s.next >= d.floor():
		return true
	case s.have.Includes(d.past):
		s.sent.Join(d.past)
		s.next = max(s.next, 1)
		return true
	case len(s.have) > 0 && !s.have.Includes(d.forgotten):
		return false
	}
	s.beginCut(d)
	return true
}

func (s *stream) lacks(r *crdt.Record) bool { return r.Joined() || !s.have.Covers(r.Dot) }

func (s *stream) includes(r *crdt.Record) bool {
	return s.have.Covers(r.Dot) && (!r.Joined() || s.have.Includes(r.Seen()))
}

func (s *stream) beginCut(d *state) {
	s.w.report.Cuts++
	type born struct {
		rec *crdt.Record
		at  crdt.Stamp
	}
	var cut []born
	for _, it := range d.keys {
		if s.lacks(it.rec) {
			cut = append(cut, born{it.rec, it.rec.Born()})
		}
	}
	slices.SortFunc(cut, func(a, b born) int {
		if a.rec.Deleted != b.rec.Deleted {
			if a.rec.Deleted {
				return 1
			}
			return -1
		}
		return cmp.Or(cmp.Compare(a.at, b.at), bytes.Compare(a.rec.Key, b.rec.Key))
	})
	s.cut = nil
	for _, b := range cut {
		s.cut = append(s.cut, b.rec)
	}
	s.cutting = true
	s.cutEnd = frame{vector: d.claims}
	s.next = d.rev + 1
	if len(d.forgotten) > 0 {
		s.cutEnd.records = []*crdt.Record{{Key: []byte(noteKey), Value: d.forgotten.Append(nil), Dot: crdt.Dot{Origin: d.origin, Seq: 1}, Stamp: 1}}
	}
}

// planPoll has the server look for something to send.
func (s *stream) planPoll() {
	if !s.open || s.polling || s.flying >= flyingMost {
		return
	}
	s.polling = true
	epoch := s.epoch
	s.w.plan(s.w.between(0, 5*time.Millisecond), evPoll, s.from, s.to, func() {
		if s.epoch == epoch {
			s.polling = false
			s.poll()
		}
	})
}

func (s *stream) poll() {
	d := s.w.nodes[s.from].disk
	if !s.cutting && !s.sync(d) {
		s.close()
		s.retry()
		return
	}
	var f frame
	if s.cutting {
		f = s.nextOfCut()
	} else {
		f = s.window(d)
	}
	if len(f.records) == 0 && f.vector == nil {
		return
	}
	s.flying++
	at := max(s.lastAt, s.w.now+s.w.latency())
	s.lastAt = at
	epoch := s.epoch
	s.w.plan(at-s.w.now, evDeliver, s.from, s.to, func() {
		if s.epoch == epoch {
			s.deliver(f)
		}
	})
	s.planPoll()
}

// window returns the next piece of history, an empty one when there is none.
func (s *stream) window(d *state) frame {
	first, _ := slices.BinarySearchFunc(d.history, s.next, func(e entry, rev int64) int { return cmp.Compare(e.rev, rev) })
	rev, news := d.rev, crdt.Vector{}
	var f frame
	for _, e := range d.history[first:] {
		if len(f.records) >= frameRecords {
			break
		}
		rev = e.rev
		if e.rec.Dot.Origin == d.origin {
			news.Note(e.rec.Dot)
		}
		if !s.includes(e.rec) {
			f.records = append(f.records, e.rec)
		}
	}
	if n := len(d.history); n > 0 && rev >= d.history[n-1].rev {
		rev = d.rev
	}
	if rev == d.rev {
		s.sent = d.claims.Clone()
	} else {
		for _, m := range d.marks {
			if m.rev >= s.next && m.rev <= rev {
				for _, dot := range m.news {
					news.Note(dot)
				}
			}
		}
		s.sent.Join(news)
	}
	s.next = rev + 1
	if len(f.records) > 0 || !s.have.Includes(s.sent) {
		f.vector = s.sent.Clone()
		s.have.Join(s.sent)
	}
	return f
}

func (s *stream) nextOfCut() frame {
	n := min(len(s.cut), frameRecords)
	f := frame{records: s.cut[:n:n]}
	s.cut = s.cut[n:]
	if s.w.cfg.Break == BreakCut {
		f.vector = s.cutEnd.vector
	}
	if len(s.cut) > 0 {
		return f
	}
	s.cutting = false
	f.records = append(f.records, s.cutEnd.records...)
	f.vector = s.cutEnd.vector
	s.sent = f.vector.Clone()
	s.have.Join(s.sent)
	return f
}

// deliver hands a frame to the follower.
func (s *stream) deliver(f frame) {
	s.flying--
	if err := s.w.nodes[s.to].apply(f.records, f.vector); err != nil {
		s.w.report.Drifted++
		s.close()
		s.planDial(s.w.between(2*time.Minute, 10*time.Minute)) // a clock is not set right sooner
		return
	}
	s.backoff = 0
	s.planPoll()
}

// planAck has the follower tell the server what it has on disk.
func (s *stream) planAck() {
	if !s.open || s.acking {
		return
	}
	s.acking = true
	epoch := s.epoch
	s.w.plan(s.w.latency(), evAck, s.from, s.to, func() {
		if s.epoch != epoch {
			return
		}
		s.acking = false
		from, to := s.w.nodes[s.from], s.w.nodes[s.to]
		from.hear(to.name, to.disk.claims)
		s.have.Join(to.disk.claims)
		from.acknowledged(to.disk.claims)
	})
}

// answer acknowledges the writes on disk for which there is no peer to wait,
// and gives the rest some time.
func (n *node) answer() {
	if len(n.waiting) == 0 {
		return
	}
	if !n.followed() {
		for _, wr := range n.waiting {
			n.w.oracle.acked(wr, true)
		}
		n.waiting = nil
		return
	}
	life, last := n.life, n.waiting[len(n.waiting)-1]
	n.w.plan(int64(ackWait/time.Microsecond), evGiveUp, n.id, 0, func() {
		if n.life != life {
			return
		}
		for len(n.waiting) > 0 && n.waiting[0].number <= last.number {
			n.w.oracle.acked(n.waiting[0], true)
			n.waiting = n.waiting[1:]
		}
	})
}

// followed reports whether some node tails this one.
func (n *node) followed() bool {
	return slices.ContainsFunc(n.w.streams, func(s *stream) bool { return s.from == n.id && s.open })
}

// acknowledged answers the writes that a peer includes.
func (n *node) acknowledged(v crdt.Vector) {
	n.waiting = slices.DeleteFunc(n.waiting, func(wr *write) bool {
		if !v.Covers(wr.dot) {
			return false
		}
		n.w.oracle.acked(wr, false)
		return true
	})
}
