package sched

import (
	"context"
	"log/slog"
	"reflect"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes"
)

const (
	// keeperLooks is how long the keeper goes without a look at most.
	keeperLooks = 30 * time.Second
	// keeperRests keeps a burst of changes from causing as many looks.
	keeperRests = 20 * time.Millisecond
	// leasesPerGrace: a Lease may fail to be renewed twice in a row.
	leasesPerGrace = 3
	// unfinished is how soon the keeper looks again when not all was done.
	unfinished = 250 * time.Millisecond
)

// keeper does what [judge] says: it looks at the members, the Nodes and the
// pods, and brings the objects in line, again and again. It keeps nothing that
// the next leader would need.
type keeper struct {
	cfg    *Config
	log    *slog.Logger
	client kubernetes.Interface
	view   *view
	work   *work
	wake   chan struct{}

	report Report
	since  map[string]NodeReport // verdicts by name, and since when
}

// keepNodes keeps the nodes until ctx ends; changed fires when the members did.
func (t *term) keepNodes(ctx context.Context, client kubernetes.Interface, changed <-chan struct{}) error {
	k := &keeper{
		cfg: t.cfg, log: t.cfg.Log, client: client, wake: make(chan struct{}, 1), since: map[string]NodeReport{},
		report: Report{Term: t.cfg.Term, Since: time.Now()},
	}
	k.work = newWork(k.poke)
	defer k.work.wait()
	view, err := newView(client, k.poke)
	if err != nil {
		return err
	}
	k.view = view
	watching := make(chan struct{})
	go func() {
		defer close(watching)
		view.run(ctx)
	}()
	defer func() { <-watching }()
	if !view.awaitSync(ctx) {
		return ctx.Err()
	}
	for {
		next := k.look(ctx, time.Now())
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(keeperRests):
		}
		timer := time.NewTimer(next)
		select {
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		case <-changed:
		case <-k.wake:
		case <-timer.C:
		}
		timer.Stop()
	}
}

// poke asks for a look; many at once are one.
func (k *keeper) poke() {
	select {
	case k.wake <- struct{}{}:
	default:
	}
}

// look does what is to be done now and says in how long to look again.
func (k *keeper) look(ctx context.Context, now time.Time) time.Duration {
	members := k.cfg.Nodes()
	nodes, marked := map[string]*corev1.Node{}, map[string]time.Time{}
	for _, m := range members {
		// An error means that there is none: it comes, or it has gone.
		if node, err := k.view.nodes.Get(m.Name); err == nil {
			nodes[m.Name] = node
			if at, is := givenUp(node); is {
				marked[m.Name] = at
			}
		}
	}
	r := rules{brakeFor: k.cfg.BrakeFor, brakeWindow: k.cfg.BrakeWindow, startupGrace: k.cfg.StartupGrace}
	judged := judge(now, r, arrived(members, nodes), marked)
	for _, m := range members {
		if _, ok := judged[m.Name]; !ok {
			judged[m.Name] = judgement{verdict: VerdictExpect}
		}
	}
	k.work.begin(now)
	for _, m := range members {
		k.tend(ctx, now, m, judged[m.Name], nodes[m.Name])
	}
	next := min(keeperLooks, k.work.end())
	for _, j := range judged {
		if !j.until.IsZero() {
			// Not earlier: what is decided at that moment is decided by then.
			next = min(next, max(j.until.Sub(now), unfinished))
		}
	}
	k.tell(now, members, judged)
	return next
}

// arrived leaves out members that were let in and have not come up yet: they
// have no Node and no pods, so there is nothing to hold, and they are not gone.
func arrived(members []NodeHealth, nodes map[string]*corev1.Node) []NodeHealth {
	return slices.DeleteFunc(slices.Clone(members), func(m NodeHealth) bool {
		return m.State == NodeDead && m.Unheard && nodes[m.Name] == nil
	})
}

// tend queues what is to be done about one member. What concerns the node comes
// before what concerns its pods.
func (k *keeper) tend(ctx context.Context, now time.Time, m NodeHealth, j judgement, node *corev1.Node) {
	if j.verdict == VerdictRemove {
		k.remove(ctx, m, node)
		return
	}
	if node == nil {
		return
	}
	switch j.verdict {
	case VerdictAbandon:
		return
	case VerdictEvict:
		k.patchNode(ctx, node, "give up node", giveUpNode(node, m.Birth, now), "status")
	case VerdictKeep, VerdictHold, VerdictExpect:
		k.patchNode(ctx, node, "take back node", takeBackNode(node, m.Birth, now), "status")
	}
	switch j.verdict {
	case VerdictKeep:
		k.patchNode(ctx, node, "open node to pods", taintNode(node, false))
	case VerdictHold, VerdictExpect, VerdictWait:
		k.patchNode(ctx, node, "close node to pods", taintNode(node, true))
	}
	if j.verdict != VerdictEvict && m.Name != k.cfg.Node {
		k.renewLease(ctx, node)
	}
	switch {
	case j.unready:
		for _, pod := range k.view.podsOf(byNode, m.Name) {
			k.patchPod(ctx, pod, "take pod out of the endpoints", silencePod(pod, m.Birth))
		}
	case j.verdict == VerdictKeep:
		for _, pod := range k.view.podsOf(bySilenced, m.Name) {
			k.patchPod(ctx, pod, "give pod back to the endpoints", restorePod(pod, m.Birth))
		}
	}
}

// tell logs and reports what changed.
func (k *keeper) tell(now time.Time, members []NodeHealth, judged map[string]judgement) {
	report := Report{Term: k.report.Term, Since: k.report.Since}
	report.Held, report.Until = held(judged)
	if len(report.Held) > 0 && !slices.Equal(report.Held, k.report.Held) {
		k.log.Warn("too many nodes are gone at once: their pods are not moved until some are back",
			"nodes", report.Held, "until", report.Until.Format(time.DateTime))
	}
	failed := k.work.failures()
	for _, m := range members {
		verdict := judged[m.Name].verdict
		line, known := k.since[m.Name]
		if !known || line.Verdict != verdict {
			if known || verdict != VerdictKeep {
				k.log.Info("judged node", "node", m.Name, "state", string(m.State), "verdict", string(verdict), "before", string(line.Verdict))
			}
			line = NodeReport{Name: m.Name, Verdict: verdict, Since: now}
		}
		line.Unready, line.Error = len(k.view.podsOf(bySilenced, m.Name)), failed[m.Name]
		k.since[m.Name] = line
		report.Nodes = append(report.Nodes, line)
	}
	slices.SortFunc(report.Nodes, func(a, b NodeReport) int { return strings.Compare(a.Name, b.Name) })
	if len(k.since) > len(members) { // forgotten ones
		for name := range k.since {
			if _, ok := judged[name]; !ok {
				delete(k.since, name)
			}
		}
	}
	if k.cfg.Report != nil && !reflect.DeepEqual(report, k.report) {
		k.cfg.Report(report)
	}
	k.report = report
}
