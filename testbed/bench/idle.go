package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"
)

const shimName = "containerd-shim-runc-v2"

// idleUse is what an idle node uses: its daemon, or all daemons of the rival,
// and its shims.
type idleUse struct {
	DaemonAnon int64 // bytes
	AfterGC    int64 // after a forced collection; 0 when not tried
	ShimAnon   int64 // of one, the median
	Shims      int
	DaemonCPU  float64            // share of one core
	NodeCPU    float64            // with shims and what they and the kubelet ran
	Written    float64            // bytes a second by all processes of the node
	ByName     map[string]float64 // CPU of each daemon
	AnonByName map[string]int64
	Settled    time.Duration // how long it took to become quiet
}

// settle waits until two stretches of ten seconds in a row cost about the same
// and the second wrote nothing, for a minute at least and three at most.
func (s *side) settle(ctx context.Context) (time.Duration, error) {
	const stretch = 10 * time.Second
	begin := time.Now()
	before, last := time.Duration(0), time.Duration(0)
	written := int64(0)
	for {
		now, err := s.written()
		if err != nil {
			return 0, err
		}
		cpu, err := s.cpu()
		if err != nil {
			return 0, err
		}
		spent := cpu - before
		quiet := last > 0 && spent < last*6/5 && last < spent*6/5 && now == written && time.Since(begin) > time.Minute
		if quiet || time.Since(begin) > 3*time.Minute {
			return time.Since(begin), nil
		}
		before, last, written = cpu, spent, now
		if err := pause(ctx, stretch); err != nil {
			return 0, err
		}
	}
}

// written is what the node's processes that run now have sent to the disk.
func (s *side) written() (int64, error) {
	processes, err := nodeProcesses(s.initPID)
	sum := int64(0)
	for _, u := range processes {
		sum += u.Written
	}
	return sum, err
}

// idle looks at a node that nobody asks anything for the given time.
func (s *side) idle(ctx context.Context, d time.Duration, profiles string) (idleUse, error) {
	var use idleUse
	var err error
	if use.Settled, err = s.settle(ctx); err != nil {
		return use, err
	}
	cpu0, err := s.cpu()
	if err != nil {
		return use, err
	}
	before, err := nodeProcesses(s.initPID)
	if err != nil {
		return use, err
	}
	begin := time.Now()
	if err := pause(ctx, d); err != nil {
		return use, err
	}
	after, err := nodeProcesses(s.initPID)
	if err != nil {
		return use, err
	}
	passed := time.Since(begin)
	cpu1, err := s.cpu()
	if err != nil {
		return use, err
	}
	use.NodeCPU = float64(cpu1-cpu0) / float64(passed)
	use.sum(before, after, passed)
	if !s.profiled {
		return use, nil
	}
	if profiles != "" {
		if err := s.profile(ctx, profiles, "idle-cpu", "/debug/pprof/profile?seconds=30"); err != nil {
			return use, err
		}
	}
	if err := s.profile(ctx, profiles, "idle-heap", "/debug/pprof/heap?gc=1"); err != nil {
		return use, err
	}
	collected, err := nodeProcesses(s.initPID)
	if err != nil {
		return use, err
	}
	for _, u := range collected {
		if u.Name != shimName {
			use.AfterGC += u.Anon
		}
	}
	return use, nil
}

// sum adds up the processes that lived through the whole time.
func (use *idleUse) sum(before, after map[int]usage, passed time.Duration) {
	use.ByName, use.AnonByName = map[string]float64{}, map[string]int64{}
	var shims []int64
	for pid, u := range after {
		was, ok := before[pid]
		if !ok {
			continue
		}
		use.Written += float64(u.Written-was.Written) / passed.Seconds()
		if u.Name == shimName {
			shims = append(shims, u.Anon)
			continue
		}
		if u.Name == benchName { // what starts the rival's processes
			continue
		}
		share := float64(u.CPU-was.CPU) / float64(passed)
		use.DaemonAnon += u.Anon
		use.DaemonCPU += share
		use.ByName[u.Name] += share
		use.AnonByName[u.Name] += u.Anon
	}
	use.Shims = len(shims)
	if len(shims) > 0 {
		use.ShimAnon = median(shims)
	}
}

// profile asks moot's status socket and keeps the answer when dir is given.
func (s *side) profile(ctx context.Context, dir, name, path string) error {
	socket := fmt.Sprintf("/proc/%d/root/run/moot/moot.sock", s.initPID)
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		},
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://moot"+path, nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return fmt.Errorf("profile: %w", err)
	}
	defer resp.Body.Close() //nolint:errcheck // read to its end, or failed already
	raw, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		return fmt.Errorf("profile: %s %w", resp.Status, err)
	}
	if dir == "" {
		return nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, name+".pprof"), raw, 0o644)
}
