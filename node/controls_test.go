package node

import (
	"context"
	"testing"
	"time"

	"github.com/mootkube/moot/node/pki/rotation"
)

// A rotation moves on with the word of a machine that the register knows.
func TestRotationKnowsThisMachine(t *testing.T) {
	a := newAlone(t)
	if err := a.register(t.Context(), a.replica, a.member); err != nil {
		t.Fatal(err)
	}
	runner, err := a.rotation(a.replica)
	if err != nil {
		t.Fatal(err)
	}
	if s, err := runner.Start(t.Context()); err != nil || s.Stage != rotation.StageTrust || len(s.Waiting) != 1 {
		t.Fatalf("start: %+v, %v", s, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- runner.Run(ctx) }()
	deadline := time.Now().Add(30 * time.Second)
	for s := (rotation.Status{Stage: rotation.StageTrust}); s.Stage == rotation.StageTrust; {
		if s, err = runner.Status(t.Context()); err != nil || time.Now().After(deadline) {
			t.Fatalf("not moved on: %+v, %v", s, err)
		}
		pause(t.Context(), 10*time.Millisecond)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
