package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"
)

// A daemon that cannot run says so in a line for each reason, with what to
// do, and nobody else is hurt. Not parallel: it looks at the shared node after.
func TestRefusals(t *testing.T) {
	before := nodeStatus(t)
	for name, c := range map[string]struct {
		argv []string
		want []string // in what it says
	}{
		"second daemon": {[]string{"moot", "up", "--node-ip", "10.77.0.11"}, []string{"/var/lib/moot"}},
		"busy port": {
			[]string{"moot", "up", "--data-dir", "/tmp/second", "--state-dir", "/run/second", "--node-ip", "10.77.0.11"},
			[]string{"6443"},
		},
		"not root": {
			[]string{"setpriv", "--reuid", "65534", "--clear-groups", "moot", "up", "--data-dir", "/tmp/nobody"},
			[]string{"root"},
		},
		"wrong flag":    {[]string{"moot", "up", "--no-such-flag"}, []string{"--no-such-flag"}},
		"wrong network": {[]string{"moot", "up", "--cluster-cidr", "10.42.0.0/33"}, []string{"cluster-cidr"}},
		"wrong address": {[]string{"moot", "up", "--data-dir", "/tmp/third", "--node-ip", "192.0.2.1"}, []string{"192.0.2.1"}},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			out, err := tryOn(ctx, "", c.argv...)
			if status := exitStatus(err); status <= 0 || status > 125 {
				t.Errorf("exit status %d: %v", status, err)
			}
			t.Logf("it says: %s", out)
			contains(t, "the reason", out, c.want...)
			if strings.Count(out, "\n") > 10 || strings.Contains(out, "goroutine ") || strings.Contains(out, "Usage:") {
				t.Errorf("it says too much:\n%s", out)
			}
		})
	}
	after := nodeStatus(t)
	equal(t, "the daemon that runs", after.PID, before.PID)
	equal(t, "its readiness", after.Ready, true)
}

// spare is a cluster of a test's own.
type spare struct {
	*testing.T
	dir string
}

func newSpare(t *testing.T) *spare {
	t.Helper()
	dir := t.TempDir()
	s := &spare{T: t, dir: dir}
	t.Cleanup(func() {
		ctx := context.Background()
		if t.Failed() {
			out, _ := bed(ctx, dir, "", "logs", node)
			lines := strings.Split(out, "\n")
			t.Logf("the daemon's log ends:\n%s", strings.Join(lines[max(0, len(lines)-40):], "\n"))
		}
		if out, err := bed(ctx, dir, "", "down"); err != nil {
			t.Errorf("%v\n%s", err, out)
		}
	})
	s.bed("up")
	return s
}

func (s *spare) bed(args ...string) string {
	s.Helper()
	out, err := bed(s.Context(), s.dir, "", args...)
	if err != nil {
		s.Fatalf("%v\n%s", err, out)
	}
	return strings.TrimSpace(out)
}

func (s *spare) on(line string) string {
	s.Helper()
	return s.bed("exec", node, "--", "sh", "-c", line)
}

// A damaged store is refused in words; with its files put right nothing is
// lost.
func TestDamagedStore(t *testing.T) {
	s := newSpare(t)
	s.on("kubectl create configmap before --from-literal=word=kept")
	s.bed("kill", node)
	s.on("cp -a /var/lib/moot/store /tmp/good && cd /var/lib/moot/store && f=$(find . -name 'MANIFEST-*' | head -1) && test -n \"$f\" && head -c 4096 /dev/urandom >\"$f\"")
	out, err := bed(t.Context(), s.dir, "", "start", node, "--timeout", "60s")
	if err == nil {
		t.Fatal("it starts on a damaged store")
	}
	lines := strings.Split(strings.TrimSpace(out), "\n")
	last := lines[len(lines)-1]
	t.Logf("it says: %s", last)
	contains(t, "the last line", last, "moot:", "store")
	if strings.Contains(out, "goroutine ") {
		t.Errorf("it panics:\n%s", out)
	}
	s.on("rm -rf /var/lib/moot/store && cp -a /tmp/good /var/lib/moot/store")
	s.bed("start", node)
	equal(t, "after repair", s.on("kubectl get configmap before -o jsonpath={.data.word}"), "kept")
}

// With the disk full, writes fail in words and what was acknowledged stays.
func TestFullDisk(t *testing.T) {
	s := newSpare(t)
	s.bed("kill", node)
	s.on("mkdir -p /mnt/small && mount -t tmpfs -o size=160m small /mnt/small && cp -a /var/lib/moot/. /mnt/small/ && mount --rbind /mnt/small /var/lib/moot")
	s.bed("start", node)
	s.on("kubectl create configmap before --from-literal=word=kept")
	s.on("fallocate -l $(($(df --output=avail -B1 /mnt/small | tail -1) - 50*1024*1024)) /mnt/small/filler")
	acknowledged, refused := 0, ""
	for i := range 200 {
		name := fmt.Sprintf("fill-%d", i)
		out, err := bed(t.Context(), s.dir, "", "exec", node, "--", "sh", "-c",
			"head -c 900000 /dev/urandom | base64 -w0 | head -c 900000 >/tmp/big && kubectl --request-timeout=30s create configmap "+name+" --from-file=/tmp/big")
		if err != nil {
			refused = strings.TrimSpace(out)
			break
		}
		acknowledged++
	}
	if refused == "" {
		t.Fatal("a full disk takes 180 MB")
	}
	t.Logf("after %d writes: %s", acknowledged, refused)
	if acknowledged == 0 {
		t.Error("refused with 50 MB free")
	}
	log := s.bed("logs", node)
	contains(t, "what the client is told", refused, "space")
	contains(t, "what the daemon says", log, "disk is nearly full")
	s.on("rm /mnt/small/filler")
	if out, err := bed(t.Context(), s.dir, "", "kill", node); err != nil {
		t.Logf("the daemon had ended: %s", out)
	}
	s.on("mount -o remount,size=600m /mnt/small")
	s.bed("start", node)
	equal(t, "before", s.on("kubectl get configmap before -o jsonpath={.data.word}"), "kept")
	for i := range acknowledged {
		s.on(fmt.Sprintf("kubectl get configmap fill-%d -o name", i))
	}
	s.on("kubectl create configmap after")
}
