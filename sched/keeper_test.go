package sched

import (
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
)

func TestMembersThatNeverCameAreNotGone(t *testing.T) {
	now := time.Now()
	long := now.Add(-time.Hour)
	members := []NodeHealth{
		{Name: "here", State: NodeAlive, Since: long},
		{Name: "dead", State: NodeDead, Since: now},
		{Name: "granted1", State: NodeDead, Unheard: true, Since: now.Add(-2 * time.Minute)},
		{Name: "granted2", State: NodeDead, Unheard: true, Since: now.Add(-2 * time.Minute)},
		{Name: "unheard", State: NodeDead, Unheard: true, Since: now}, // but it ran pods
	}
	nodes := map[string]*corev1.Node{"here": {}, "dead": {}, "unheard": {}}
	left := arrived(members, nodes)
	var names []string
	for _, m := range left {
		names = append(names, m.Name)
	}
	if len(left) != 3 || names[0] != "here" || names[1] != "dead" || names[2] != "unheard" {
		t.Errorf("judged are %v", names)
	}
	cfg := DefaultConfig()
	r := rules{brakeFor: cfg.BrakeFor, brakeWindow: cfg.BrakeWindow, startupGrace: cfg.StartupGrace}
	judged := judge(now, r, arrived([]NodeHealth{members[0], members[2], members[3]}, nodes), nil)
	if names, _ := held(judged); len(names) > 0 {
		t.Errorf("the brake holds %v, which never were there", names)
	}
}
