package scenario

import (
	"context"
	"errors"
	"fmt"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/mootkube/moot/testbed/caller"
)

// What clients may notice of a fault.
type tolerance int

const (
	nothing     tolerance = iota
	keptEnd               // connections that are kept end: their pod does
	someTrouble           // for a while
)

// fault is one thing that breaks, or mends, under the clients.
type fault struct {
	what    string
	allowed tolerance
	do      func(context.Context) error
	after   func(context.Context) error // waits until all is as it should be then
}

func (d *drop) faults() []fault {
	whole := func(ctx context.Context) error {
		return errors.Join(d.WaitWhole(ctx, d.Nodes), d.backendsReady(ctx, d.Nodes))
	}
	without := func(node string) func(context.Context) error {
		return func(ctx context.Context) error { return d.backendsReady(ctx, d.Others(node)) }
	}
	restart := func(node string, end func(context.Context, ...string) error) func(context.Context) error {
		return func(ctx context.Context) error {
			if err := end(ctx, node); err != nil {
				return err
			}
			return d.Start(ctx, node)
		}
	}
	crash := func(node string) func(context.Context) error {
		return func(ctx context.Context) error { return d.Crash(ctx, node) }
	}
	start := func(node string) func(context.Context) error {
		return func(ctx context.Context) error { return d.Start(ctx, node) }
	}
	return []fault{
		{"nothing, for comparison", nothing, func(context.Context) error { return nil }, whole},
		{"a backend deleted in good order", keptEnd, d.deleteBackend, whole},
		{"SIGTERM and start of the daemon of the clients' node", nothing, restart(d.client, d.Stop), whole},
		{"SIGTERM and start of the daemon of a backend's node", nothing, restart(d.victim, d.Stop), whole},
		{"SIGTERM and start of the leader's daemon", nothing, restart(d.leader, d.Stop), whole},
		{"kill -9 and start of the daemon of the clients' node", nothing, restart(d.client, d.Kill), whole},
		{"kill -9 and start of the daemon of a backend's node", nothing, restart(d.victim, d.Kill), whole},
		{"crash of a backend's node", someTrouble, crash(d.victim), without(d.victim)},
		{"its return", nothing, start(d.victim), whole},
		{"the link of a backend's node cut", someTrouble, func(ctx context.Context) error { return d.Unplug(ctx, d.victim, false) }, without(d.victim)},
		{"its link back", nothing, func(ctx context.Context) error { return d.Plug(ctx, d.victim) }, whole},
		{"crash of the leader, which has a backend", someTrouble, d.crashLeader, without(d.leader)},
		{"the return of the old leader", nothing, start(d.leader), whole},
	}
}

// crashLeader crashes the one that led at first. It leads again by then: the
// daemons of the others are younger.
func (d *drop) crashLeader(ctx context.Context) error {
	if now, err := d.OneLeader(ctx, d.Nodes); err != nil || now != d.leader {
		return errors.Join(fmt.Errorf("%s leads, not %s", now, d.leader), err)
	}
	return d.Crash(ctx, d.leader)
}

func (d *drop) deleteBackend(ctx context.Context) error {
	c, err := d.Client(d.client)
	if err != nil {
		return err
	}
	pods, err := d.pods(ctx, d.client, "web")
	if err != nil {
		return err
	}
	for _, p := range pods {
		if p.Spec.NodeName != d.victim {
			continue
		}
		if err := c.CoreV1().Pods(d.name).Delete(ctx, p.Name, metav1.DeleteOptions{}); err != nil {
			return fmt.Errorf("delete %s: %w", p.Name, err)
		}
		return d.eventually(ctx, p.Name+" gone", func(ctx context.Context) error {
			_, err := c.CoreV1().Pods(d.name).Get(ctx, p.Name, metav1.GetOptions{})
			if err == nil {
				return errors.New("it is there")
			}
			if missing(err) {
				return nil
			}
			return err
		})
	}
	return fmt.Errorf("no backend is on %s: %s", d.victim, describe(pods))
}

// tryFault breaks one thing when all is well, waits until it is again, and tells
// what each client noticed.
func (d *drop) tryFault(ctx context.Context, f fault, bound time.Duration) error {
	// Those that are kept are spread over the backends that there are now.
	if _, err := d.take(ctx, "/renew"); err != nil {
		return err
	}
	if err := d.calm(ctx); err != nil {
		return err
	}
	if _, err := d.take(ctx, "/take"); err != nil {
		return err
	}
	began := time.Now()
	if err := f.do(ctx); err != nil {
		return err
	}
	if err := errors.Join(f.after(ctx), d.calm(ctx)); err != nil {
		return err
	}
	took := time.Since(began)
	reports, err := d.take(ctx, "/take")
	if err != nil {
		return err
	}
	d.Printf("%s, watched for %s:", f.what, seconds(took))
	var errs []error
	longest := time.Duration(0)
	for i, w := range d.asked {
		for j, r := range reports[i] {
			d.Printf("  %-24s %6d tries, %4d failed, %3d slow, no success for %7.3f s, trouble for %7.3f s%s%s",
				w.names[j], r.Tries, r.Failures, r.Slow, r.Gap.Seconds(), r.Spell.Seconds(), details(r), stall(w, r))
			if !w.kept {
				longest = max(longest, r.Gap, r.Spell)
			}
			if r.Window < took {
				errs = append(errs, fmt.Errorf("%s: the client was itself started anew", w.names[j]))
			}
			if r.Failures > 0 && (f.allowed == nothing || f.allowed == keptEnd && !w.kept) {
				errs = append(errs, fmt.Errorf("%s: %d of %d failed: %v%s", w.names[j], r.Failures, r.Tries, r.Errors, stall(w, r)))
			}
		}
	}
	if f.allowed == someTrouble {
		verdict := "kept"
		if longest > promised {
			verdict = "missed"
		}
		d.Printf("  longest trouble of those who connect anew %s: promise %s: %s", seconds(longest), promised, verdict)
		if longest > bound {
			errs = append(errs, fmt.Errorf("trouble for %s, more than %s", seconds(longest), bound))
		}
	}
	return errors.Join(errs...)
}

// details tells how the tries of a report failed.
func details(r caller.Report) string {
	text := ""
	if r.Missed > 0 {
		text = fmt.Sprintf(", %d not begun", r.Missed)
	}
	if r.Failures > 0 {
		text += fmt.Sprintf(" %v, after %s at most%s", r.Errors, seconds(r.Hung), when(r))
	}
	return text
}

// stall tells that a client itself stood still: then the machine is too busy for
// what is measured to mean much.
func stall(w *watched, r caller.Report) string {
	if w.kept || r.Stall < promised/2 {
		return ""
	}
	return fmt.Sprintf("; the client itself stood still for %s", seconds(r.Stall))
}

// when tells at which moments after the window began the first tries failed.
func when(r caller.Report) string {
	if len(r.Failed) == 0 {
		return ""
	}
	return ", begun at " + list(r.Failed) + " s"
}

func (d *drop) take(ctx context.Context, path string) (out [][]caller.Report, err error) {
	for _, w := range d.asked {
		var reports []caller.Report
		err := d.eventually(ctx, "a report", func(ctx context.Context) (err error) {
			reports, err = w.report(ctx, path)
			return err
		})
		if err != nil {
			return nil, err
		}
		out = append(out, reports)
	}
	return out, nil
}
