package years

import (
	"fmt"
	"time"

	"github.com/mootkube/moot/gossip/crdt"
)

// How often faults come, on average and while no other hinders them.
const (
	cutEvery     = 20.0 // hours, for the cluster
	linkEvery    = 40.0
	crashEvery   = 40.0 // hours, for a node
	killEvery    = 30.0
	clockEvery   = 60.0
	backupEvery  = 24.0
	restoreEvery = 300.0
	removeEvery  = 1000.0
	healEvery    = 60.0 // hours, for the cluster
)

// every plans a fault again and again, for the whole cluster or a node.
func (w *world) every(mean float64, node int, do func(*node)) {
	w.plan(w.exponential(hours(mean)), evFault, node, 0, func() {
		if !w.quiet {
			do(w.nodes[node])
		}
		w.every(mean, node, do)
	})
}

func (w *world) planFaults() {
	w.every(cutEvery, 0, func(*node) { w.cut() })
	w.every(linkEvery, 0, func(*node) { w.breakLink() })
	for i := range w.nodes {
		w.every(crashEvery, i, w.crash)
		w.every(killEvery, i, w.kill)
		w.every(clockEvery, i, w.jump)
		w.every(backupEvery, i, w.backUp)
		w.every(restoreEvery, i, w.restore)
		w.every(removeEvery, i, w.remove)
	}
}

func (w *world) count(fault string) { w.report.Faults[fault]++ }

// span draws how long something lasts: minutes mostly, hours at times, and now
// and then longer than deletes are remembered for sure.
func (w *world) span() int64 {
	switch d := w.rng.IntN(100); {
	case d < 70:
		return w.between(5*time.Second, 20*time.Minute)
	case d < 94:
		return w.between(20*time.Minute, 12*time.Hour)
	}
	return w.between(24*time.Hour, 60*time.Hour)
}

// cut separates some nodes from the others.
func (w *world) cut() {
	w.count("cuts")
	for i := range w.side {
		w.side[i] = w.rng.IntN(2)
		if w.rng.IntN(8) == 0 {
			w.side[i] = 2
		}
	}
	w.links()
	w.burst()
	w.plan(w.span(), evRepair, 0, 0, func() {
		clear(w.side)
		w.links()
	})
}

// breakLink separates two nodes from each other only.
func (w *world) breakLink() {
	a := w.rng.IntN(len(w.nodes))
	b := (a + 1 + w.rng.IntN(len(w.nodes)-1)) % len(w.nodes)
	link := [2]int{min(a, b), max(a, b)}
	w.count("broken links")
	w.broken[link]++
	w.links()
	w.plan(w.span(), evRepair, a, b, func() {
		if w.broken[link] > 0 {
			w.broken[link]--
			w.links()
		}
	})
}

// crash takes a node's power, with what was not synced.
func (w *world) crash(n *node) {
	if !n.up {
		return
	}
	w.burst()
	for range w.rng.IntN(6) { // so that something is on its way to the disk
		if n.serving && !w.quiet {
			n.clientWrite(fmt.Sprintf("/registry/configmaps/default/c%d", w.rng.IntN(keys)))
		}
	}
	life := n.life
	w.plan(w.between(0, 25*time.Millisecond), evFault, n.id, 0, func() {
		if n.life != life || w.quiet {
			return
		}
		w.count("losses of power")
		if len(n.pending) > 0 {
			w.count("of them with changes not on disk")
		}
		w.stop(n, false)
		after := w.span()
		if after > tombstoneKeep {
			w.count("absences beyond the bound")
		}
		w.planStart(n, after)
	})
}

// kill ends a node's process, or restarts it in good order.
func (w *world) kill(n *node) {
	if !n.up {
		return
	}
	w.count("kills")
	w.stop(n, true)
	w.planStart(n, w.between(time.Second, 20*time.Second))
}

// planStart powers a node on, unless that has happened.
func (w *world) planStart(n *node, after int64) {
	life := n.life
	w.plan(after, evRepair, n.id, 0, func() {
		if n.life == life && w.nodes[n.id] == n {
			w.start(n)
		}
	})
}

