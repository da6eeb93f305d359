package scenario

import (
	"context"
	"fmt"
	"time"
)

// PutBack leads a node's disk back to what it was a while before, and boots it with
// its link down, so that it writes before it hears of the others. Neither what it
// had written and lost nor what it writes then may be missing in the end.
func (b *Bed) PutBack(ctx context.Context, node string, writes int) error {
	s, err := b.space(ctx, "putback", node)
	if err != nil {
		return err
	}
	log := newLedger()
	if err := s.writeOnce(ctx, log, node, "before"); err != nil {
		return err
	}
	if err := b.wholeAgain(ctx); err != nil {
		return err
	}
	if err := b.Crash(ctx, node); err != nil {
		return err
	}
	putBack, err := b.Snapshot(ctx, node)
	if err != nil {
		return err
	}
	if err := b.Start(ctx, node); err != nil {
		return err
	}
	if err := b.wholeAgain(ctx); err != nil {
		return err
	}
	for i := range writes {
		if err := s.writeOnce(ctx, log, node, fmt.Sprintf("lost-%d", i)); err != nil {
			return err
		}
	}
	if err := b.Crash(ctx, node); err != nil {
		return err
	}
	if err := putBack(ctx); err != nil {
		return err
	}
	if err := b.Unplug(ctx, node, false); err != nil {
		return err
	}
	if err := b.Start(ctx, node); err != nil {
		return err
	}
	for i := range writes {
		name := fmt.Sprintf("after-%d", i)
		if _, err := s.Kubectl(ctx, node, "-n", s.name, "create", "configmap", name, "--from-literal=word=alone"); err != nil {
			return err
		}
		log.field(name, "word", "alone")
	}
	began := time.Now()
	if err := b.Plug(ctx, node); err != nil {
		return err
	}
	if err := b.wholeAgain(ctx); err != nil {
		return err
	}
	if err := log.check(ctx, s, b.Nodes); err != nil {
		return err
	}
	b.Printf("%s was put back, lost %d writes that others had and wrote %d alone: equal digests %s after it was plugged in, all %d there",
		node, writes, writes, seconds(time.Since(began)), 2*writes)
	return s.end(ctx, node)
}
