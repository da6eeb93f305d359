package store

import (
	"fmt"
	"testing"
)

// TestFill: what comes while the batch before is on its way to disk goes into
// one batch; without a batch before, none waits for company.
func TestFill(t *testing.T) {
	s, err := Open(testConfig(t))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	c := s.committer
	c.space = func() error { return nil }
	queue := func(from, to int) {
		for i := from; i < to; i++ {
			op := Op{Kind: OpPut, Key: fmt.Appendf(nil, "/registry/pods/%d", i), Value: []byte("x")}
			s.queue <- &request{txn: &Txn{Then: []Op{op}}}
		}
	}
	queue(0, 3)
	b, done := &batch{}, make(chan struct{})
	go func() {
		defer close(done)
		c.fill(b)
	}()
	eventually(t, "the queue is empty", func() bool { return len(s.queue) == 0 })
	queue(3, 5)
	eventually(t, "the queue is empty", func() bool { return len(s.queue) == 0 })
	s.idle <- struct{}{}
	<-done
	if len(b.reqs) != 5 {
		t.Errorf("a batch of %d, want 5", len(b.reqs))
	}
	next := &batch{}
	s.idle <- struct{}{}
	c.fill(next)
	if len(next.reqs) != 0 {
		t.Errorf("a batch of %d, want none", len(next.reqs))
	}
}
