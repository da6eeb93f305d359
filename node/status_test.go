package node

import (
	"fmt"
	"testing"
)

func TestBoardIsReadyWithAllParts(t *testing.T) {
	b := board{status: Status{Reason: "starting"}}
	check := func(when, want string) {
		t.Helper()
		s := b.read()
		if got := fmt.Sprintf("%v %q %q", s.Ready, s.Reason, s.Degraded); got != want {
			t.Errorf("%s: %s, want %s", when, got, want)
		}
	}
	b.without("DNS", "port 53 is in use")
	check("while it starts", `false "starting" ["DNS: port 53 is in use"]`)
	b.without("DNS", "it still is")
	if degraded := b.start(); len(degraded) != 1 {
		t.Errorf("degraded %q", degraded)
	}
	check("started", `false "DNS: it still is" ["DNS: it still is"]`)
	b.without("kubelet", "crash\nloop")
	b.without("DNS", "")
	check("with DNS", `false "kubelet: crash; loop" ["kubelet: crash; loop"]`)
	b.without("kubelet", "")
	check("with all", `true "" []`)
}
