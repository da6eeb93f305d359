package caller

import (
	"context"
	"errors"
	"net"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"
)

// Bounds of what a report lists.
const (
	maxTries  = 1 << 20 // of a window; what comes after is missed
	maxKinds  = 16      // of errors, and of clients; others are "other"
	maxFailed = 8
	maxText   = 200
)

// apart is how long there has to be no trouble for a spell to be over.
const apart = time.Second

// Report is what came of the tries of a window. Times are in nanoseconds.
type Report struct {
	Target   string        `json:"target"`
	Window   time.Duration `json:"window"`
	Tries    int           `json:"tries"` // that came to an end
	Failures int           `json:"failures"`
	Slow     int           `json:"slow"`   // successes among them that took long
	Open     int           `json:"open"`   // tries that go on
	Missed   int           `json:"missed"` // not begun, for too many went on
	// Gap is the longest time without a success that was begun: from the start
	// of any try to the first success among it and those begun later.
	Gap time.Duration `json:"gap"`
	// Spell is the longest time in which some tries failed or were slow, others
	// perhaps not: from the start of the first of them to the first success that
	// was begun after the last. A second without any ends a spell.
	Spell time.Duration `json:"spell"`
	// Calm is how long ago the last such try was begun, or else the window.
	Calm    time.Duration   `json:"calm"`
	Longest time.Duration   `json:"longest"` // of the successes
	Hung    time.Duration   `json:"hung"`    // the longest of the failures
	Stall   time.Duration   `json:"stall"`   // the longest time in which no try was begun: the asker itself stood still
	Failed  []time.Duration `json:"failed"`  // when the first few that failed were begun, in the window
	Pods    map[string]int  `json:"pods"`    // answers by who gave them
	Nodes   map[string]int  `json:"nodes"`
	Clients map[string]int  `json:"clients"` // answers by the address the server saw
	Ports   map[string]int  `json:"ports"`   // answers by the server's port
	Errors  map[string]int  `json:"errors"`
}

// Troubled is how many tries failed or were slow.
func (r Report) Troubled() int { return r.Failures + r.Slow }

// add joins another report on the same window.
func (r *Report) add(o Report) {
	r.Tries, r.Failures, r.Slow, r.Open, r.Missed = r.Tries+o.Tries, r.Failures+o.Failures, r.Slow+o.Slow, r.Open+o.Open, r.Missed+o.Missed
	r.Gap, r.Spell, r.Longest, r.Calm = max(r.Gap, o.Gap), max(r.Spell, o.Spell), max(r.Longest, o.Longest), min(r.Calm, o.Calm)
	r.Hung, r.Stall = max(r.Hung, o.Hung), max(r.Stall, o.Stall)
	r.Failed = append(r.Failed, o.Failed...)
	slices.Sort(r.Failed)
	r.Failed = r.Failed[:min(len(r.Failed), maxFailed)]
	for to, from := range map[*map[string]int]map[string]int{
		&r.Pods: o.Pods, &r.Nodes: o.Nodes, &r.Clients: o.Clients, &r.Ports: o.Ports, &r.Errors: o.Errors,
	} {
		for k, n := range from {
			(*to)[k] += n
		}
	}
}

// try is one, or with ended zero one that goes on.
type try struct {
	began, ended time.Time
	answer       Answer
	err          string // why it failed
}

func (t *try) troubled(slow time.Duration) bool { return t.err != "" || t.ended.Sub(t.began) > slow }

// tally keeps the tries of a window.
type tally struct {
	target string
	slow   time.Duration

	mu     sync.Mutex
	since  time.Time
	tries  []*try // in the order in which they were begun
	missed int
}

func newTally(cfg Config) *tally {
	return &tally{target: cfg.Address, slow: cfg.Slow, since: time.Now()}
}

func (t *tally) begin(now time.Time) *try {
	t.mu.Lock()
	defer t.mu.Unlock()
	one := &try{began: now}
	if len(t.tries) < maxTries {
		t.tries = append(t.tries, one)
	} else {
		t.missed++
	}
	return one
}

