package years

import (
	"cmp"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/mootkube/moot/gossip/crdt"
)

// Break names a rule that is broken on purpose.
type Break string

// The rules that can be broken.
const (
	BreakNothing   Break = ""
	BreakRemains   Break = "a late change brings a forgotten object back"
	BreakRecall    Break = "a late change brings a forgotten object back beside one that came after it"
	BreakStable    Break = "tombstones go before all members have them"
	BreakForgotten Break = "replicas that lack what is forgotten are served"
	BreakAside     Break = "a wiped replica keeps nothing of its own"
	BreakConflicts Break = "what lost is not listed"
	BreakCut       Break = "a cut is claimed before it is whole"
	BreakDots      Break = "a replica whose disk was put back goes on as the same incarnation"
	BreakSync      Break = "writes are acknowledged before they are on disk"
	BreakMerge     Break = "of two concurrent states the newer one stays, whole"
	BreakField     Break = "a write claims none of the fields that it changes"
)

// Breaks are all of them.
func Breaks() []Break {
	return []Break{BreakRemains, BreakRecall, BreakStable, BreakForgotten, BreakAside, BreakConflicts, BreakCut, BreakDots, BreakSync, BreakMerge, BreakField}
}

// Config says which history to play.
type Config struct {
	Seed  uint64
	Nodes int // of the cluster
	Hours int // simulated
	Break Break
}

// Report says what happened.
type Report struct {
	NodeHours                                                        float64
	Writes, Acked, AckedAlone, Lost                                  int // Lost: acknowledged, and all replicas that had it lost their disks
	Applied, Merged, Conflicts, Buried, Cuts                         int
	Refused, Wiped, GivenUp, Drifted, Renewed, Doubted, Checks, Laws int
	Unlike                                                           int // objects found equal on two replicas that know different pasts of their keys
	Faults                                                           map[string]int
	Violations                                                       []string
	Trace                                                            uint64
	Events                                                           uint64
}

// Add adds another report's numbers.
func (r *Report) Add(o Report) {
	r.NodeHours += o.NodeHours
	for _, p := range [][2]*int{
		{&r.Writes, &o.Writes}, {&r.Acked, &o.Acked}, {&r.AckedAlone, &o.AckedAlone}, {&r.Lost, &o.Lost}, {&r.Applied, &o.Applied},
		{&r.Merged, &o.Merged}, {&r.Conflicts, &o.Conflicts}, {&r.Buried, &o.Buried}, {&r.Cuts, &o.Cuts}, {&r.Refused, &o.Refused},
		{&r.Wiped, &o.Wiped}, {&r.GivenUp, &o.GivenUp}, {&r.Drifted, &o.Drifted}, {&r.Renewed, &o.Renewed}, {&r.Doubted, &o.Doubted}, {&r.Checks, &o.Checks}, {&r.Laws, &o.Laws}, {&r.Unlike, &o.Unlike},
	} {
		*p[0] += *p[1]
	}
	if r.Faults == nil {
		r.Faults = map[string]int{}
	}
	for name, n := range o.Faults {
		r.Faults[name] += n
	}
	r.Violations = append(r.Violations, o.Violations...)
	r.Events += o.Events
	r.Trace = (r.Trace ^ o.Trace) * 1099511628211
}

// String lists the numbers.
func (r *Report) String() string {
	var s strings.Builder
	fmt.Fprintf(&s, "%.0f node-hours, %d events: %d writes, %d acknowledged (%d alone), %d lost with every disk that had them\n"+
		"replication: %d records applied, %d joined, %d conflicts listed, %d tombstones forgotten, %d cuts, %d refusals, %d wipes (%d given up), %d frames refused for drift, %d incarnations renewed, %d begun in doubt\n"+
		"checked: %d times after healing, laws of merge %d times; %d times two replicas knew different pasts of an object that is the same on both\nfaults:",
		r.NodeHours, r.Events, r.Writes, r.Acked, r.AckedAlone, r.Lost, r.Applied, r.Merged, r.Conflicts, r.Buried, r.Cuts, r.Refused, r.Wiped, r.GivenUp, r.Drifted, r.Renewed, r.Doubted, r.Checks, r.Laws, r.Unlike)
	for _, name := range sorted(r.Faults) {
		fmt.Fprintf(&s, " %s %d,", name, r.Faults[name])
	}
	return fmt.Sprintf("%s\nviolations: %d; trace %016x", strings.TrimSuffix(s.String(), ","), len(r.Violations), r.Trace)
}

