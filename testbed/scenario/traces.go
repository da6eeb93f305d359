package scenario

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/mootkube/moot/testbed/leak"
)

// Traces has the nodes put eBPF programs and maps wherever they do: Services of
// several kinds are asked, a daemon is killed, one is stopped, and a node
// crashes. With [Options.BPF], Run compares what the kernel holds afterwards.
func (b *Bed) Traces(ctx context.Context) error {
	s, err := b.openShop(ctx, 20, 0)
	if err != nil {
		return err
	}
	if _, err := s.everywhere(ctx); err != nil {
		return err
	}
	if _, err := s.expose(ctx, "another", "web", corev1.ServiceTypeNodePort, nil); err != nil {
		return err
	}
	last, other := b.Nodes[len(b.Nodes)-1], b.Nodes[len(b.Nodes)-2]
	if err := errors.Join(b.Kill(ctx, last), b.Stop(ctx, other)); err != nil {
		return err
	}
	if err := b.Start(ctx, last, other); err != nil {
		return err
	}
	if err := b.Crash(ctx, last); err != nil {
		return err
	}
	if err := b.Start(ctx, last); err != nil {
		return err
	}
	if err := b.wholeAgain(ctx); err != nil {
		return err
	}
	now, err := leak.BPF()
	if err != nil {
		return err
	}
	b.Printf("eBPF objects of this machine's kernel while up: %s", objects(now))
	for _, node := range b.Nodes {
		pins, err := b.on(ctx, node, nil, "find", "/sys/fs/bpf", "-type", "f")
		if err != nil {
			return err
		}
		b.Printf("%s holds %d pins", node, len(strings.Fields(pins)))
	}
	return nil
}

// objects counts what the kernel holds.
func objects(s leak.Snapshot) string {
	return fmt.Sprintf("%d programs, %d maps, %d links", len(s["bpf program"]), len(s["bpf map"]), len(s["bpf link"]))
}

// sameBPF waits until the kernel holds no eBPF object that it did not hold
// before: it frees them some time after their last reference went.
func (b *Bed) sameBPF(ctx context.Context, before leak.Snapshot) error {
	down, err := leak.BPF()
	if err != nil {
		return err
	}
	b.Printf("before up: %s; just after down: %s", objects(before), objects(down))
	began := time.Now()
	err = b.eventually(ctx, "eBPF objects gone", func(context.Context) error {
		after, err := leak.BPF()
		if err != nil {
			return err
		}
		if left := after.Since(before); len(left) > 0 {
			return fmt.Errorf("%d are left: %s", len(left), strings.Join(left, ", "))
		}
		return nil
	})
	if err != nil {
		return err
	}
	b.Printf("none that was not there before, %s later", seconds(time.Since(began)))
	return nil
}
