package years

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/mootkube/moot/gossip/crdt"
)

const (
	sequenceReserve = 4096
	tombstoneKeep   = int64(24 * time.Hour / time.Microsecond)
	historyKeep     = int64(10 * time.Minute / time.Microsecond)
	historyMost     = 64
	maxDrift        = 24 * time.Hour
	owedPatience    = int64(time.Minute / time.Microsecond)
	conflictPrefix  = "/moot/conflicts/"
	memberPrefix    = "/moot/members/"
	noteKey         = "/moot/local/forgotten"
)

var errDrift = errors.New("a stamp is too far ahead")

// node is one machine with its replica.
type node struct {
	w       *world
	id      int
	name    string
	up      bool
	serving bool
	doubt   bool  // its disk may be an older one
	life    int   // counts starts and stops: what an older life planned is void
	offset  int64 // of its clock
	since   int64 // it is up
	hoped   int64 // when it last saw a member that includes what it owes

	head    *state // as the committer has it
	disk    *state // as of the last sync; what peers and clients see
	pending []*group
	syncing bool
	clock   crdt.Clock
	newest  time.Time // of the changes that it had when it started
	waiting []*write  // on disk here, not acknowledged yet

	knows  map[string]crdt.Vector // what other members include, as they said
	stable crdt.Vector
	image  *state // the last backup
}

func (n *node) wall() time.Time { return time.UnixMicro(n.w.now + n.offset) }

// begin returns a group to fill.
func (n *node) begin() *group { return &group{} }

// commit makes a group visible to the committer and starts it on its way to
// disk.
func (n *node) commit(g *group) {
	h := n.head
	if h.seq > h.ceiling || h.seq+sequenceReserve/2 > h.ceiling {
		h.ceiling = h.seq + sequenceReserve
	}
	n.keepConflicts(g)
	g.after = *h
	n.pending = append(n.pending, g)
	n.plantSync()
}

func (n *node) plantSync() {
	if n.syncing || len(n.pending) == 0 {
		return
	}
	n.syncing = true
	life, batch := n.life, len(n.pending)
	n.w.plan(n.w.between(time.Millisecond, 20*time.Millisecond), evSync, n.id, 0, func() {
		if n.life == life {
			n.sync(batch)
		}
	})
}

// sync has the first pending groups on disk.
func (n *node) sync(count int) {
	n.syncing = false
	for _, g := range n.pending[:count] {
		n.disk.replay(g)
		n.waiting = append(n.waiting, g.writes...)
	}
	n.pending = append([]*group(nil), n.pending[count:]...)
	n.disk.trim(-1<<62, historyMost)
	n.answer()
	for _, s := range n.w.streams {
		switch n.id {
		case s.to:
			s.planAck()
		case s.from:
			s.planPoll()
		}
	}
	n.plantSync()
}

// put appends a record that the replica makes or takes in.
func (n *node) put(g *group, r *crdt.Record) {
	h := n.head
	h.rev++
	e := entry{rev: h.rev, at: n.w.now + n.offset, key: string(r.Key), rec: r}
	h.keys[e.key] = held{rec: r, rev: e.rev, at: e.at}
	g.puts = append(g.puts, e)
	n.clock.High = max(n.clock.High, r.Latest())
}

// tick names a local change.
func (n *node) tick() (crdt.Dot, crdt.Stamp) {
	if n.doubt {
		n.renew()
		n.w.report.Doubted++
	}
	var stamp crdt.Stamp
	n.clock, stamp = n.clock.Tick(n.wall())
	n.head.seq++
	dot := crdt.Dot{Origin: n.head.origin, Seq: n.head.seq}
	claims := n.head.claims.Clone()
	claims.Note(dot)
	n.head.claims = claims
	return dot, stamp
}

// set does a local put, remove a local delete.
func (n *node) set(g *group, key string, value []byte) *crdt.Record {
	was := n.head.keys[key].rec
	var old []byte
	if was != nil {
		old = was.Value
	}
	ch := crdt.DescribeChange(old, value, nil)
	if n.w.cfg.Break == BreakField && was != nil {
		ch = crdt.DescribeChange(value, value, nil)
	}
	dot, stamp := n.tick()
	r := crdt.Put(was, []byte(key), value, dot, stamp, ch)
	n.put(g, r)
	return r
}

func (n *node) remove(g *group, key string) *crdt.Record {
	dot, stamp := n.tick()
	r := crdt.Delete(n.head.keys[key].rec, []byte(key), dot, stamp)
	n.put(g, r)
	return r
}