// world is one cluster and its time. It belongs to one goroutine.
type world struct {
	cfg     Config
	rng     *rand.Rand
	now     int64 // microseconds since the epoch
	end     int64
	queue   events
	planned uint64
	trace   uint64

	nodes   []*node
	streams []*stream
	side    []int          // of the cut network each node is on
	broken  map[[2]int]int // links that are down, by how many faults
	quiet   bool           // no faults and no writes: healing
	named   int            // nodes named so far

	oracle oracle
	report Report
}

// Run plays one history.
func Run(cfg Config) Report {
	start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC).UnixMicro()
	w := &world{
		cfg: cfg, rng: rand.New(rand.NewPCG(cfg.Seed, 7)), now: start, //nolint:gosec // chances are to be repeatable
		end: start + hours(float64(cfg.Hours)), broken: map[[2]int]int{}, trace: 14695981039346656037,
		report: Report{Faults: map[string]int{}},
	}
	w.oracle = newOracle(w)
	w.build()
	for w.now < w.end && len(w.report.Violations) == 0 {
		w.step()
		w.report.Events++
	}
	w.report.NodeHours = float64(cfg.Nodes) * float64(w.now-start) / float64(hours(1))
	w.report.Trace = w.trace
	return w.report
}

func hours(h float64) int64 { return int64(h * float64(time.Hour/time.Microsecond)) }

// build founds the cluster and plans its life.
func (w *world) build() {
	n := w.cfg.Nodes
	w.side = make([]int, n)
	for i := range n {
		w.nodes = append(w.nodes, w.newNode(i))
	}
	for i := range n {
		for j := range n {
			if i != j {
				w.streams = append(w.streams, &stream{w: w, from: i, to: j})
			}
		}
	}
	founder := w.nodes[0]
	w.start(founder)
	g := founder.begin()
	for _, m := range w.nodes {
		founder.set(g, memberPrefix+m.name, member(m.name))
	}
	founder.commit(g)
	for _, m := range w.nodes[1:] {
		w.start(m)
	}
	for i := range n {
		w.planTick(w.nodes[i])
	}
	w.planWrites()
	w.planFaults()
	w.planHeal()
}

func member(name string) []byte { return fmt.Appendf(nil, `{"name":%q}`, name) }

func (w *world) newNode(id int) *node {
	w.named++
	return &node{w: w, id: id, name: fmt.Sprintf("n%d", w.named), disk: newState(w.drawOrigin())}
}

func (w *world) drawOrigin() crdt.Origin { return crdt.Origin(w.rng.Uint64()>>1 | 1) }

// between draws a time.
func (w *world) between(from, to time.Duration) int64 {
	return int64(from/time.Microsecond) + w.rng.Int64N(int64((to-from)/time.Microsecond)+1)
}

// latency is what a message takes: a moment, now and then longer.
func (w *world) latency() int64 {
	if w.rng.IntN(100) == 0 {
		return w.between(10*time.Millisecond, 2*time.Second)
	}
	return w.between(200*time.Microsecond, 20*time.Millisecond)
}

// exponential draws the time to the next of events that come that often.
func (w *world) exponential(mean int64) int64 { return int64(w.rng.ExpFloat64() * float64(mean)) }

// reach reports whether two nodes are up and can talk.
func (w *world) reach(a, b int) bool {
	return w.nodes[a].up && w.nodes[b].up && w.linked(a, b)
}

func (w *world) linked(a, b int) bool {
	return w.side[a] == w.side[b] && w.broken[[2]int{min(a, b), max(a, b)}] == 0
}

// links closes the streams that cannot be and has the others dialed.
func (w *world) links() {
	for _, s := range w.streams {
		switch can := w.reach(s.from, s.to); {
		case !can && s.open:
			s.close()
		case can && !s.open:
			s.backoff = 0
			s.planDial(w.between(10*time.Millisecond, time.Second))
		}
	}
	for _, n := range w.nodes {
		n.answer()
	}
}

// start powers a node on.
func (w *world) start(n *node) {
	n.up, n.serving = true, false
	n.life++
	n.since, n.hoped = w.now, w.now
	n.doubt = n.doubt && len(n.disk.claims) > 0 && w.cfg.Break != BreakDots
	n.disk.marks = nil // kept in memory only
	n.head = n.disk.clone()
	n.head.seq = n.head.ceiling
	n.pending, n.waiting, n.syncing = nil, nil, false
	n.knows, n.stable = map[string]crdt.Vector{}, crdt.Vector{}
	n.clock = crdt.Clock{}
	for _, it := range n.disk.keys {
		n.clock.High = max(n.clock.High, it.rec.Latest())
	}
	n.newest = n.clock.High.Time()
	w.links()
	w.planServe(n)
}

