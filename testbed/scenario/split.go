package scenario

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// split is a cut between two sets of nodes and what is edited on both sides.
type split struct {
	*space
	left, right []string
	doomed      *space // the namespace that the left side deletes
}

// Split cuts the nodes into two sets for a while and edits on both sides: the
// same object, different fields; the same field; a delete against an update; a
// create against a create; a namespace deleted against a create in it; a
// finalizer removed on each side; a scale against a scale. After the cut heals
// the digests are equal, every Deployment has the replicas it declares and
// nothing else runs, and what lost is listed on every node.
func (b *Bed) Split(ctx context.Context, left, right []string, hold time.Duration) error {
	s, err := b.prepareSplit(ctx, left, right)
	if err != nil {
		return err
	}
	end := time.NewTimer(hold)
	defer end.Stop()
	if err := b.Cut(ctx, left, right); err != nil {
		return err
	}
	if err := s.whileCut(ctx); err != nil {
		return err
	}
	select {
	case <-end.C:
	case <-ctx.Done():
		return ctx.Err()
	}
	began := time.Now()
	if err := b.Heal(ctx); err != nil {
		return err
	}
	if err := b.wholeAgain(ctx); err != nil {
		return err
	}
	b.Printf("%s | %s cut for %s or more: equal digests %s after it healed",
		strings.Join(left, ","), strings.Join(right, ","), seconds(hold), seconds(time.Since(began)))
	// All of them, for one failure may explain another.
	var broken error
	for _, check := range []func(context.Context) error{s.mergedFields, s.mergedLives, s.mergedNamespace, s.mergedReplicas, s.mergedAddresses, s.mergeTold} {
		broken = errors.Join(broken, check(ctx))
	}
	if broken != nil {
		return broken
	}
	if _, err := b.SameDigest(ctx, b.Nodes); err != nil {
		return err
	}
	return s.end(ctx, left[0])
}

// prepareSplit makes what both sides know.
func (b *Bed) prepareSplit(ctx context.Context, left, right []string) (*split, error) {
	via := left[0]
	sp, err := b.space(ctx, "split", via)
	if err != nil {
		return nil, err
	}
	s := &split{space: sp, left: left, right: right}
	if s.doomed, err = b.space(ctx, "split-doomed", via); err != nil {
		return nil, err
	}
	for name, data := range map[string]map[string]string{
		"fields": {"a": "before", "b": "before"}, "field": {"x": "before"}, "deleted": {"x": "before"}, "finalized": {},
	} {
		if err := s.config(ctx, via, name, data); err != nil {
			return nil, err
		}
	}
	if err := s.finalizers(ctx, via, "finalized", "moot.example/left", "moot.example/right"); err != nil {
		return nil, err
	}
	c, err := b.Client(via)
	if err != nil {
		return nil, err
	}
	if err := c.CoreV1().ConfigMaps(s.name).Delete(ctx, "finalized", metav1.DeleteOptions{}); err != nil {
		return nil, fmt.Errorf("delete finalized: %w", err)
	}
	for name, replicas := range map[string]int32{"scaled": 2, "steady": 3} {
		if err := s.deploy(ctx, via, name, replicas); err != nil {
			return nil, err
		}
	}
	for _, name := range []string{"scaled", "steady"} {
		if err := s.settle(ctx, via, name, b.Nodes); err != nil {
			return nil, err
		}
	}
	_, err = b.SameDigest(ctx, b.Nodes)
	return s, err
}

// finalizers replaces those of a ConfigMap.
func (s *space) finalizers(ctx context.Context, via, name string, want ...string) error {
	c, err := s.Client(via)
	if err != nil {
		return err
	}
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"finalizers": want}})
	if err != nil {
		return err
	}
	_, err = c.CoreV1().ConfigMaps(s.name).Patch(ctx, name, types.MergePatchType, patch, metav1.PatchOptions{})
	if err != nil {
		return fmt.Errorf("set finalizers of %s on %s: %w", name, via, err)
	}
	return nil
}

