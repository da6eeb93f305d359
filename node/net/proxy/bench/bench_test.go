package main

import (
	"os"
	"os/exec"
	"testing"
	"time"
)

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == roleNode {
		main()
		return
	}
	os.Exit(m.Run())
}

// TestSides has every side serve a few Services to the node and to a pod, and
// follow a change of endpoints there and back.
func TestSides(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	if _, err := cgroupRoot(); err != nil {
		t.Skip(err)
	}
	for side, program := range map[string]string{direct: "", ebpf: "", nftables: "nft", iptables: "iptables"} {
		t.Run(side, func(t *testing.T) {
			if _, err := exec.LookPath(program); program != "" && err != nil {
				t.Skip(err)
			}
			v, err := start(t.Context(), side, 3, settings{bound: time.Minute})
			if err != nil {
				t.Fatal(err)
			}
			defer func() {
				if err := v.stop(); err != nil {
					t.Error(err)
				}
			}()
			if v.unstarted != nil {
				t.Fatal(v.unstarted)
			}
			questions := []question{
				{Kind: oneByOne, Count: 20}, {Kind: oneByOne, Count: 20, Pod: true},
				{Kind: atOnce, Clients: 2, Period: 50 * time.Millisecond},
			}
			if side != direct {
				questions = append(questions, question{Kind: change, Count: 2})
			}
			for _, q := range questions {
				if a, err := v.measure(q); err != nil || len(a.Times) < q.Count || len(a.Times) == 0 {
					t.Errorf("%+v: %d times, %v", q, len(a.Times), err)
				}
			}
		})
	}
}

func TestFigures(t *testing.T) {
	var d []time.Duration
	for i := range 100 {
		d = append(d, time.Duration(99-i))
	}
	if p50, p99 := quantile(d, 50), quantile(d, 99); p50 != 50 || p99 != 99 {
		t.Errorf("of 0 to 99: p50 %d, p99 %d", p50, p99)
	}
	if got := median([]float64{3, 1, 2}); got != 2 {
		t.Errorf("median of 3, 1, 2: %v", got)
	}
	for n, want := range map[int]string{7: "7", 1000: "1,000", 1234567: "1,234,567"} {
		if got := thousands(n); got != want {
			t.Errorf("thousands(%d) is %q, want %q", n, got, want)
		}
	}
}
