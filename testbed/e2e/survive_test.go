package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mootkube/moot/testbed"
)

// Not parallel: these stop the daemon under everybody.

func nodeStatus(t *testing.T) testbed.NodeStatus {
	t.Helper()
	return decode[testbed.Status](t, runBed(t, "status", "-o", "json")).Nodes[0]
}

// containerProcess finds a pod's process on the node: pid and start time.
func (s *space) containerProcess(uid string) string {
	s.Helper()
	return shell(s.T, fmt.Sprintf(`for p in $(grep -l 'pod%s' /proc/[0-9]*/cgroup 2>/dev/null); do
	d=$(dirname $p); [ "$(cat $d/comm)" = web ] && cut -d' ' -f1,22 $d/stat; done; true`, uid))
}

// holds checks for a time that a condition stays true.
func (s *space) holds(what string, d time.Duration, check func() error) {
	s.Helper()
	end := time.NewTimer(d)
	defer end.Stop()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		if err := check(); err != nil {
			s.Fatalf("%s: %v", what, err)
		}
		select {
		case <-tick.C:
		case <-end.C:
			return
		case <-s.Context().Done():
			return
		}
	}
}

type running struct {
	pod, uid, podIP, serviceIP, process, container string
}

// run deploys one replica and says what runs.
func (s *space) run() running {
	s.Helper()
	s.apply(strings.ReplaceAll(deployment, "replicas: 2", "replicas: 1"))
	s.rollout("deployment/web")
	r := running{
		pod: s.field("pods", ".items[0].metadata.name"), uid: s.field("pods", ".items[0].metadata.uid"),
		podIP: s.field("pods", ".items[0].status.podIP"), serviceIP: s.field("service/web", ".spec.clusterIP"),
		container: s.field("pods", ".items[0].status.containerStatuses[0].containerID"),
	}
	r.process = s.containerProcess(r.uid)
	if r.process == "" {
		s.Fatal("no process of the pod on the node")
	}
	s.answers("http://"+r.serviceIP+"/", "hello from "+r.pod)
	return r
}

// same checks that what ran runs on, untouched.
func (s *space) same(r running) {
	s.Helper()
	equal(s.T, "process", s.containerProcess(r.uid), r.process)
	s.holds("the same container", 20*time.Second, func() error {
		got, err := s.try("", "get", "pod", r.pod, "-o",
			"jsonpath={.metadata.uid} {.status.containerStatuses[0].containerID} {.status.containerStatuses[0].restartCount}")
		if want := r.uid + " " + r.container + " 0"; err == nil && got != want {
			err = fmt.Errorf("%s, want %s", got, want)
		}
		return err
	})
	equal(s.T, "process", s.containerProcess(r.uid), r.process)
	s.answers("http://"+r.serviceIP+"/", "hello from "+r.pod)
	s.answers("http://"+r.podIP+":8080/", "hello from "+r.pod)
}

// lock takes a Lease, and says what there is of it.
func (s *space) lock() string {
	s.Helper()
	s.apply(`
apiVersion: coordination.k8s.io/v1
kind: Lease
metadata: {name: lock}
spec: {holderIdentity: me, leaseDurationSeconds: 15, renewTime: "2026-01-01T00:00:00.000000Z"}
`)
	return s.locked()
}

func (s *space) locked() string {
	s.Helper()
	return s.kubectl("get", "lease/lock", "-o", "jsonpath={.metadata.uid} {.spec.holderIdentity}")
}

