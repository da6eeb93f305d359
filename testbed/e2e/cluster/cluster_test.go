// Package cluster tries the promises of many nodes, small: one cluster of three
// that all tests share, one after the other, in the order they are written. Each
// leaves the cluster whole for the next; after a failure the rest is left out,
// for what they would say is of no use. The accept command runs the same
// scenarios at full size.
package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/mootkube/moot/testbed"
	"github.com/mootkube/moot/testbed/scenario"
)

func TestMain(m *testing.M) {
	testbed.Reexec()
	os.Exit(m.Run())
}

func TestThreeNodes(t *testing.T) {
	wd, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	bin := filepath.Join(wd, "..", "..", "..", "bin")
	for _, name := range []string{"moot", "testbed"} {
		if _, err := os.Stat(filepath.Join(bin, name)); err != nil {
			t.Fatalf("no bin/%s: run make build first", name)
		}
	}
	o := scenario.Options{Bin: bin, Nodes: 3, Out: t.Output(), Progress: t.Output(), Patience: 3 * time.Minute}
	if err := scenario.Run(t.Context(), o, func(ctx context.Context, b *scenario.Bed) error { return all(ctx, t, b) }); err != nil {
		t.Error(err)
	}
}

func all(ctx context.Context, t *testing.T, b *scenario.Bed) error {
	for _, test := range []struct {
		name string
		run  func() error
	}{
		{"a watch sees a change made elsewhere", func() error {
			return b.Spread(ctx, "n3", 50, 5<<10, 20*time.Millisecond)
		}},
		{"kubectl on every node", func() error { return kubectl(ctx, b) }},
		{"Services from everywhere", func() error { return b.Services(ctx, 20, 300) }},
		{"names from everywhere", func() error { return b.Names(ctx) }},
		{"clients move between nodes", func() error { return b.Roam(ctx, 40, 1) }},
		{"keys rotate under writes", func() error { return b.Rotate(ctx) }},
		{"a backup goes back into the living cluster", func() error { return b.Restore(ctx, false) }},
		{"nothing moves for a blink, no stranger joins", func() error {
			return b.Blink(ctx, time.Second, 5*time.Second, func(ctx context.Context, stopped string) error {
				return b.JoinRefused(ctx, stopped, "n1")
			})
		}},
		{"a stranger at the port", func() error { return b.Stranger(ctx, "n2", 6*time.Second, false) }},
		{"a cut heals", func() error { return b.Split(ctx, []string{"n1", "n2"}, []string{"n3"}, 0) }},
		{"a dead node's pods run elsewhere", func() error { return b.DeadNode(ctx, 1) }},
		{"kills and crashes under writes lose nothing", func() error { return b.Chaos(ctx, 20*time.Second, 10, 7) }},
		{"all crash but one", func() error { return b.Outage(ctx, []string{"", ""}) }},
		{"a disk is put back", func() error { return b.PutBack(ctx, "n3", 10) }},
		{"offline boot", func() error { return b.Offline(ctx, "n2", true) }},
	} {
		began := time.Now()
		if !t.Run(test.name, func(t *testing.T) {
			if err := test.run(); err != nil {
				t.Error(err)
			}
		}) {
			return errors.New("the rest is left out")
		}
		t.Logf("%s: %.1f s", test.name, time.Since(began).Seconds())
	}
	return nil
}

// kubectl asks each node for all, and writes through it.
func kubectl(ctx context.Context, b *scenario.Bed) error {
	for _, node := range b.Nodes {
		out, err := b.Kubectl(ctx, node, "wait", "--for=condition=Ready", "node", "--all", "--timeout=3m")
		if err != nil {
			return err
		}
		if _, err := b.Kubectl(ctx, node, "create", "configmap", "by-"+node); err != nil {
			return err
		}
		b.Printf("%s: %q", node, out)
	}
	for _, node := range b.Nodes {
		for _, by := range b.Nodes {
			if _, err := b.Kubectl(ctx, node, "wait", "--for=create", "configmap/by-"+by, "--timeout=3m"); err != nil {
				return fmt.Errorf("on %s: %w", node, err)
			}
		}
	}
	return nil
}
