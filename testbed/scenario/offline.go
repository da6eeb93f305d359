package scenario

import (
	"context"
	"fmt"
	"time"
)

// Offline crashes all nodes, boots one with no network at all, and sees its
// pods run and kubectl answer there; then its cable is put back and the others
// start. With bare the node has not even an address.
func (b *Bed) Offline(ctx context.Context, alone string, bare bool) error {
	s, err := b.space(ctx, "offline", alone)
	if err != nil {
		return err
	}
	log := newLedger()
	if err := s.writeOnce(ctx, log, b.Others(alone)[0], "before"); err != nil {
		return err
	}
	if err := s.deploy(ctx, alone, "web", int32(len(b.Nodes))); err != nil {
		return err
	}
	if err := s.settle(ctx, alone, "web", b.Nodes); err != nil {
		return err
	}
	if _, err := b.SameDigest(ctx, b.Nodes); err != nil {
		return err
	}
	pods, err := s.pods(ctx, alone, "web")
	if err != nil {
		return err
	}
	own := 0
	for _, p := range pods {
		if p.Spec.NodeName == alone {
			own++
		}
	}
	if own == 0 {
		return fmt.Errorf("no pod runs on %s: %s", alone, describe(pods))
	}
	if err := b.Crash(ctx, b.Others(alone)...); err != nil {
		return err
	}
	if err := b.Crash(ctx, alone); err != nil {
		return err
	}
	if err := b.Unplug(ctx, alone, bare); err != nil {
		return err
	}
	if err := s.bootAlone(ctx, alone, own, bare); err != nil {
		return err
	}
	log.field("offline", "word", "kept")
	began := time.Now()
	if err := b.Plug(ctx, alone); err != nil {
		return err
	}
	if err := b.Start(ctx, b.Others(alone)...); err != nil {
		return err
	}
	if err := b.wholeAgain(ctx); err != nil {
		return err
	}
	b.Printf("plugged in and the others started: one cluster, equal digests after %s", seconds(time.Since(began)))
	if err := log.check(ctx, s, b.Nodes); err != nil {
		return err
	}
	for _, node := range b.Nodes {
		if err := s.settle(ctx, node, "web", b.Nodes); err != nil {
			return err
		}
	}
	return s.end(ctx, alone)
}

// bootAlone starts the unplugged node and looks at it from inside: nobody else
// reaches it.
func (s *space) bootAlone(ctx context.Context, node string, own int, bare bool) error {
	began := time.Now()
	if err := s.Start(ctx, node); err != nil {
		return err
	}
	ready := time.Since(began)
	how := "an address but no link and no route"
	if bare {
		how = "no address, no link and no route"
	}
	s.Printf("%s booted alone with %s: Ready after %s", node, how, seconds(ready))
	err := s.eventually(ctx, fmt.Sprintf("%d pods of before ready on %s", own, node), func(ctx context.Context) error {
		out, err := s.Kubectl(ctx, node, "-n", s.name, "get", "pods", "--field-selector=spec.nodeName="+node, "-l", "app=web", "-o",
			`jsonpath={range .items[*]}{.metadata.deletionTimestamp}{.status.containerStatuses[0].ready}{.status.containerStatuses[0].restartCount}{" "}{end}`)
		if err != nil {
			return err
		}
		well := 0
		for range own {
			if rest, ok := cutWord(out, "true1"); ok {
				out, well = rest, well+1
			}
		}
		if well != own {
			return fmt.Errorf("%d of %d, the rest: %s", well, own, out)
		}
		return nil
	})
	if err != nil {
		return err
	}
	s.Printf("its %d pods of before ran again after %s", own, seconds(time.Since(began)))
	if _, err := s.Kubectl(ctx, node, "-n", s.name, "create", "configmap", "offline", "--from-literal=word=kept"); err != nil {
		return err
	}
	out, err := s.Kubectl(ctx, node, "-n", s.name, "get", "configmap", "before", "offline", "-o", "name")
	if err != nil {
		return err
	}
	s.Printf("kubectl answered there: %q", out)
	return nil
}
