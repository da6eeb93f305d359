package main

import (
	"os"
	"strings"
	"testing"
)

// Each scenario is a target that make help lists.
func TestTargets(t *testing.T) {
	makefile, err := os.ReadFile("../../Makefile")
	if err != nil {
		t.Fatal(err)
	}
	list := ""
	for line := range strings.Lines(string(makefile)) {
		if strings.HasPrefix(line, "ACCEPT :=") {
			list = line
		}
	}
	for _, trial := range trials() {
		if !strings.Contains(string(makefile), "\naccept-"+trial.name+": bin/accept ## ") {
			t.Errorf("no target accept-%s", trial.name)
		}
		if !strings.Contains(list, trial.name) {
			t.Errorf("make accept leaves %s out", trial.name)
		}
	}
}
