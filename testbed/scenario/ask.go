package scenario

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/mootkube/moot/testbed"
	"github.com/mootkube/moot/testbed/caller"
)

// place is where clients of Services are: each runs the web app there.
type place struct {
	name string
	run  func(ctx context.Context, args ...string) (string, error)
}

// nodePlace is a node itself, beside its pods.
func (b *Bed) nodePlace(node string) place {
	return place{name: node, run: func(ctx context.Context, args ...string) (string, error) {
		return b.on(ctx, node, nil, append([]string{"testbed-web"}, args...)...)
	}}
}

// podPlace is a pod on a node.
func (s *space) podPlace(node, pod string) place {
	return place{name: "a pod on " + node, run: func(ctx context.Context, args ...string) (string, error) {
		return s.Kubectl(ctx, node, append([]string{"-n", s.name, "exec", pod, "--", "/web"}, args...)...)
	}}
}

// machinePlace is a machine beside the nodes.
func machinePlace(m *testbed.Machine) place {
	return place{name: "outside", run: func(ctx context.Context, args ...string) (string, error) {
		var out, errOut bytes.Buffer
		code, err := m.Exec(ctx, testbed.Command{Argv: append([]string{"testbed-web"}, args...), Stdout: &out, Stderr: &errOut})
		if err == nil && code != 0 {
			err = fmt.Errorf("exit status %d: %s", code, bytes.TrimSpace(errOut.Bytes()))
		}
		if err != nil {
			err = fmt.Errorf("%s on %s: %w", strings.Join(args, " "), m.Name, err)
		}
		return out.String(), err
	}}
}

// question says how addresses are asked, side by side.
type question struct {
	tries   int
	udp     bool
	timeout time.Duration // of one try; 0: the client's own
	port    int           // to ask from; 0: any
}

// ask returns a report for each address.
func (p place) ask(ctx context.Context, q question, addresses ...string) ([]caller.Report, error) {
	args := []string{"ask", "--tries", strconv.Itoa(q.tries), "--every", "5ms"}
	if q.udp {
		args = append(args, "--udp")
	}
	if q.timeout > 0 {
		args = append(args, "--timeout", q.timeout.String())
	}
	if q.port > 0 {
		args = append(args, "--from", strconv.Itoa(q.port))
	}
	out, err := p.run(ctx, append(args, addresses...)...)
	if err != nil {
		return nil, fmt.Errorf("ask from %s: %w", p.name, err)
	}
	var reports []caller.Report
	for dec := json.NewDecoder(strings.NewReader(out)); len(reports) < len(addresses); {
		var r caller.Report
		if err := dec.Decode(&r); err != nil {
			return nil, fmt.Errorf("ask from %s: read the report: %w", p.name, err)
		}
		reports = append(reports, r)
	}
	return reports, nil
}

// askOne asks one address.
func (p place) askOne(ctx context.Context, q question, address string) (caller.Report, error) {
	all, err := p.ask(ctx, q, address)
	if err != nil {
		return caller.Report{}, err
	}
	return all[0], nil
}

// answered is an error unless every try of every report was answered.
func (p place) answered(reports []caller.Report) error {
	var errs []error
	for _, r := range reports {
		if r.Failures > 0 || r.Tries == 0 {
			errs = append(errs, fmt.Errorf("from %s to %s: %d of %d failed: %v%s; %d were slow, the slowest %s",
				p.name, r.Target, r.Failures, r.Tries, r.Errors, when(r), r.Slow, seconds(r.Longest)))
		}
	}
	return errors.Join(errs...)
}

// silent is an error if any try was answered.
func (p place) silent(reports ...caller.Report) error {
	var errs []error
	for _, r := range reports {
		if r.Failures != r.Tries {
			errs = append(errs, fmt.Errorf("from %s to %s: %d of %d were answered, by %v", p.name, r.Target, r.Tries-r.Failures, r.Tries, r.Pods))
		}
	}
	return errors.Join(errs...)
}

// total joins counts of several reports.
func total(reports []caller.Report, of func(caller.Report) map[string]int) map[string]int {
	sum := map[string]int{}
	for _, r := range reports {
		for k, n := range of(r) {
			sum[k] += n
		}
	}
	return sum
}

func podsOf(r caller.Report) map[string]int    { return r.Pods }
func clientsOf(r caller.Report) map[string]int { return r.Clients }

func at(addr string, port int32) string { return net.JoinHostPort(addr, strconv.Itoa(int(port))) }