func (t *tally) end(one *try, now time.Time, answer Answer, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	one.ended, one.answer = now, answer
	if err != nil {
		one.err = kind(err)
	}
}

func (t *tally) miss() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.missed++
}

func (t *tally) forget(one *try) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.tries = slices.DeleteFunc(t.tries, func(x *try) bool { return x == one })
}

func (t *tally) report(now time.Time, next bool) Report {
	t.mu.Lock()
	defer t.mu.Unlock()
	r := summarize(t.tries, t.since, now, t.slow)
	r.Target, r.Missed = t.target, t.missed
	if next {
		t.tries = slices.DeleteFunc(t.tries, func(x *try) bool { return !x.ended.IsZero() })
		t.since, t.missed = now, 0
	}
	return r
}

// summarize looks at the tries of a window, in the order in which they were
// begun. One that goes on counts for nothing but that, and against the calm.
func summarize(tries []*try, since, now time.Time, slow time.Duration) Report {
	r := Report{
		Window: now.Sub(since), Calm: now.Sub(since), Failed: []time.Duration{},
		Pods: map[string]int{}, Nodes: map[string]int{}, Clients: map[string]int{}, Ports: map[string]int{}, Errors: map[string]int{},
	}
	over := make([]*try, 0, len(tries))
	for i, t := range tries {
		if i > 0 {
			r.Stall = max(r.Stall, t.began.Sub(tries[i-1].began))
		}
		if t.ended.IsZero() {
			r.Open++
			if now.Sub(t.began) > slow {
				r.Calm = now.Sub(t.began)
			}
			continue
		}
		over = append(over, t)
		r.count(t, since, slow)
		if t.troubled(slow) {
			r.Calm = now.Sub(t.began)
		}
	}
	r.Gap = gap(over, now)
	r.Spell = spell(over, now, slow)
	return r
}

func (r *Report) count(t *try, since time.Time, slow time.Duration) {
	r.Tries++
	took := t.ended.Sub(t.began)
	if t.err != "" {
		r.Failures++
		r.Hung = max(r.Hung, took)
		bump(r.Errors, t.err)
		if len(r.Failed) < maxFailed {
			r.Failed = append(r.Failed, t.began.Sub(since))
		}
		return
	}
	r.Longest = max(r.Longest, took)
	if took > slow {
		r.Slow++
	}
	client, _, _ := net.SplitHostPort(t.answer.Client)
	_, port, _ := net.SplitHostPort(t.answer.At)
	bump(r.Pods, t.answer.Pod)
	bump(r.Nodes, t.answer.Node)
	bump(r.Clients, client)
	bump(r.Ports, port)
}

func bump(m map[string]int, key string) {
	if _, known := m[key]; !known && len(m) >= maxKinds {
		key = "other"
	}
	m[key]++
}

func gap(tries []*try, now time.Time) time.Duration {
	longest, success := time.Duration(0), now
	for _, t := range slices.Backward(tries) {
		if t.err == "" && t.ended.Before(success) {
			success = t.ended
		}
		longest = max(longest, success.Sub(t.began))
	}
	return longest
}

func spell(tries []*try, now time.Time, slow time.Duration) time.Duration {
	longest := time.Duration(0)
	var first, last time.Time // troubled tries of the spell
	open := false             // nothing has succeeded since the last
	for _, t := range tries {
		switch {
		case t.troubled(slow):
			if first.IsZero() || t.began.Sub(last) > apart {
				first = t.began
			}
			last, open = t.began, true
		case open:
			longest, open = max(longest, t.ended.Sub(first)), false
		}
	}
	if open {
		longest = max(longest, now.Sub(first))
	}
	return longest
}

// kind names an error without the addresses in it, so that equal ones are.
func kind(err error) string {
	if errno, ok := errors.AsType[syscall.Errno](err); ok {
		return errno.Error()
	}
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, os.ErrDeadlineExceeded) {
		return "timeout"
	}
	if e, ok := errors.AsType[net.Error](err); ok && e.Timeout() {
		return "timeout"
	}
	text := err.Error()
	return text[:min(len(text), maxText)]
}
