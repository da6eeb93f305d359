package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/mootkube/moot/testbed"
)

const (
	node      = "n1"
	benchName = "bench"

	sideMoot     = "moot"
	sideUpstream = "upstream"
)

// side is one of the two that are compared.
type side struct {
	name     string
	profiled bool // answers on moot's status socket
	cfg      testbed.Config
	images   []string // files to import
	cluster  *testbed.Cluster
	initPID  int
	id       string // of the cluster, names its cgroups
	shares   int    // of processor time
	results  results
}

// results are all rounds of a side.
type results struct {
	starts  map[string][]startResult
	pods    []podTimes
	podCPU  []time.Duration
	batch   []time.Duration
	batchPU []time.Duration
	idle    *idleUse
}

// startResult is one start, in time after the daemon's process began.
type startResult struct{ API, Node, Said time.Duration }

// newSide puts the binaries of a side together.
func newSide(s settings, name string, daemon []string, binaries map[string]string, images []string) (*side, error) {
	bin := filepath.Join(s.dir, name+"-bin")
	if err := os.MkdirAll(bin, 0o755); err != nil {
		return nil, err
	}
	for as, from := range binaries {
		if err := place(from, filepath.Join(bin, as)); err != nil {
			return nil, fmt.Errorf("prepare %s: %w", name, err)
		}
	}
	cfg := testbed.DefaultConfig(filepath.Join(s.dir, name), bin)
	cfg.Daemon, cfg.CheckNode = daemon, nil
	cluster, err := testbed.New(cfg)
	if err != nil {
		return nil, err
	}
	return &side{
		name: name, cfg: cfg, images: images, cluster: cluster, shares: s.shares,
		results: results{starts: map[string][]startResult{}},
	}, nil
}

// place links a file, or copies it when that is on another disk.
func place(from, to string) error {
	if err := os.Remove(to); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if os.Link(from, to) == nil {
		return nil
	}
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer func() { _ = in.Close() }()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

// cpu is what the node has used so far, without what was run with exec.
func (s *side) cpu() (time.Duration, error) {
	group := filepath.Join("moot-testbed-"+s.id, node)
	all, err := cgroupCPU(group)
	if err != nil {
		return 0, err
	}
	for _, leaf := range []string{"exec", "init"} {
		own, err := cgroupCPU(filepath.Join(group, leaf))
		if err != nil {
			return 0, err
		}
		all -= own
	}
	return all, nil
}

// timed runs begin, which returns when the daemon says it is ready, and
// meanwhile watches the start from the node.
func (s *side) timed(ctx context.Context, kind string, begin func(context.Context) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	asked := time.Now()
	said := make(chan error, 1)
	var saidAt time.Time
	go func() {
		err := begin(ctx)
		saidAt = time.Now()
		said <- err
	}()
	var started time.Time
	err := poll(ctx, 10*time.Millisecond, func(ctx context.Context) bool {
		st, err := s.cluster.Status(ctx)
		if err != nil || len(st.Nodes) == 0 || st.Nodes[0].Started.Before(asked) {
			return len(said) > 0 // it failed before the daemon was started
		}
		s.id, s.initPID, started = st.ID, st.Nodes[0].InitPID, st.Nodes[0].Started
		return true
	})
	if err == nil && s.id != "" {
		err = setShares(s.id, s.shares)
	}
	var times startTimes
	if err == nil && !started.IsZero() {
		err = ask(ctx, s.cluster, question{Kind: "start", Node: node, Since: started}, &times)
	}
	if err != nil {
		cancel()
	}
	if err := errors.Join(<-said, err); err != nil {
		return fmt.Errorf("%s, %s: %w", s.name, kind, err)
	}
	s.results.starts[kind] = append(s.results.starts[kind], startResult{
		API: times.API.Sub(started), Node: times.Node.Sub(started), Said: saidAt.Sub(started),
	})
	return nil
}

// Kinds of a start.
const (
	startEmpty   = "empty data directory"
	startRestart = "restart after SIGKILL"
	startReboot  = "reboot"
)

// round is one life of the side.
func (s *side) round(ctx context.Context, set settings, last bool) (err error) {
	defer func() { err = errors.Join(err, s.cluster.Down(context.WithoutCancel(ctx))) }()
	if err := s.timed(ctx, startEmpty, func(ctx context.Context) error { return s.cluster.Up(ctx, 1) }); err != nil {
		return err
	}
	for _, image := range s.images {
		if err := s.cluster.LoadImage(ctx, image); err != nil {
			return err
		}
	}
	if !set.skips("pods") {
		if err := s.pods(ctx, set); err != nil {
			return err
		}
	}
	if !set.skips("restart") {
		if err := s.again(ctx, startRestart, s.cluster.Kill); err != nil {
			return err
		}
	}
	if !set.skips("reboot") {
		if err := s.again(ctx, startReboot, s.cluster.Crash); err != nil {
			return err
		}
	}
	if !last || set.idle == 0 {
		return nil
	}
	if err := ask(ctx, s.cluster, question{Kind: "load", Count: set.batch, Objects: set.objects}, &struct{}{}); err != nil {
		return err
	}
	use, err := s.idle(ctx, set.idle, set.profiles)
	s.results.idle = &use
	return err
}

func (s *side) pods(ctx context.Context, set settings) error {
	var runs podRuns
	if err := ask(ctx, s.cluster, question{Kind: "pods", Count: set.pods, Batch: set.batch}, &runs); err != nil {
		return err
	}
	r := &s.results
	r.pods, r.podCPU = append(r.pods, runs.Single...), append(r.podCPU, runs.SingleCPU...)
	r.batch, r.batchPU = append(r.batch, runs.Batch), append(r.batchPU, runs.BatchCPU)
	return nil
}

// again ends the daemon and starts it anew. More than a second lies between,
// so that no heartbeat of before can pass for one of after.
func (s *side) again(ctx context.Context, kind string, end func(context.Context, ...string) error) error {
	if err := end(ctx, node); err != nil {
		return err
	}
	if err := pause(ctx, 1500*time.Millisecond); err != nil {
		return err
	}
	return s.timed(ctx, kind, func(ctx context.Context) error { return s.cluster.Start(ctx, node) })
}