// apply takes in a frame of a peer's.
func (n *node) apply(records []*crdt.Record, upTo crdt.Vector) error {
	then := n.newest.Add(time.Duration(n.w.now-n.since) * time.Microsecond)
	limit := crdt.StampAt(n.wall().Add(maxDrift))
	if then.After(n.wall()) {
		limit = crdt.StampAt(then.Add(maxDrift))
	}
	own := n.head.origin
	ahead := upTo[own]
	for _, r := range records {
		if string(r.Key) == noteKey {
			continue
		}
		if r.Latest() > limit {
			return errDrift
		}
		if r.Dot.Origin == own {
			ahead = max(ahead, r.Dot.Seq)
		}
	}
	if ahead > n.head.seq {
		n.renew()
		n.w.report.Renewed++
	}
	g := n.begin()
	for _, r := range records {
		n.applyOne(g, r)
	}
	n.claim(g, upTo)
	n.settleOwed(g)
	n.w.report.Applied += len(records)
	n.commit(g)
	return nil
}

func (n *node) applyOne(g *group, came *crdt.Record) {
	h := n.head
	key := string(came.Key)
	if key == noteKey {
		v, err := crdt.DecodeVector(came.Value)
		if err != nil {
			panic(err) // a broken invariant of the model
		}
		h.forgotten = h.forgotten.Clone()
		h.forgotten.Join(v)
		if !h.claims.Includes(v) { // history tells nothing of them
			g.unseen = v
			h.rev++
		}
		return
	}
	if h.claims.Covers(came.Dot) && (!came.Joined() || h.claims.Includes(came.Seen())) {
		return
	}
	last, ok := h.keys[key]
	if ok && came.Dot == last.rec.Dot && !came.Joined() && !last.rec.Joined() {
		return
	}
	was := n.recall(last.rec, came)
	n.w.sampleLaws(came)
	next, outcome, lost := n.w.merge(was, came)
	if outcome == crdt.Kept {
		return
	}
	if outcome == crdt.Merged {
		n.w.report.Merged++
	}
	g.conflicts = append(g.conflicts, lost...)
	r := *next
	n.put(g, &r)
}

// recall returns what is held, nil for nothing, with the forgotten deletes that
// what came tells of.
func (n *node) recall(was, came *crdt.Record) *crdt.Record {
	forgotten := slices.ContainsFunc(came.Births(), func(birth crdt.Dot) bool {
		return n.head.claims.Covers(birth) && (was == nil || !was.Covers(birth))
	})
	if !forgotten || n.w.cfg.Break == BreakRemains || n.w.cfg.Break == BreakRecall && was != nil {
		return was
	}
	included := crdt.Vector{}
	for o, seq := range came.Seen() {
		if k := min(seq, n.head.claims[o]); k > 0 {
			included[o] = k
		}
	}
	return crdt.Recall(was, came, included)
}

// claim claims all of v, which the head includes.
func (n *node) claim(g *group, v crdt.Vector) {
	h := n.head
	if h.claims.Includes(v) {
		return
	}
	claims := h.claims.Clone()
	for o, seq := range v {
		if claims[o] < seq {
			claims[o] = seq
			g.news = append(g.news, crdt.Dot{Origin: o, Seq: seq})
		}
	}
	slices.SortFunc(g.news, func(a, b crdt.Dot) int { return strings.Compare(a.String(), b.String()) })
	h.claims = claims
}

// renew begins a new incarnation.
func (n *node) renew() { n.head.origin, n.doubt = n.w.drawOrigin(), false }

// trust ends the doubt once the replica has what every member has.
func (n *node) trust() {
	if n.disk.keys[memberPrefix+n.name].rec == nil {
		return // it does not know the members yet
	}
	for key, it := range n.disk.keys {
		name, ok := strings.CutPrefix(key, memberPrefix)
		if ok && name != n.name && !it.rec.Deleted && !n.includes(name) {
			return
		}
	}
	n.doubt = false
}

// includes reports whether the replica has what a member has that can be asked, and
// of its own changes also what that one does not include yet.
func (n *node) includes(name string) bool {
	return slices.ContainsFunc(n.w.nodes, func(p *node) bool {
		return p.name == name && n.w.reach(p.id, n.id) && n.disk.claims.Includes(p.disk.claims) &&
			p.disk.newestOf(n.head.origin) <= n.disk.claims[n.head.origin]
	})
}

// wipe takes everything out, to be had anew from a peer that includes covered.
func (n *node) wipe(covered crdt.Vector) {
	h := n.head
	before := h.claims
	n.renew()
	next := &owed{covered: covered.Clone(), claims: before.Clone()}
	if h.owed != nil {
		next.covered.Join(h.owed.covered)
		next.claims.Join(h.owed.claims)
		next.aside = slices.Clone(h.owed.aside)
	}
	for _, key := range sorted(h.keys) {
		r := h.keys[key].rec
		included := crdt.Vector{r.Dot.Origin: r.Dot.Seq}
		if r.Joined() {
			included = r.Seen()
		}
		if !covered.Includes(included) && n.w.cfg.Break != BreakAside {
			next.aside = append(next.aside, r)
		}
	}
	h.keys, h.owed, h.past = map[string]held{}, next, before
	h.forgotten, h.claims = crdt.Vector{}, crdt.Vector{}
	h.rev++
	g := n.begin()
	g.reset = true
	n.settleOwed(g)
	n.commit(g)
}

