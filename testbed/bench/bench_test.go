package main

import (
	"os"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestPodTimesNote(t *testing.T) {
	var times podTimes
	p := &corev1.Pod{}
	if times.note(p, 1) {
		t.Error("a pod without a node runs")
	}
	p.Spec.NodeName = "n1"
	times.note(p, 2)
	p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReadyToStartContainers, Status: corev1.ConditionTrue}}
	times.note(p, 3)
	p.Status.Phase = corev1.PodRunning
	if !times.note(p, 4) {
		t.Error("the pod does not run")
	}
	if times.note(p, 5) {
		t.Error("the pod began to run twice")
	}
	if want := (podTimes{Bound: 2, Sandbox: 3, Running: 4}); times != want {
		t.Errorf("got %+v, want %+v", times, want)
	}
}

func TestNodeReady(t *testing.T) {
	began := time.Date(2026, 1, 1, 0, 0, 1, 5e8, time.UTC)
	node := func(status corev1.ConditionStatus, beat time.Time) *corev1.Node {
		return &corev1.Node{Status: corev1.NodeStatus{Conditions: []corev1.NodeCondition{
			{Type: corev1.NodeReady, Status: status, LastHeartbeatTime: metav1.NewTime(beat)},
		}}}
	}
	for name, c := range map[string]struct {
		node *corev1.Node
		want bool
	}{
		"says nothing":        {&corev1.Node{}, false},
		"not ready":           {node(corev1.ConditionFalse, began), false},
		"said so before":      {node(corev1.ConditionTrue, began.Add(-time.Second)), false},
		"in the same second":  {node(corev1.ConditionTrue, began.Truncate(time.Second)), true},
		"in a later second":   {node(corev1.ConditionTrue, began.Add(time.Second)), true},
		"does not know later": {node(corev1.ConditionUnknown, began.Add(time.Second)), false},
	} {
		if got := nodeReady(c.node, began); got != c.want {
			t.Errorf("%s: got %v", name, got)
		}
	}
}

func TestIdleUseSum(t *testing.T) {
	before := map[int]usage{
		1: {Name: "moot", CPU: time.Second, Anon: 7, Written: 100},
		2: {Name: shimName, CPU: time.Second, Anon: 4},
		3: {Name: shimName, CPU: time.Second, Anon: 5},
		4: {Name: benchName, Anon: 9},
	}
	after := map[int]usage{
		1: {Name: "moot", CPU: 2 * time.Second, Anon: 8, Written: 300},
		2: {Name: shimName, CPU: 3 * time.Second, Anon: 6, Written: 10},
		3: {Name: shimName, CPU: 3 * time.Second, Anon: 6},
		4: {Name: benchName, Anon: 9},
		5: {Name: "runc", CPU: time.Second, Anon: 99}, // came in between
	}
	var use idleUse
	use.sum(before, after, 10*time.Second)
	if use.DaemonAnon != 8 || use.ShimAnon != 6 || use.Shims != 2 {
		t.Errorf("memory: %+v", use)
	}
	if use.DaemonCPU != 0.1 || use.Written != 21 {
		t.Errorf("processor and disk: %+v", use)
	}
}

func TestReadUsage(t *testing.T) {
	u, err := readUsage("/proc/self")
	if err != nil {
		t.Fatal(err)
	}
	if u.Anon < 1<<16 || !strings.HasSuffix(os.Args[0], u.Name) {
		t.Errorf("got %+v of this test", u)
	}
}

func TestKeyed(t *testing.T) {
	raw := []byte("usage_usec 12\nuser_usec 7\nwrite_bytes: 4096\n")
	for key, want := range map[string]int64{"usage_usec": 12, "user_usec": 7, "write_bytes": 4096} {
		if got, err := keyed(raw, key); err != nil || got != want {
			t.Errorf("%s: got %d, %v", key, got, err)
		}
	}
	if _, err := keyed(raw, "usec"); err == nil {
		t.Error("found part of a key")
	}
}

func TestReport(t *testing.T) {
	ours := &side{name: sideMoot, results: results{
		starts: map[string][]startResult{startEmpty: {{Node: time.Second}, {Node: 3 * time.Second}, {Node: 2 * time.Second}}},
	}}
	theirs := &side{name: sideUpstream, results: results{
		starts: map[string][]startResult{startEmpty: {{Node: 4 * time.Second}}},
	}}
	var out strings.Builder
	if err := report(&out, []*side{ours, theirs}); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"| " + startEmpty + ": node Ready | 2 s | 4 s | 0.50 |",
		"| " + startReboot + ": node Ready | – | – | – |",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is not in\n%s", want, out.String())
		}
	}
}
