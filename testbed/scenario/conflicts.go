package scenario

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Conflict is what a merge did not keep, as moot conflicts lists it.
type Conflict struct {
	Key  string          `json:"key"`
	UID  string          `json:"uid"`
	Path string          `json:"path"`
	Rule string          `json:"rule"`
	Lost json.RawMessage `json:"lost"`
	Kept json.RawMessage `json:"kept"`
}

// Conflicts asks a node for all that merges have not kept.
func (b *Bed) Conflicts(ctx context.Context, node string) ([]Conflict, error) {
	out, err := b.on(ctx, node, nil, "moot", "conflicts", "-o", "json")
	if err != nil {
		return nil, err
	}
	var cs []Conflict
	if err := json.Unmarshal([]byte(out), &cs); err != nil {
		return nil, fmt.Errorf("conflicts of %s: %w: %s", node, err, out)
	}
	return cs, nil
}

// listed waits until every node lists a conflict of an object in which the
// lost value holds a text, and until the object has an Event that tells of it.
func (s *space) listed(ctx context.Context, nodes []string, resource, name, lost string) error {
	key := fmt.Sprintf("/registry/%s/%s/%s", resource, s.name, name)
	return s.eventually(ctx, fmt.Sprintf("a listed conflict of %s that lost %s", key, lost), func(ctx context.Context) error {
		for _, node := range nodes {
			cs, err := s.Conflicts(ctx, node)
			if err != nil {
				return err
			}
			cs = slices.DeleteFunc(cs, func(c Conflict) bool { return c.Key != key })
			if !slices.ContainsFunc(cs, func(c Conflict) bool { return strings.Contains(string(c.Lost), lost) }) {
				return fmt.Errorf("%s lists for it: %s", node, text(cs))
			}
		}
		return nil
	})
}

func text(cs []Conflict) string {
	var out []string
	for _, c := range cs {
		out = append(out, fmt.Sprintf("%s at %s: lost %s, kept %s", c.Rule, c.Path, c.Lost, c.Kept))
	}
	if len(out) == 0 {
		return "nothing"
	}
	return strings.Join(out, "; ")
}

// told waits for an Event of the conflict on an object.
func (s *space) told(ctx context.Context, via, name string) error {
	c, err := s.Client(via)
	if err != nil {
		return err
	}
	return s.eventually(ctx, "an Event that tells of the conflict of "+name, func(ctx context.Context) error {
		all, err := c.CoreV1().Events(s.name).List(ctx, metav1.ListOptions{FieldSelector: "involvedObject.name=" + name})
		if err != nil {
			return err
		}
		if !slices.ContainsFunc(all.Items, func(e corev1.Event) bool { return strings.Contains(e.Reason, "Conflict") }) {
			return fmt.Errorf("%d Events, none of a conflict", len(all.Items))
		}
		return nil
	})
}