// settleOwed applies and claims what was set aside, once the replica has what
// the peer had.
func (n *node) settleOwed(g *group) {
	o := n.head.owed
	if o == nil || !n.head.claims.Includes(o.covered) {
		return
	}
	n.applyAside(g, o.claims)
}

// applyAside applies what was set aside and makes claims again.
func (n *node) applyAside(g *group, claims crdt.Vector) {
	aside := n.head.owed.aside
	n.head.owed = nil
	for _, r := range aside {
		n.applyOne(g, r)
	}
	n.claim(g, claims)
}

// takesFrom reports whether the replica may take in what a peer has: a wiped
// one, only from those that include what it owes. What others lack of that, its
// peer may have forgotten.
func (n *node) takesFrom(has crdt.Vector) bool {
	return n.head.owed == nil || has.Includes(n.head.owed.covered)
}

// giveUpOwed goes on without what was wiped when there are members, and none of
// them has had it for a while.
func (n *node) giveUpOwed() {
	others := false
	for _, p := range n.w.nodes {
		if p == n || !n.w.reach(p.id, n.id) {
			continue
		}
		others = true
		if n.takesFrom(p.disk.claims) {
			n.hoped = n.w.now
		}
	}
	if !others {
		n.hoped = n.w.now
	}
	if n.w.now-n.hoped < owedPatience {
		return
	}
	n.w.report.GivenUp++
	g := n.begin()
	n.applyAside(g, n.head.owed.known(n.head.claims))
	n.commit(g)
}

// keepConflicts writes down what lost.
func (n *node) keepConflicts(g *group) {
	for i := range g.conflicts {
		c := &g.conflicts[i]
		if strings.HasPrefix(c.Key, "/moot/") || n.w.cfg.Break == BreakConflicts {
			continue
		}
		value, err := json.Marshal(c)
		if err != nil {
			panic(err)
		}
		sum := sha256.Sum256(value)
		key := conflictPrefix + hex.EncodeToString(sum[:16])
		if _, ok := n.head.keys[key]; !ok {
			dot, stamp := n.tick()
			n.put(g, crdt.Put(nil, []byte(key), value, dot, stamp, crdt.Change{}))
			n.w.report.Conflicts++
		}
	}
	g.conflicts = nil
}

// compact trims the history and forgets tombstones that nobody needs.
func (n *node) compact() {
	wall := n.w.now + n.offset
	n.disk.trim(wall-historyKeep, historyMost)
	if v := n.floor(); v != nil {
		n.learnStable(v)
	}
	g := n.begin()
	h := n.head
	floor, dead := n.disk.floor(), map[string]held{}
	for key, it := range h.keys {
		if it.rec.Deleted && it.rev < floor && len(n.pending) == 0 {
			dead[key] = it
		}
	}
	for _, key := range sorted(dead) {
		it := dead[key]
		seen := crdt.Vector{it.rec.Dot.Origin: it.rec.Dot.Seq}
		if it.rec.Joined() {
			seen = it.rec.Seen()
		}
		if !n.stable.Includes(seen) && it.at > wall-tombstoneKeep && n.w.cfg.Break != BreakStable {
			continue
		}
		if !h.claims.Includes(it.rec.Seen()) {
			continue // of an origin that was lost in the middle of a frame
		}
		forgotten := h.forgotten.Clone()
		forgotten.Join(seen)
		if n.w.cfg.Break != BreakForgotten {
			h.forgotten = forgotten
		}
		delete(h.keys, key)
		g.gone = append(g.gone, key)
		n.w.report.Buried++
	}
	if len(g.gone) > 0 {
		n.commit(g)
	}
}

// floor returns what all members have, nil when that is not known of all.
func (n *node) floor() crdt.Vector {
	if n.disk.keys[memberPrefix+n.name].rec == nil {
		return nil // it does not know the members yet
	}
	out := n.disk.claims.Clone()
	for _, key := range sorted(n.disk.keys) {
		name, ok := strings.CutPrefix(key, memberPrefix)
		if !ok || name == n.name || n.disk.keys[key].rec.Deleted {
			continue
		}
		has := n.knows[name]
		if len(has) == 0 {
			return nil
		}
		lowest(out, has)
	}
	return out
}

func (n *node) learnStable(v crdt.Vector) {
	if !n.stable.Includes(v) {
		n.stable = n.stable.Clone()
		n.stable.Join(v)
	}
}

// hear notes what a member says that it includes.
func (n *node) hear(name string, v crdt.Vector) {
	if !n.knows[name].Includes(v) || n.knows[name] == nil {
		k := n.knows[name].Clone()
		k.Join(v)
		n.knows[name] = k
	}
}