func TestDaemonKilled(t *testing.T) {
	s := newSpace(t)
	r := s.run()
	s.kubectl("create", "configmap", "last", "--from-literal=word=kept")
	uid, lock := s.field("configmap/last", ".metadata.uid"), s.lock()
	runBed(t, "kill", node)
	equal(t, "process with the daemon dead", s.containerProcess(r.uid), r.process)
	if _, err := curl(t.Context(), "http://"+r.podIP+":8080/"); err != nil {
		t.Errorf("the pod with the daemon dead: %v", err)
	}
	if _, err := curl(t.Context(), "http://"+r.serviceIP+"/"); err != nil {
		t.Errorf("the Service with the daemon dead: %v", err)
	}
	began := time.Now()
	runBed(t, "start", node)
	t.Logf("ready %.1f s after kill and start", time.Since(began).Seconds())
	equal(t, "the last word", s.field("configmap/last", ".data.word"), "kept")
	equal(t, "its uid", s.field("configmap/last", ".metadata.uid"), uid)
	equal(t, "the lock", s.locked(), lock)
	s.same(r)
	// The pod is still kept: what ends in it comes back.
	_, _ = curl(t.Context(), "http://"+r.podIP+":8080/exit?s=1")
	s.eventually("a restart", func() error {
		if n := s.field("pod/"+r.pod, ".status.containerStatuses[0].restartCount"); n != "1" {
			return fmt.Errorf("%s restarts", n)
		}
		return nil
	})
	s.rollout("deployment/web")
}

func TestDaemonStopped(t *testing.T) {
	s := newSpace(t)
	r := s.run()
	st := nodeStatus(t)
	if err := unix.Kill(st.PID, unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	s.eventually("the daemon ends", func() error {
		if now := nodeStatus(t); now.PID != 0 {
			return fmt.Errorf("it runs: %s", now.Text)
		}
		return nil
	})
	equal(t, "how it ended", nodeStatus(t).Exit, "exit status 0")
	equal(t, "process with the daemon stopped", s.containerProcess(r.uid), r.process)
	runBed(t, "start", node)
	s.same(r)
}

func TestPowerLoss(t *testing.T) {
	s := newSpace(t)
	r := s.run()
	s.apply(`
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: data}
spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Mi}}}
---
apiVersion: v1
kind: Pod
metadata: {name: keeper}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{name: web, image: $IMAGE, volumeMounts: [{name: data, mountPath: /data}]}]
  volumes: [{name: data, persistentVolumeClaim: {claimName: data}}]
`)
	s.wait("condition=Ready", "pod/keeper")
	if _, err := curl(t.Context(), "http://"+s.field("pod/keeper", ".status.podIP")+":8080/write?f=/data/f", "-d", "on disk"); err != nil {
		t.Fatal(err)
	}
	s.kubectl("create", "configmap", "last", "--from-literal=word=kept")
	uid, lock := s.field("configmap/last", ".metadata.uid"), s.lock()
	runBed(t, "crash", node)
	equal(t, "power", nodeStatus(t).Power, testbed.NodeOff)
	runBed(t, "start", node)
	equal(t, "the last word", s.field("configmap/last", ".data.word"), "kept")
	equal(t, "its uid", s.field("configmap/last", ".metadata.uid"), uid)
	equal(t, "the lock", s.locked(), lock)
	s.eventually("the same pods run again", func() error {
		got := s.field("pods", ".items[*].status.containerStatuses[0].restartCount")
		if got != "1 1" {
			return fmt.Errorf("restarts: %s", got)
		}
		return nil
	})
	s.wait("condition=Ready", "pod/keeper", "pod/"+r.pod)
	equal(t, "pod after power loss", s.field("pods", ".items[?(@.metadata.name==\""+r.pod+"\")].metadata.uid"), r.uid)
	s.answers("http://"+r.serviceIP+"/", "hello from "+r.pod)
	equal(t, "the volume", s.kubectl("exec", "keeper", "--", "/web", "cat", "/data/f"), "on disk")
	if s.containerProcess(r.uid) == r.process {
		t.Error("a process outlived the power loss")
	}
}

// A frozen node goes on where it was.
func TestPause(t *testing.T) {
	s := newSpace(t)
	r := s.run()
	runBed(t, "pause", node)
	equal(t, "power", nodeStatus(t).Power, testbed.NodePaused)
	runBed(t, "resume", node)
	s.same(r)
}