// stop ends a node: with unsynced true, all that it handed to its system
// survives, else a part of it does, in order.
func (w *world) stop(n *node, unsynced bool) {
	keep := len(n.pending)
	if !unsynced {
		keep = w.rng.IntN(keep + 1)
	}
	for _, g := range n.pending[:keep] {
		n.disk.replay(g)
	}
	for _, g := range n.pending[keep:] {
		for _, wr := range g.writes {
			wr.gone = true
		}
	}
	n.up, n.serving = false, false
	n.doubt = n.doubt || !unsynced // the machine boots
	n.life++
	n.pending, n.waiting, n.syncing, n.head = nil, nil, false, nil
	w.links()
}

// planServe lets a node serve clients once it has what a peer has; one that is
// not new gives up on that after some seconds. One that was wiped serves when
// what it owes is settled.
func (w *world) planServe(n *node) {
	life := n.life
	w.plan(w.between(500*time.Millisecond, 1500*time.Millisecond), evServe, n.id, 0, func() {
		if n.life != life || n.serving {
			return
		}
		if n.head.owed != nil {
			n.giveUpOwed()
			w.planServe(n)
			return
		}
		alone, whole := true, false
		for _, p := range w.nodes {
			if p != n && w.reach(p.id, n.id) {
				alone = false
				whole = whole || n.disk.claims.Includes(p.disk.claims)
			}
		}
		n.trust()
		empty := len(n.disk.claims) == 0
		late := w.now-n.since > int64(5*time.Second/time.Microsecond)
		if whole || !empty && (alone || late) || alone && n.id == 0 && n.name == "n1" {
			n.serving = true
			return
		}
		w.planServe(n)
	})
}

// planTick has a node tidy up now and then, and hear what is stable.
func (w *world) planTick(n *node) {
	w.plan(w.between(8*time.Minute, 12*time.Minute), evTick, n.id, 0, func() {
		n = w.nodes[n.id] // it may have been replaced
		if n.up {
			for _, s := range w.streams {
				if s.open && s.to == n.id {
					n.learnStable(w.nodes[s.from].stable)
				}
			}
			n.compact()
		}
		w.planTick(n)
	})
}

// standing is what a node that must not follow another says for itself.
type standing struct {
	members int
	first   string
}

func (n *node) standing() standing {
	s := standing{first: n.name}
	if !n.serving {
		return s
	}
	s.members = 1
	for _, st := range n.w.streams {
		if st.to == n.id && st.open {
			s.members++
			s.first = min(s.first, n.w.nodes[st.from].name)
		}
	}
	return s
}

func (s standing) givesWay(o standing) bool {
	if s.members != o.members {
		return s.members < o.members
	}
	return s.first > o.first
}

// leftBehind deals with a follower that lacks what the server has forgotten.
func (w *world) leftBehind(follower, server *node) {
	if !follower.standing().givesWay(server.standing()) {
		return
	}
	for _, s := range w.streams {
		if s.from == follower.id || s.to == follower.id {
			s.close()
			s.backoff = 0
			s.retry()
		}
	}
	follower.serving = false
	follower.since, follower.hoped = w.now, w.now
	follower.wipe(server.disk.claims)
	w.report.Wiped++
	w.planServe(follower)
}

// merge joins two states of a key.
func (w *world) merge(held, came *crdt.Record) (*crdt.Record, crdt.Outcome, []crdt.Conflict) {
	next, outcome, lost, err := crdt.Merge(held, came)
	if err != nil {
		panic(err) // a broken invariant of the model
	}
	if outcome == crdt.Merged && w.cfg.Break == BreakMerge {
		if held.Stamp > came.Stamp {
			return held, crdt.Kept, nil
		}
		return came, crdt.Replaced, nil
	}
	return next, outcome, lost
}

func sorted[V any](m map[string]V) []string {
	return slices.SortedFunc(maps.Keys(m), func(a, b string) int { return cmp.Compare(a, b) })
}

func (n *node) standingText() string {
	text := fmt.Sprintf("%s: up %v, serving %v", n.name, n.up, n.serving)
	if !n.up {
		return text
	}
	text += fmt.Sprintf(", %d keys, owed %v, pending %d, claims %v, forgotten %v; follows", len(n.head.keys), n.head.owed != nil, len(n.pending), n.disk.claims, n.disk.forgotten)
	for _, s := range n.w.streams {
		if s.to == n.id {
			text += fmt.Sprintf(" %s %v", n.w.nodes[s.from].name, s.open)
		}
	}
	return text
}
