package gossip

import (
	"math"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/mootkube/moot/gossip/crdt"
)

func TestBirthIsSettled(t *testing.T) {
	now := time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)
	// ran is a daemon that has run for age and whose clock was wrong by so much
	// when it started.
	ran := func(age, wrong time.Duration) seniority {
		return seniority{birth: crdt.StampAt(now.Add(wrong - age)), age: age}
	}
	const year = 365 * 24 * time.Hour
	stamp := func(ago time.Duration) crdt.Stamp { return crdt.StampAt(now.Add(-ago)) }
	for what, c := range map[string]struct {
		own    seniority
		others []seniority
		want   crdt.Stamp // zero: as it was
	}{
		"alone":                            {own: ran(time.Hour, -year)},
		"younger":                          {own: ran(time.Minute, 0), others: []seniority{ran(time.Hour, 0)}},
		"older":                            {own: ran(time.Hour, 0), others: []seniority{ran(time.Minute, 0)}},
		"starts in the past":               {ran(time.Second, -year), []seniority{ran(time.Hour, 0)}, stamp(time.Second)},
		"starts a little in the past":      {ran(time.Second, -time.Minute), []seniority{ran(30*time.Second, 0)}, stamp(time.Second)},
		"ran for long in the past":         {ran(time.Hour, -year), []seniority{ran(2*time.Hour, 0)}, stamp(time.Hour)},
		"is the older, in the past":        {own: ran(2*time.Hour, -year), others: []seniority{ran(time.Hour, 0)}},
		"starts in the future":             {own: ran(time.Second, year), others: []seniority{ran(time.Hour, 0)}},
		"joins one of the future":          {ran(time.Second, 0), []seniority{ran(time.Hour, year)}, stamp(time.Second - year)},
		"is met by one of the past":        {own: ran(time.Hour, 0), others: []seniority{ran(time.Second, -year)}},
		"is met by one of the future":      {own: ran(time.Hour, 0), others: []seniority{ran(time.Second, year)}},
		"the oldest bows to nobody":        {own: ran(time.Hour, 0), others: []seniority{ran(time.Second, year), ran(time.Minute, -year), ran(59*time.Minute, year)}},
		"after all that have run longer":   {ran(time.Second, -2*year), []seniority{ran(time.Minute, -year), ran(time.Hour, 0)}, stamp(time.Second)},
		"after those that ran longer only": {ran(time.Minute, -year), []seniority{ran(time.Hour, 0), ran(time.Second, year)}, stamp(time.Minute)},
		"as old, clocks a second apart":    {own: ran(time.Minute, -time.Second), others: []seniority{ran(time.Minute+time.Second, 0)}},
		"as old, years of it":              {own: ran(year, -time.Minute), others: []seniority{ran(year+time.Hour, 0)}},
		"says nothing of its age":          {own: ran(time.Second, 0), others: []seniority{{birth: stamp(-year)}, {}}},
		"says what cannot be":              {ran(time.Second, 0), []seniority{{birth: math.MaxUint64 - 1, age: math.MaxInt64}}, math.MaxUint64},
		"says what is beyond all":          {own: ran(time.Second, 0), others: []seniority{{birth: math.MaxUint64, age: math.MaxInt64}}},
	} {
		want := c.want
		if want == 0 {
			want = c.own.birth
		}
		got := c.own.settled(c.others...)
		if got != want {
			t.Errorf("%s: %v after %v, want %v", what, got, c.own.birth, want)
		}
		c.own.birth = got
		if again := c.own.settled(c.others...); again != got {
			t.Errorf("%s: settled twice, %v and %v", what, got, again)
		}
	}
}

// TestBirthsSettleInOrder has members with any clocks meet in any order until none
// changes: then the oldest leads, and it has never changed.
func TestBirthsSettleInOrder(t *testing.T) {
	now := time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)
	rng := rand.New(rand.NewPCG(1, 2)) //nolint:gosec // a test's
	for round := range 200 {
		all := make([]seniority, 2+rng.IntN(8))
		for i := range all {
			age := time.Duration(1+i) * time.Hour
			all[i] = seniority{birth: crdt.StampAt(now.Add(time.Duration(rng.IntN(20)-10)*1000*time.Hour - age)), age: age}
		}
		first := all[len(all)-1]
		changes := 0
		for settled := false; !settled; {
			settled = true
			for _, i := range rng.Perm(len(all)) {
				for _, j := range rng.Perm(len(all)) {
					birth := all[i].settled(all[j])
					if birth != all[i].birth {
						settled = false
						changes++
					}
					all[i].birth = birth
				}
			}
		}
		if all[len(all)-1] != first {
			t.Fatalf("round %d: the oldest changed its birth", round)
		}
		if most := len(all) * (len(all) - 1) / 2; changes > most {
			t.Errorf("round %d: %d changes among %d", round, changes, len(all))
		}
		for i := 1; i < len(all); i++ {
			if all[i-1].birth <= all[i].birth {
				t.Fatalf("round %d: births %v are not in the order of ages", round, all)
			}
		}
	}
}
