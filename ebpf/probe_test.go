package ebpf_test

import (
	"os"
	"testing"

	"github.com/mootkube/moot/ebpf"
)

func TestProbeAnswersEveryFeature(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("probing needs root")
	}
	seen := map[string]bool{}
	for _, f := range ebpf.Probe() {
		if f.Name == "" || f.Why == "" {
			t.Errorf("feature %+v lacks a name or a reason", f)
		}
		if seen[f.Name] {
			t.Errorf("feature %q is listed twice", f.Name)
		}
		seen[f.Name] = true
		t.Logf("%-18s %v", f.Name, f.Err)
	}
	for _, f := range ebpf.Probe() {
		if f.Required && f.Err != nil {
			t.Errorf("%s: %v", f.Name, f.Err)
		}
	}
}
