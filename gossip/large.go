package gossip

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"sync"
	"time"

	"github.com/mootkube/moot/gossip/crdt"
)

// A large value that came from elsewhere is announced before it is sent: the
// peer may have it already, or be getting it from another. It asks for those it
// wants, and the stream goes on once it has them, so the order stays.
const (
	largeBytes  = 16 << 10
	claimFor    = 2 * time.Second
	pullTimeout = 20 * time.Second
)

// withhold takes the large records out of p and announces them. A record that
// came of a join is not announced: its dot does not say all that is in it.
func (p *records) withhold(own crdt.Origin) []*crdt.Record {
	var out []*crdt.Record
	for i, r := range p.Records {
		if recordBytes(r) < largeBytes || r.Dot.Origin == own || r.Joined() {
			continue
		}
		if out == nil {
			p.Records = append([]*crdt.Record(nil), p.Records...) // it is the tail's
		}
		out = append(out, r)
		p.Large = append(p.Large, large{Index: i, Dot: r.Dot})
		p.Records[i] = nil
	}
	return out
}

// answerPull waits for the peer to say which announced records it wants, and
// sends them.
func (v *server) answerPull(ctx context.Context, announced []large, withheld []*crdt.Record) error {
	timeout := time.NewTimer(pullTimeout)
	defer timeout.Stop()
	var m pull
	select {
	case m = <-v.pulls:
	case <-timeout.C:
		return errors.New("the peer does not say which large values it wants")
	case <-ctx.Done():
		return ctx.Err()
	}
	if len(m.Want) == 0 {
		return nil
	}
	byIndex := make(map[int]*crdt.Record, len(announced))
	for i, l := range announced {
		byIndex[l.Index] = withheld[i]
	}
	var p records
	for _, i := range m.Want {
		r, ok := byIndex[i]
		if !ok {
			return fmt.Errorf("%w: pull of what was not announced", errWire)
		}
		delete(byIndex, i)
		p.Records = append(p.Records, r)
	}
	return v.sendRecords(&p, func(size int) error {
		v.flight.follow(size)
		return nil
	})
}

// fetch gets the announced records of p that this node lacks.
func (f *follower) fetch(ctx context.Context, p *records, b *batch) error {
	var want []int
	for _, l := range p.Large {
		// One that holds claims waits for none, or two streams could wait for
		// each other.
		mine, err := f.agent.claim(ctx, l.Dot, len(b.claimed) == 0)
		if err != nil {
			return err
		}
		if mine {
			want = append(want, l.Index)
			b.claimed = append(b.claimed, l.Dot)
		}
	}
	m := pull{Want: want}
	if err := f.write(msgPull, m.encode()); err != nil || len(want) == 0 {
		return err
	}
	parts, err := f.queue.take(ctx, 1)
	if err != nil {
		return err
	}
	answer := parts[0]
	if len(answer.Records) != len(want) || answer.Last || len(answer.Large) > 0 {
		return fmt.Errorf("%w: answer to a pull", errWire)
	}
	for i, at := range want {
		p.Records[at] = answer.Records[i]
	}
	b.parts++
	return nil
}

// claim reports whether the caller is to get the change d. While another stream
// is getting it, it waits if it may.
func (a *Agent) claim(ctx context.Context, d crdt.Dot, wait bool) (bool, error) {
	advanced, cancel := a.advanced.add()
	defer cancel()
	for {
		if a.cfg.Store.Vector().Covers(d) {
			return false, nil
		}
		now := time.Now()
		until, taken := a.claims.take(d, now)
		if taken || !wait {
			return true, nil
		}
		timer := time.NewTimer(until.Sub(now))
		select {
		case <-advanced:
		case <-timer.C:
		case <-ctx.Done():
		}
		timer.Stop()
		if err := ctx.Err(); err != nil {
			return false, err
		}
	}
}

// claims says which large changes are being got, so that each is got once. A
// claim ends by itself, in case the stream that holds it is stuck.
type claims struct {
	mu   sync.Mutex
	till map[crdt.Dot]time.Time
}

func (c *claims) take(d crdt.Dot, now time.Time) (until time.Time, taken bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if until, ok := c.till[d]; ok && now.Before(until) {
		return until, false
	}
	if c.till == nil {
		c.till = make(map[crdt.Dot]time.Time)
	}
	maps.DeleteFunc(c.till, func(_ crdt.Dot, until time.Time) bool { return !now.Before(until) })
	c.till[d] = now.Add(claimFor)
	return now, true
}

func (c *claims) release(dots []crdt.Dot) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, d := range dots {
		delete(c.till, d)
	}
}