// whileCut edits on both sides, the left always first, and sees each side
// work on its own.
func (s *split) whileCut(ctx context.Context) error {
	l, r := s.left[0], s.right[0]
	for _, side := range [][]string{s.left, s.right} {
		leader, err := s.OneLeader(ctx, side)
		if err != nil {
			return err
		}
		s.Printf("cut: %s leads %s", leader, strings.Join(side, ","))
	}
	lc, err := s.Client(l)
	if err != nil {
		return err
	}
	late := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "late"}, Data: map[string]string{"x": "late"}}
	steps := []func() error{
		func() error { return s.patch(ctx, l, "fields", map[string]string{"a": "left"}) },
		func() error { return s.patch(ctx, r, "fields", map[string]string{"b": "right"}) },
		func() error { return s.patch(ctx, l, "field", map[string]string{"x": "left"}) },
		func() error { return s.patch(ctx, r, "field", map[string]string{"x": "right"}) },
		func() error { return lc.CoreV1().ConfigMaps(s.name).Delete(ctx, "deleted", metav1.DeleteOptions{}) },
		func() error { return s.patch(ctx, r, "deleted", map[string]string{"x": "too late"}) },
		func() error { return s.config(ctx, l, "created", map[string]string{"side": "left"}) },
		func() error { return s.config(ctx, r, "created", map[string]string{"side": "right"}) },
		func() error { return s.finalizers(ctx, l, "finalized", "moot.example/right") },
		func() error { return s.finalizers(ctx, r, "finalized", "moot.example/left") },
		func() error { return s.scale(ctx, l, "scaled", 3) },
		func() error { return s.scale(ctx, r, "scaled", 4) },
		func() error { return s.deleteDoomed(ctx, l) },
		func() error {
			c, err := s.Client(r)
			if err == nil {
				_, err = c.CoreV1().ConfigMaps(s.doomed.name).Create(ctx, late, metav1.CreateOptions{})
			}
			return err
		},
		func() error { return s.expose(ctx, l, "twice-left") },
		func() error { return s.expose(ctx, r, "twice-right") },
		func() error { return s.deploy(ctx, l, "only-left", 1) },
		func() error { return s.deploy(ctx, r, "only-right", 1) },
		func() error { return s.settle(ctx, l, "only-left", s.left) },
		func() error { return s.settle(ctx, r, "only-right", s.right) },
	}
	for i, step := range steps {
		if err := step(); err != nil {
			return fmt.Errorf("while cut, step %d: %w", i+1, err)
		}
	}
	return nil
}

// deleteDoomed deletes the namespace and waits until it is gone on that side.
func (s *split) deleteDoomed(ctx context.Context, via string) error {
	if err := s.doomed.end(ctx, via); err != nil {
		return err
	}
	return s.noNamespace(ctx, via)
}

func (s *split) noNamespace(ctx context.Context, via string) error {
	c, err := s.Client(via)
	if err != nil {
		return err
	}
	return s.eventually(ctx, "namespace "+s.doomed.name+" is gone on "+via, func(ctx context.Context) error {
		ns, err := c.CoreV1().Namespaces().Get(ctx, s.doomed.name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return nil
		}
		if err == nil {
			err = fmt.Errorf("it is there, %s: %+v", ns.Status.Phase, ns.Status.Conditions)
		}
		return err
	})
}

// mergedFields looks at what was edited field by field.
func (s *split) mergedFields(ctx context.Context) error {
	for _, node := range s.Nodes {
		got, err := s.data(ctx, node, "fields")
		if err != nil {
			return err
		}
		if got["a"] != "left" || got["b"] != "right" {
			return fmt.Errorf("edits of different fields, on %s: %v", node, got)
		}
		if got, err = s.data(ctx, node, "field"); err != nil {
			return err
		}
		if got["x"] != "right" {
			return fmt.Errorf("edits of the same field, on %s: %v, the right side's was the later", node, got)
		}
	}
	s.Printf("same object, different fields: both kept; same field: the later kept")
	if err := s.listed(ctx, s.Nodes, "configmaps", "field", "left"); err != nil {
		return err
	}
	s.Printf("the earlier one is listed on every node")
	return nil
}

