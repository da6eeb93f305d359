package scenario

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// ledger keeps the writes that were acknowledged: fields of ConfigMaps that
// nobody writes twice, and counters that one writer alone moves up.
type ledger struct {
	mu       sync.Mutex
	fields   map[[2]string]string // object and field: value
	counters map[[2]string]int    // object and field: last acknowledged
}

func newLedger() *ledger {
	return &ledger{fields: map[[2]string]string{}, counters: map[[2]string]int{}}
}

func (l *ledger) field(object, name, value string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.fields[[2]string{object, name}] = value
}

func (l *ledger) counter(object, name string, n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.counters[[2]string{object, name}] = max(n, l.counters[[2]string{object, name}])
}

func (l *ledger) size() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.fields)
}

// missing compares the ledger with what a node has, and lists what is neither
// there nor a listed conflict.
func (l *ledger) missing(ctx context.Context, s *space, node string) (missing []string, listed int, err error) {
	c, err := s.Client(node)
	if err != nil {
		return nil, 0, err
	}
	all, err := c.CoreV1().ConfigMaps(s.name).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, 0, fmt.Errorf("list on %s: %w", node, err)
	}
	conflicts, err := s.Conflicts(ctx, node)
	if err != nil {
		return nil, 0, err
	}
	have := map[string]map[string]string{}
	for _, m := range all.Items {
		have[m.Name] = m.Data
	}
	lost := func(id [2]string, value string) {
		key := "/registry/configmaps/" + s.name + "/" + id[0]
		if slices.ContainsFunc(conflicts, func(c Conflict) bool { return c.Key == key && strings.Contains(string(c.Lost), value) }) {
			listed++
			return
		}
		missing = append(missing, fmt.Sprintf("%s on %s: %s is %q, %q was acknowledged", id[0], node, id[1], have[id[0]][id[1]], value))
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for id, value := range l.fields {
		if have[id[0]][id[1]] != value {
			lost(id, value)
		}
	}
	for id, n := range l.counters {
		var got int
		_, _ = fmt.Sscan(have[id[0]][id[1]], &got)
		if got < n {
			lost(id, fmt.Sprintf("%q", fmt.Sprint(n)))
		}
	}
	slices.Sort(missing)
	return missing, listed, nil
}

// check compares the ledger with every node.
func (l *ledger) check(ctx context.Context, s *space, nodes []string) error {
	for _, node := range nodes {
		missing, listed, err := l.missing(ctx, s, node)
		if err != nil {
			return err
		}
		if len(missing) > 0 {
			return fmt.Errorf("%d acknowledged writes are neither on %s nor listed as conflicts:\n%s",
				len(missing), node, strings.Join(missing[:min(len(missing), 20)], "\n"))
		}
		if node == nodes[0] {
			s.Printf("acknowledged writes: %d, all there on %d nodes but %d listed as conflicts", l.size()+len(l.counters), len(nodes), listed)
		}
	}
	return nil
}
