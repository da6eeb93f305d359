package sched

import "testing"

// Nothing of upstream is on this stack, so the call goes on to the process.
func TestExitsFromElsewhereGoOn(t *testing.T) {
	var code int
	e := &Exits{next: func(c int) { code = c }}
	e.exit(3)
	if code != 3 {
		t.Errorf("the process was asked to exit with %d", code)
	}
}
