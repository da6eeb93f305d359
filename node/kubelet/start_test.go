package kubelet

import (
	"path/filepath"
	"testing"
)

// A start that fails with an error counts like one that ends the process.
func TestFailedStartsAreCounted(t *testing.T) {
	cfg := testConfig(t)
	cfg.GuardFile = filepath.Join(t.TempDir(), "starts")
	cfg.Kubeconfig = filepath.Join(t.TempDir(), "missing")
	for i := range guardTries + 1 {
		k, err := New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		err = k.Run(t.Context(), nil)
		if err == nil {
			t.Fatal("a kubelet started without a kubeconfig")
		}
		if got, want := IsCrashLoop(err), i == guardTries; got != want {
			t.Fatalf("start %d refused: %v, want %v: %v", i+1, got, want, err)
		}
	}
}
