package rotation

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
)

const (
	schedules     = 12
	scheduleSteps = 120
	mostMembers   = 5
)

// Whatever order things happen in, nobody who was let in and not removed is
// locked out, before its first start or after.
func TestNobodyIsLockedOut(t *testing.T) {
	for seed := range uint64(schedules) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			s := schedule{replicas: newReplicas(t, "n1", "n2", "n3"), rand: rand.New(rand.NewPCG(seed, 0))}
			for range scheduleSteps {
				s.happen()
				s.wantWhole()
			}
			s.sync()
			for _, name := range s.waiting() {
				s.begin(name, s.anyRunning())
			}
			s.members[s.anyRunning()].leads = true
			if s.status(s.anyRunning()).ID != "" {
				s.reach(StageDone)
				s.wantWhole()
			}
			s.rotate(s.anyRunning())
			s.reach(StageDone)
			s.wantWhole()
			s.wantNewKeysAlone()
		})
	}
}

// schedule lets things happen to a cluster at random.
type schedule struct {
	*replicas
	rand *rand.Rand
}

func (s *schedule) anyRunning() string {
	names := s.running()
	return names[s.rand.IntN(len(names))]
}

// waiting names those who were let in and have not started yet.
func (s *schedule) waiting() []string {
	names := slices.Sorted(maps.Keys(s.members))
	return slices.DeleteFunc(names, func(name string) bool { return s.members[name].runner != nil })
}

func (s *schedule) happen() {
	s.t.Helper()
	a, b := s.anyRunning(), s.anyRunning()
	switch n := s.rand.IntN(100); {
	case n < 25: // some changes arrive
		s.members[a].view.pull(s.members[b].view, 1+s.rand.IntN(4))
	case n < 40: // all do
		s.pull(a, b)
	case n < 80: // a member looks at the record
		s.members[a].leads = s.rand.IntN(2) == 0
		s.step(a)
	case n < 84:
		if _, err := s.members[a].runner.Start(s.t.Context()); err != nil && !errors.Is(err, ErrUnderWay) {
			s.t.Fatal(err)
		}
	case n < 86: // a daemon starts again
		s.run(s.members[a])
	case n < 92: // a machine joins, and starts at once or later
		if name, free := s.free(a); free {
			if s.admit(name, a); s.rand.IntN(3) > 0 && s.tryBegin(name, b) {
				s.step(name)
			}
		}
	case n < 96: // one that was let in starts for the first time
		if names := s.waiting(); len(names) > 0 {
			s.tryBegin(names[s.rand.IntN(len(names))], a)
		}
	default: // one is lost and removed, by a member that has what it had
		if s.pull(b, a); a != b && len(s.running()) > 2 && s.knows(b, a) {
			s.remove(a, b)
		}
	}
}

// tryBegin starts a machine, unless another has its name as far as the member
// knows whose replica it copies: it ends then, and is started again.
func (s *schedule) tryBegin(name, from string) bool {
	key := membersPrefix + name
	reg, known := s.members[from].view.under(key, key+"~")[key]
	if known && string(reg.value) != s.members[name].machine {
		return false
	}
	s.begin(name, from)
	return true
}

// free returns a name that no member has.
func (s *schedule) free(by string) (string, bool) {
	for n := range mostMembers {
		name := fmt.Sprintf("n%d", n+1)
		key := membersPrefix + name
		if s.members[name] == nil && len(s.members[by].view.under(key, key+"~")) == 0 && s.knows(by, name) {
			return name, true
		}
	}
	return "", false
}

// knows reports whether a member has all that was ever registered by a name: what
// two do with one name and do not know of each other is another matter.
func (s *schedule) knows(member, name string) bool {
	has := s.members[member].view.has
	return !slices.ContainsFunc(s.running(), func(other string) bool {
		return slices.ContainsFunc(s.members[other].view.changes, func(c change) bool {
			return c.key == membersPrefix+name && !has[c.dot]
		})
	})
}
