package gossip

import (
	"time"

	"github.com/mootkube/moot/gossip/crdt"
)

// A daemon's birth is what its clock said when it started, which may be wrong by
// years: a machine that keeps no time while it is off believes in the time of its
// last shutdown until it hears of a better one. Members tell each other for how long
// they have run as well, in which no wall clock has a say, neither the wrong one nor
// the one put right since.

// seniority is how old a daemon is.
type seniority struct {
	birth crdt.Stamp    // that it goes by
	age   time.Duration // for which it has run, by its monotonic clock
}

// settled returns the birth to go by after meeting others. It is the same, unless
// that makes s older than one that has clearly run for longer: then it is later than
// the other's by the difference of their ages.
//
// So it is always the younger that gives way, and births only become later: the
// member that has run for longest never changes its own, whatever the others say,
// and all is settled after at most one change for each member that has run for
// longer. Ages that are told some time before they are used are too small, which
// errs on the side of no change.
func (s seniority) settled(others ...seniority) crdt.Stamp {
	birth := s.birth
	for _, o := range others {
		longer := o.age - s.age
		if s.birth >= o.birth || longer <= ageError(o.age) {
			continue
		}
		birth = max(birth, o.birth+1, crdt.StampAt(o.birth.Time().Add(longer)))
	}
	return birth
}

// ageError is how far a difference of ages may be wrong: clocks run at slightly
// different rates, and daemons that start together are of one age.
func ageError(age time.Duration) time.Duration { return time.Second + age/1000 }

// seniority returns how old this node is, and the member that leads by its view as
// far as that one has said it; both are for telling to others. Who meets any member
// so meets the leader too, before joining them.
func (a *Agent) seniority() (own, lead seniority) {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := time.Now()
	own = seniority{birth: a.card.birth, age: now.Sub(a.started)}
	if l := a.links[a.leader]; l != nil && a.leader != a.cfg.Name {
		lead = l.seniority(a.members[a.leader].Birth, now)
	}
	return own, lead
}

// birth returns the birth that this node goes by.
func (a *Agent) birth() crdt.Stamp {
	own, _ := a.seniority()
	return own.birth
}

// meet takes in what a member said in a greeting. When it returns, this node tells
// everybody a birth that is settled with it, and takes part in gossip.
func (a *Agent) meet(r *running, name string, theirs, lead seniority) {
	twin := name == a.cfg.Name // or this node itself, at an address of its own
	if !twin {
		a.link(name).say(theirs)
	}
	own, _ := a.seniority()
	if birth := own.settled(theirs, lead); birth != own.birth {
		a.log.Warn("a member that has run for longer counted as younger: this daemon's birth is put right", "by", name,
			"was", own.birth.Time(), "is", birth.Time())
		if err := a.setCard(func(c *card) { c.birth = max(c.birth, birth) }); err != nil {
			a.log.Debug("birth is not announced", "err", err)
		}
	}
	if r != nil && !twin {
		r.transport.met.Store(true)
	}
}