// jump sets a node's clock wrong, and right again some time later.
func (w *world) jump(n *node) {
	w.count("clock jumps")
	var by int64
	switch w.rng.IntN(6) {
	case 0:
		by = w.between(0, 30*time.Hour)
	case 1, 2:
		by = w.between(0, 2*time.Hour)
	default:
		by = w.between(0, 2*time.Second)
	}
	if w.rng.IntN(2) == 0 {
		by = -by
	}
	n.offset += by
	w.plan(w.between(time.Minute, 6*time.Hour), evRepair, n.id, 0, func() { n.offset = 0 })
}

// backUp copies a node's disk.
func (w *world) backUp(n *node) {
	w.count("backups")
	n.image = n.disk.clone()
}

// restore puts a node's last backup back, which knows nothing of what happened
// since: as a new incarnation, or, when the whole disk was put back, as the one that
// it was.
func (w *world) restore(n *node) {
	if n.image == nil {
		return
	}
	w.count("restores")
	if n.up {
		w.stop(n, false)
	}
	image := n.image.clone()
	if w.rng.IntN(2) == 0 {
		image.origin = w.drawOrigin()
	} else {
		w.count("of them unnoticed")
	}
	w.oracle.lose(n, image)
	n.disk, n.doubt = image, true
	n.life++
	w.planStart(n, w.between(10*time.Second, time.Hour))
}

// remove takes a node out of the cluster for good, as its disk is broken, and
// puts a new one in its place.
func (w *world) remove(n *node) {
	var by *node
	for _, p := range w.nodes {
		if p != n && p.up && p.serving {
			by = p
		}
	}
	if by == nil {
		return
	}
	w.count("removals")
	if n.up {
		w.stop(n, false)
	}
	n.life++ // it never starts again
	w.oracle.lose(n, newState(1))
	next := w.newNode(n.id)
	next.life = n.life
	w.nodes[n.id] = next
	g := by.begin()
	if it, ok := by.head.keys[memberPrefix+n.name]; ok && !it.rec.Deleted {
		by.remove(g, memberPrefix+n.name)
	}
	by.commit(g)
	w.planJoin(next, w.between(time.Minute, 2*time.Hour))
}

// planJoin lets a new node join through one that serves.
func (w *world) planJoin(n *node, after int64) {
	w.plan(after, evRepair, n.id, 0, func() {
		for _, p := range w.nodes {
			if p != n && p.up && p.serving && w.linked(p.id, n.id) {
				g := p.begin()
				p.set(g, memberPrefix+n.name, member(n.name))
				p.commit(g)
				w.start(n)
				return
			}
		}
		w.planJoin(n, int64(time.Minute/time.Microsecond))
	})
}

// planHeal ends all faults every few days, and has the oracle look once the
// replicas are one.
func (w *world) planHeal() {
	w.plan(w.exponential(hours(healEvery))+hours(1), evRepair, 0, 0, func() {
		w.quiet = true
		clear(w.side)
		clear(w.broken)
		for _, n := range w.nodes {
			n.offset = 0
			if !n.up && n.disk.keys[memberPrefix+n.name].rec != nil || !n.up && n.name == "n1" {
				w.start(n)
			}
		}
		w.links()
		w.awaitWhole(w.now + hours(30))
	})
}

// awaitWhole waits until the replicas agree about what they have: hours, when a
// clock was hours ahead.
func (w *world) awaitWhole(limit int64) {
	w.plan(w.between(10*time.Second, 30*time.Second), evRepair, 0, 0, func() {
		switch {
		case w.whole():
			w.oracle.check()
			w.quiet = false
			w.planHeal()
		case w.now > limit:
			w.oracle.violation("the replicas do not become one within 30 hours: %s", w.standings())
		default:
			w.awaitWhole(limit)
		}
	})
}

func (w *world) whole() bool {
	var v crdt.Vector
	for _, n := range w.nodes {
		if !n.up || !n.serving || len(n.pending) > 0 || n.head.owed != nil {
			return false
		}
		if v == nil {
			v = n.disk.claims
		}
		if !v.Includes(n.disk.claims) || !n.disk.claims.Includes(v) {
			return false
		}
	}
	return true
}