// mergedLives looks at what was created and deleted.
func (s *split) mergedLives(ctx context.Context) error {
	for _, node := range s.Nodes {
		for _, name := range []string{"deleted", "finalized"} {
			got, err := s.data(ctx, node, name)
			if err != nil {
				return err
			}
			if got != nil {
				return fmt.Errorf("%s is there on %s: %v", name, node, got)
			}
		}
		got, err := s.data(ctx, node, "created")
		if err != nil {
			return err
		}
		if got["side"] != "left" {
			return fmt.Errorf("created on both sides, on %s: %v, the left side's was the older", node, got)
		}
	}
	for name, lost := range map[string]string{"deleted": "too late", "created": "right"} {
		if err := s.listed(ctx, s.Nodes, "configmaps", name, lost); err != nil {
			return err
		}
	}
	s.Printf("deleted against updated: deleted; created against created: the older kept; both listed; finalizers: gone")
	return nil
}

// mergedNamespace looks at what was created in a namespace that the other side
// deleted.
func (s *split) mergedNamespace(ctx context.Context) error {
	for _, node := range s.Nodes {
		if err := s.noNamespace(ctx, node); err != nil {
			return err
		}
		if err := s.eventually(ctx, "what was created in the namespace is gone on "+node, func(ctx context.Context) error {
			got, err := s.doomed.data(ctx, node, "late")
			if err == nil && got != nil {
				err = fmt.Errorf("it is there: %v", got)
			}
			return err
		}); err != nil {
			return err
		}
	}
	if err := s.doomed.listed(ctx, s.Nodes, "configmaps", "late", "late"); err != nil {
		return err
	}
	s.Printf("namespace deleted against a create in it: both gone, the created one listed")
	return nil
}

// mergedReplicas looks at the Deployments, and at what really runs.
func (s *split) mergedReplicas(ctx context.Context) error {
	for _, name := range []string{"scaled", "steady", "only-left", "only-right"} {
		for _, node := range s.Nodes {
			if err := s.settle(ctx, node, name, s.Nodes); err != nil {
				return err
			}
		}
	}
	c, err := s.Client(s.left[0])
	if err != nil {
		return err
	}
	d, err := c.AppsV1().Deployments(s.name).Get(ctx, "scaled", metav1.GetOptions{})
	if err != nil {
		return err
	}
	if *d.Spec.Replicas != 4 {
		return fmt.Errorf("scaled to 3 and later to 4: %d", *d.Spec.Replicas)
	}
	if err := s.listed(ctx, s.Nodes, "deployments", "scaled", "3"); err != nil {
		return err
	}
	if err := s.noStrays(ctx); err != nil {
		return err
	}
	s.Printf("scaled against scaled: the later, listed; every Deployment has exactly the pods it declares, and nothing else runs")
	return nil
}

// mergeTold looks for the Events.
func (s *split) mergeTold(ctx context.Context) error {
	for _, name := range []string{"field", "scaled"} {
		if err := s.told(ctx, s.left[0], name); err != nil {
			return err
		}
	}
	s.Printf("an Event on the object tells of each")
	return nil
}

// noStrays waits until on each node as many containers of the web app run as
// there are pods of it, in all namespaces.
func (b *Bed) noStrays(ctx context.Context) error {
	return b.eventually(ctx, "no containers without a pod", func(ctx context.Context) error {
		for _, node := range b.Nodes {
			c, err := b.Client(node)
			if err != nil {
				return err
			}
			all, err := c.CoreV1().Pods("").List(ctx, metav1.ListOptions{FieldSelector: "spec.nodeName=" + node})
			if err != nil {
				return err
			}
			want := 0
			for _, p := range all.Items {
				if strings.HasPrefix(p.Spec.Containers[0].Image, "moot.example/") && p.Status.Phase == corev1.PodRunning {
					want++
				}
			}
			out, err := b.on(ctx, node, nil, "sh", "-c", "pgrep -x web | wc -l")
			if err != nil {
				return err
			}
			if out != fmt.Sprint(want) {
				return fmt.Errorf("%s runs %s containers, there are %d pods for it", node, out, want)
			}
		}
		return nil
	})
}
